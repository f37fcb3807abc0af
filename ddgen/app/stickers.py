"""Build the sticker data set: emoji sets from the npm registry -> pictures with captions and a manifest.

    npm pack -> icons.json (SVG bodies) -> resvg, 128 x 128 on white -> NAME.png + a line of metadata.jsonl

The folder follows the `imagefolder` convention: metadata.jsonl names each file and its text; further columns
tell the captions with their weights, the source package with its version, the licence, and the sha256 of the
file. Equal packages give equal bytes.
"""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddgen.app.concepts import (
    BACKGROUND_WEIGHT,
    BACKGROUNDS,
    COLOURS,
    KEY,
    KEY_WEIGHT,
    RECOLOURED_WEIGHT,
    STYLES,
    Concept,
    captions,
    concepts,
    held_out,
    on_background,
    with_article,
)
from ddgen.app.scenes import CELL, SHARES, Scene, scenes
from ddgen.errors import InputError, NetworkError, UsageError
from ddgen.io.files import publish

SIDE = 128  # pixels
PACK_SECONDS = 600
DARK, DARKER = 115, 2.5  # the value (HSV, of 255) that counts as dark; so much more dark than coloured makes a thing dark

Pixels = NDArray[np.uint8]
Render = Callable[[str, int], bytes]


@dataclass(frozen=True)
class IconSet:
    """One package: its SVG bodies by name and what it says of itself."""

    package: str
    version: str
    licence: str
    author: str
    icons: Mapping[str, Any]

    @property
    def origin(self) -> dict[str, str]:
        """Return what the manifest says of every picture of the set."""
        return {"source": self.package, "version": self.version, "licence": self.licence}

    def svg(self, name: str, side: int) -> str:
        """Return an icon as a whole SVG document of side x side pixels.

        Raises:
            InputError: the set has no such icon.
        """
        body = self.icons["icons"].get(name)
        if body is None:
            alias = self.icons.get("aliases", {}).get(name, {})
            if set(alias) != {"parent"} or alias["parent"] not in self.icons["icons"]:
                raise InputError(
                    f"'{self.package}' {self.version} has no icon '{name}'",
                    "take it off the list of concepts",
                    id="input.icon",
                )
            body = self.icons["icons"][alias["parent"]]
        box = [
            body.get(key, self.icons.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        ]
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{" ".join(map(str, box))}" width="{side}" height="{side}">{body["body"]}</svg>'
        )


@dataclass(frozen=True)
class Built:
    """One picture of the data set as written."""

    file: str
    total: int


def build(
    target: Path,
    packages: Path | None = None,
    *,
    listed: Sequence[Concept] | None = None,
    render: Render | None = None,
) -> Iterator[Built]:
    """Write the data set into `target`, yielding after each picture; the manifest comes last, so that its
    presence means "whole".

    packages: a directory of tarballs as `npm pack` writes them; None fetches them.

    Raises:
        UsageError: resvg-py or npm is not installed. NetworkError: npm failed. InputError: a damaged package.
        OutputError: the folder cannot be written.
    """
    chosen = list(concepts()) if listed is None else list(listed)
    draw = resvg() if render is None else render
    with tempfile.TemporaryDirectory(prefix="ddgen-npm-") as scratch:
        if packages is None:
            fetch(list(STYLES.values()), Path(scratch))
        sets = {
            style: read_package(find_tarball(packages or Path(scratch), name))
            for style, name in STYLES.items()
        }
    trained = [scene for scene in scenes(chosen) if not scene.held_out]
    total = len(STYLES) * (sum(len(compositions(concept)) for concept in chosen) + len(trained))
    lines = []
    (target / "metadata.jsonl").unlink(missing_ok=True)  # of an earlier build
    for part in (
        *(pictures(concept, style, icons, draw) for concept in chosen for style, icons in sets.items()),
        *(scene_pictures(trained, style, icons, draw, len(chosen)) for style, icons in sets.items()),
    ):
        for file, pixels, row in part:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
            publish(target / file, buffer.getvalue(), force=True)
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
            lines.append(json.dumps({"file_name": file, **row, "sha256": digest}))
            yield Built(file, total)
    sources = [
        {"package": s.package, "version": s.version, "licence": s.licence, "author": s.author}
        for s in sets.values()
    ]
    publish(target / "sources.json", (json.dumps(sources, indent=1) + "\n").encode(), force=True)
    publish(target / "metadata.jsonl", ("\n".join(lines) + "\n").encode(), force=True)


