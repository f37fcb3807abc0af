"""A directory of pictures as one page that needs nothing else: thumbnails, prompts, settings, a filter, the
command of each. Torch-free.

The page is data in a fixed frame: what pictures say goes into one JSON block whose `<`, `>` and `&` are
escaped, and from there into the page as text, never as markup; a Content-Security-Policy forbids every
connection and every script but its own, named by its hash.
"""

import base64
import hashlib
import io
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ddgen.errors import DdgenError
from ddgen.io import containers, foreign, images

THUMB = 256
"""The longer side of a thumbnail, in pixels."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def find_pictures(root: Path) -> list[Path]:
    """Return the picture files below a directory, links not followed, sorted by name."""
    found = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.is_symlink()
    ]
    return sorted(
        path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def page(
    root: Path, pictures: Sequence[Path], title: str, skipped: Callable[[Path, DdgenError], None]
) -> bytes:
    """Return the page. skipped: told of every file that is no readable picture."""
    entries = list(_entries(root, pictures, skipped))
    frame = files("ddgen.app").joinpath("gallery.html").read_text(encoding="utf-8")
    script = frame.partition("<script>")[2].partition("</script>")[0]
    data = json.dumps({"title": title, "pictures": entries}, separators=(",", ":"))
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return frame.replace("@SCRIPT@", digest).replace("@DATA@", data).encode()


def _entries(
    root: Path, pictures: Sequence[Path], skipped: Callable[[Path, DdgenError], None]
) -> Iterator[dict[str, Any]]:
    for path in pictures:
        try:
            yield _entry(root, path)
        except DdgenError as error:
            skipped(path, error)


def _entry(root: Path, path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    pixels = images.read_image(path, data)
    found = foreign.interpret(containers.read_texts(data))
    entry: dict[str, Any] = {
        "file": path.relative_to(root).as_posix(),
        "size": f"{pixels.shape[1]}x{pixels.shape[0]}",
        "thumb": _thumb(pixels),
    }
    if found is not None:
        known = {name: value for name, value in found.settings.items() if value not in (None, "")}
        entry |= {"tool": found.tool, "prompt": found.prompt, "negative": found.negative, "settings": known}
        entry |= {"model": found.rest.get("model", found.rest.get("Model", "")), "command": command(found)}
    return entry


def _thumb(pixels: "images.Pixels") -> str:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def command(found: foreign.Found) -> str:
    """Return a command line that makes the picture's job, quoted for a shell."""
    words = ["ddgen", "sample"]
    said = dict(found.settings)
    if said.get("sigmas"):
        said = {name: value for name, value in said.items() if name not in ("steps", "spacing")}
    joiners = {"sigmas": ",", "guidance_interval": ":"}
    for name, value in said.items():
        if value in (None, "") or (name, value) in (
            ("scale", 1),
            ("guidance_rescale", 0.0),
            ("prompt_syntax", "a1111"),
            ("rng", "ddgen"),
        ):
            continue
        text = (
            joiners[name].join(f"{part:.10g}" for part in value) if isinstance(value, tuple) else f"{value}"
        )
        words += [f"--{name.replace('_', '-')}", text]
    if found.negative:
        words.append(f"--negative={found.negative}")
    model = found.rest.get("model")
    if model and found.tool == "ddgen":
        words += ["--model", model]
    return " ".join(shlex.quote(word) for word in [*words, "--", found.prompt])
