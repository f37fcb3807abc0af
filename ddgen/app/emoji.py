"""Emoji of the free sets as pictures with words: what the image tower and the evaluator are trained on.

    npm tarballs + emojibase labels -> resvg, SIDE x SIDE RGBA -> Emoji(icon, label, tags, set, pixels)

Every emoji but flags, people and parts of either. One label in several sets is one concept; its icon's name is
the label's slug. Rendered once, then kept in one file.
"""

import io
import json
import re
import tarfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddgen.app.stickers import IconSet, Render, find_tarball, read_package
from ddgen.errors import InputError

SIDE = 64  # pixels
LABELS = "emojibase-data"
GROUPS = (0, 3, 4, 5, 6, 7, 8)  # emojibase: smileys, animals, food, travel, activities, objects, symbols

# style word -> npm package; the first three are what the generator sees, the others are the evaluator's alone
SEEN = {"noto": "@iconify-json/noto", "twemoji": "@iconify-json/twemoji", "flat": "@iconify-json/fluent-emoji-flat"}
UNSEEN = {
    "3d": "@iconify-json/fluent-emoji",
    "old noto": "@iconify-json/noto-v1",
    "emojione": "@iconify-json/emojione",
    "firefox": "@iconify-json/fxemoji",
    "streamline": "@iconify-json/streamline-emojis",
}
DRAWINGS = 3  # of one thing in a set that numbers them, at most


@dataclass(frozen=True)
class Label:
    """One concept: its icon's name in the sets, how it is called, and words that go with it."""

    icon: str
    label: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Emoji:
    """Pictures with their concepts. pixels: (N, SIDE, SIDE, 4) uint8, not premultiplied; concept, style: (N,)
    indices into labels and styles."""

    labels: tuple[Label, ...]
    styles: tuple[str, ...]
    pixels: NDArray[np.uint8]
    concept: NDArray[np.int64]
    style: NDArray[np.int64]

    def of(self, styles: Sequence[str]) -> "Emoji":
        """Return those of some styles; concepts keep their numbers."""
        wanted = [self.styles.index(style) for style in styles]
        return self.only(np.isin(self.style, wanted))

    def only(self, keep: NDArray[np.bool_]) -> "Emoji":
        """Return the pictures that a mask (N,) keeps."""
        return Emoji(self.labels, self.styles, self.pixels[keep], self.concept[keep], self.style[keep])


def slug(label: str) -> str:
    """Return a label as the sets name its icon: "cat with tears of joy" -> "cat-with-tears-of-joy"."""
    return "-".join(re.findall(r"[a-z0-9]+", label.lower().replace("’", "").replace("'", "")))


def read_labels(path: Path) -> list[Label]:
    """Read the labels out of emojibase's tarball, in its order.

    Raises:
        InputError: not such a package.
    """
    try:
        with tarfile.open(path, "r:gz") as tar:
            rows = json.load(tar.extractfile("package/en/data.json"))  # type: ignore[arg-type]
        chosen = [row for row in rows if row.get("group") in GROUPS]
        return [Label(slug(row["label"]), row["label"].lower(), tuple(row.get("tags", ()))) for row in chosen]
    except (OSError, tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"'{path}' is not emojibase-data ({type(error).__name__})", "fetch it again with npm pack", id="input.package"
        ) from None


def icon_names(icons: IconSet, label: Label, others: Collection[str] = ()) -> list[str]:
    """Return what a set calls its drawings of a concept, none where it has none. Some sets write names without
    hyphens, or "fox-face" for "fox", or number several drawings. others: names of other concepts."""
    known = icons.icons["icons"]
    aliases = icons.icons.get("aliases", {})

    def there(name: str) -> bool:
        return name in known or set(aliases.get(name, {})) == {"parent"}

    for name in (label.icon, label.icon.replace("-", ""), f"{label.icon}-face"):
        if name != label.icon and name in others:
            continue
        if there(name):
            return [name]
        numbered = [f"{name}-{i}" for i in range(1, DRAWINGS + 1) if there(f"{name}-{i}")]
        if numbered:
            return numbered
    return []


def render_all(packages: Path, draw: Render, told: Callable[[str, int], None] = lambda style, count: None) -> Emoji:
    """Render every concept of every set. told: (style, pictures) after each set.

    Raises:
        InputError: a tarball is missing or damaged.
    """
    labels = read_labels(find_tarball(packages, LABELS))
    labels = list({label.icon: label for label in labels}.values())
    sets = {**SEEN, **UNSEEN}
    slugs = {label.icon for label in labels}
    pixels, concept, style = [], [], []
    for number, (word, package) in enumerate(sets.items()):
        icons = read_package(find_tarball(packages, package))
        for index, label in enumerate(labels):
            for name in icon_names(icons, label, slugs):
                raw = Image.open(io.BytesIO(draw(icons.svg(name, SIDE), SIDE))).convert("RGBA")
                pixels.append(np.asarray(raw.resize((SIDE, SIDE)) if raw.size != (SIDE, SIDE) else raw))
                concept.append(index)
                style.append(number)
        told(word, style.count(number))
    return Emoji(tuple(labels), tuple(sets), np.stack(pixels), np.array(concept), np.array(style))


def load(packages: Path, kept: Path, draw: Callable[[], Render]) -> Emoji:
    """Return all emoji, rendered at the first call and then read from the file `kept`."""
    if not kept.exists():
        made = render_all(packages, draw())
        words = json.dumps([[label.icon, label.label, label.tags] for label in made.labels])
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part.npz")
        np.savez(part, pixels=made.pixels, concept=made.concept, style=made.style, words=words, styles=list(made.styles))
        part.replace(kept)
    with np.load(kept) as data:
        labels = tuple(Label(icon, label, tuple(tags)) for icon, label, tags in json.loads(str(data["words"])))
        return Emoji(labels, tuple(map(str, data["styles"])), data["pixels"], data["concept"], data["style"])