def compositions(concept: Concept) -> list[tuple[str | None, str | None]]:
    """Return what is drawn of a concept in each style, (colour of the thing, of the background), less what is
    held out; None is its own colour, and white."""
    colours = [c for c in COLOURS if concept.recolour and not held_out(concept.icon, c, "thing")]
    grounds = [c for c in BACKGROUNDS if not held_out(concept.icon, c, "background")]
    return [(None, None), *((c, None) for c in colours), *((None, c) for c in grounds)]


def pictures(
    concept: Concept, style: str, icons: IconSet, draw: Render
) -> Iterator[tuple[str, Pixels, dict[str, Any]]]:
    """Yield (file, pixels, manifest row) of a concept in one style: as it is, recoloured, on backgrounds."""
    raw = np.asarray(Image.open(io.BytesIO(draw(icons.svg(concept.icon, SIDE), SIDE))).convert("RGBA"))
    origin = {**icons.origin, "icon": concept.icon, "style": style}
    hue = body_hue(raw) if concept.recolour else None
    for colour, ground in compositions(concept):
        name = f"{style}/{concept.icon}"
        if colour is not None:
            called = f"{colour} {concept.plain_name}"
            yield (
                f"{name}-{colour}.png",
                laid_on(recolour(raw, colour, hue)),
                {
                    "text": with_article(called),
                    "captions": captions((called,), style),
                    "weight": RECOLOURED_WEIGHT,
                    "colour": colour,
                    **origin,
                },
            )
        elif ground is not None:
            made = on_background(concept.names, style, ground)
            yield (
                f"{name}-on-{ground}.png",
                laid_on(raw, BACKGROUNDS[ground]),
                {
                    "text": next(iter(made)),
                    "captions": made,
                    "weight": KEY_WEIGHT if ground == KEY else BACKGROUND_WEIGHT,
                    "background": ground,
                    **origin,
                },
            )
        else:
            made = captions(concept.names, style, concept.also)
            yield f"{name}.png", laid_on(raw), {"text": concept.phrase, "captions": made, "weight": 1.0, **origin}


def scene_pictures(
    trained: Sequence[Scene], style: str, icons: IconSet, draw: Render, plain: int
) -> Iterator[tuple[str, Pixels, dict[str, Any]]]:
    """Yield (file, pixels, manifest row) of every scene in one style. plain: pictures of one thing, of weight 1, that
    a style has."""
    cuts = {
        icon: np.asarray(Image.open(io.BytesIO(draw(icons.svg(icon, CELL), CELL))).convert("RGBA"))
        for icon in dict.fromkeys(thing.icon for scene in trained for thing in scene.things)
    }
    kinds = [scene.kind for scene in trained]
    for scene in trained:
        made = scene.captions(style)
        yield (
            f"{style}/{scene.name}.png",
            laid_on(scene.drawn(cuts, SIDE)),
            {
                "text": next(iter(made)),
                "captions": made,
                "weight": round(SHARES[scene.kind] * plain / kinds.count(scene.kind), 6),
                "things": [thing.icon for thing in scene.things] * max(1, scene.count),
                **icons.origin,
                "style": style,
            },
        )


def laid_on(raw: Pixels, ground: tuple[int, int, int] = (255, 255, 255)) -> Pixels:
    """Return an RGBA picture (H, W, 4) laid on a colour: (H, W, 3)."""
    alpha = raw[..., 3:].astype(np.float32) / 255
    return (raw[..., :3] * alpha + np.float32(ground) * (1 - alpha) + 0.5).astype(np.uint8)


def _hsv(raw: Pixels) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(raw[..., :3]).convert("HSV")).astype(np.float32)


def dominant_hue(raw: Pixels) -> float:
    """Return the hue in degrees that most of the coloured, opaque area has."""
    h, s, v = np.moveaxis(_hsv(raw), -1, 0)
    weight = raw[..., 3] * s * v
    counts = np.bincount((h / 256 * 36).astype(int).ravel(), weight.ravel(), 36)
    return float((2 * counts + np.roll(counts, 1) + np.roll(counts, -1)).argmax() * 10 + 5)


def body_hue(raw: Pixels) -> float | None:
    """Return the dominant hue in degrees, or None of a thing that is far more dark than of any hue, as a penguin."""
    hue = dominant_hue(raw)
    h, s, v = np.moveaxis(_hsv(raw), -1, 0)
    near = np.abs((h / 256 * 360 - hue + 180) % 360 - 180) < 50
    opaque = raw[..., 3] > 127
    dark, coloured = (opaque & (v < DARK)).sum(), (opaque & near & (s > 70) & (v >= DARK)).sum()
    return None if dark > DARKER * coloured else hue


def recolour(raw: Pixels, colour: str, hue: float | None) -> Pixels:
    """Return an RGBA picture with the colours around `hue` (degrees) turned into another; the rest stays. Without a
    hue what is dark is turned, and made bright."""
    target, saturate, brighten = COLOURS[colour]
    h, s, v = np.moveaxis(_hsv(raw), -1, 0)
    if hue is None:
        away = np.zeros_like(h)
        mask = np.clip((DARK + 15 - v) / 30, 0, 1)
        s, v = np.full_like(s, 205), 170 + 0.6 * v
    else:
        away = (h / 256 * 360 - hue + 180) % 360 - 180
        mask = np.clip((50 - np.abs(away)) / 15, 0, 1) * np.clip((s - 30) / 40, 0, 1)
    turned = np.stack(
        [
            (target + 0.35 * away) % 360 / 360 * 256 % 256,
            np.clip(s * saturate, 0, 255),
            np.clip(v * brighten, 0, 255),
        ],
        -1,
    )
    rgb = np.asarray(Image.fromarray(turned.astype(np.uint8), "HSV").convert("RGB")).astype(np.float32)
    found = raw.copy()
    found[..., :3] = (rgb * mask[..., None] + raw[..., :3] * (1 - mask[..., None]) + 0.5).astype(np.uint8)
    return found


def fetch(names: Sequence[str], directory: Path) -> None:
    """Fetch packages from the npm registry with its own client.

    Raises:
        UsageError: npm is not installed. NetworkError: it failed.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError(
            "npm is not installed",
            "install Node.js, or give the packages' tarballs with --packages",
            id="usage.npm",
        )
    try:
        done = subprocess.run(
            [npm, "pack", "--silent", *names],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=PACK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NetworkError(
            f"npm pack took more than {PACK_SECONDS} s", "try again later", id="network.npm"
        ) from None
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise NetworkError(
            f"npm pack failed: {words}", "check the connection, or give --packages", id="network.npm"
        )


def find_tarball(directory: Path, package: str) -> Path:
    """Return the one tarball of a package in a directory, as `npm pack` names it.

    Raises:
        InputError: there is none, or more than one.
    """
    stem = package.removeprefix("@").replace("/", "-")
    found = sorted(path for path in directory.glob(f"{stem}-*.tgz") if path.name[len(stem) + 1].isdigit())
    if len(found) != 1:
        raise InputError(
            f"'{directory}' holds {len(found)} tarballs of '{package}'",
            f"run there: npm pack {package}",
            id="input.package",
        )
    return found[0]


def read_package(path: Path) -> IconSet:
    """Read an icon set out of its tarball; nothing is unpacked to disk.

    Raises:
        InputError: not such a package.
    """
    try:
        with tarfile.open(path, "r:gz") as tar:
            read = {
                name: json.load(tar.extractfile(f"package/{name}.json"))
                for name in ("package", "icons", "info")
            }  # type: ignore[arg-type]
        licence, author = read["info"]["license"], read["info"]["author"]["name"]
        return IconSet(
            read["package"]["name"], read["package"]["version"], licence["spdx"], author, read["icons"]
        )
    except (OSError, tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"'{path}' is not an icon package ({type(error).__name__})",
            "fetch it again with npm pack",
            id="input.package",
        ) from None


def resvg() -> Render:
    """Return the renderer: SVG text and side in pixels to PNG bytes.

    Raises:
        UsageError: resvg-py is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise UsageError(
            "resvg-py is not installed", "pip install 'ddgen[train]'", id="usage.resvg"
        ) from None

    def draw(svg: str, side: int) -> bytes:
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))

    return draw
