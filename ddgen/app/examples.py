"""Pictures with captions, wherever people keep them: what there is, not yet read.

    DIR/metadata.jsonl or .csv   file_name and text (or caption) of each picture: Hugging Face's imagefolder
    DIR/fox.png, fox.txt         the caption beside the picture
    DIR/a red fox/1.png          no captions at all: the name of the directory is the caption
    DIR/*.tar, or one FILE.tar   webdataset shards: KEY.png with KEY.txt or KEY.json; read where they lie

A line of metadata.jsonl may also have `captions` ({text: weight}; one is drawn each time) and `weight` (how often
the picture is drawn; default 1). With train/ in DIR, only what is below it counts.
"""

import csv
import io
import json
import struct
import tarfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

from ddgen.errors import InputError
from ddgen.io import images

MANIFESTS = ("metadata.jsonl", "metadata.csv")
Read = TypeVar("Read")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TEXTS = (".txt", ".json")
MAX_PICTURE = 256 * 2**20  # bytes of a file
MAX_WEIGHT = 1e30  # so that all together stay a number
MAX_TEXT = 2**20  # bytes of a caption
BAD = (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError, struct.error)


@dataclass(frozen=True)
class Example:
    """One picture. path: its file, or the shard that holds it. captions: with their weights. weight: how often it
    is drawn. place: offset and size in the shard, and its name there.
    """

    path: Path
    captions: dict[str, float]
    weight: float = 1.0
    place: tuple[int, int, str] | None = None

    @property
    def name(self) -> str:
        return str(self.path) if self.place is None else f"{self.path}: {self.place[2]}"

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            InputError: it cannot be read, or is too large.
        """
        try:
            size = self.path.stat().st_size if self.place is None else self.place[1]
            if size > MAX_PICTURE:
                raise self.bad(f"has {size} bytes, more than {MAX_PICTURE}")
            return read_at(self.path, 0 if self.place is None else self.place[0], size)
        except OSError as error:
            raise self.bad(f"cannot be read ({type(error).__name__})") from None

    def image(self) -> Image.Image:
        """Return the picture, not yet decoded.

        Raises:
            InputError: it is none.
        """
        try:
            return Image.open(io.BytesIO(self.read()))
        except BAD as error:
            raise self.bad(f"cannot be read ({type(error).__name__})") from None

    def decoded(self) -> Image.Image:
        """Return the picture as it is to be seen, RGBA.

        Raises:
            InputError: it cannot be decoded.
        """
        return self._read(lambda image: images.upright(image).convert("RGBA"))

    def size(self) -> tuple[int, int]:
        """Return width and height of what `decoded` gives, in pixels.

        Raises:
            InputError: it is no picture.
        """
        return self._read(images.upright_size)

    def _read(self, read: Callable[[Image.Image], Read]) -> Read:
        try:
            with self.image() as image, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd EXIF
                return read(image)
        except BAD as error:
            raise self.bad(f"cannot be read ({type(error).__name__})") from None

    def bad(self, why: str) -> InputError:
        return InputError(f"'{self.name}' {why}", "remove it or mend it", id="input.data")


def read_at(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def read_folder(folder: Path) -> Iterator[Example]:
    """Yield the examples of a directory or a shard, in the order of the manifest or of the names.

    Raises:
        InputError: no such directory or shard, or a line or member that is wrong.
    """
    if folder.is_file() and ".tar" in folder.suffixes:
        yield from _shard(folder)
        return
    if not folder.is_dir():
        raise InputError(
            f"'{folder}' is not a directory", "give a folder of pictures with captions", id="input.data"
        )
    if (folder / "train").is_dir() and not any((folder / name).is_file() for name in MANIFESTS):
        folder = folder / "train"
    manifests = [folder / name for name in MANIFESTS if (folder / name).is_file()][:1]
    manifests = manifests or sorted(path for name in MANIFESTS for path in folder.rglob(name))
    shards = sorted(path for path in folder.iterdir() if ".tar" in path.suffixes)
    if manifests:
        for manifest in manifests:
            yield from _manifest(manifest)
    elif shards:
        for shard in shards:
            yield from _shard(shard)
    else:
        yield from _beside(folder)


def _beside(folder: Path) -> Iterator[Example]:
    """Yield pictures with a .txt beside them; if none has one, those in directories, by their names."""
    pictures = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    told = [path for path in pictures if path.with_suffix(".txt").is_file()]
    for path in told:
        text = path.with_suffix(".txt")
        yield Example(path, {_text(text.name, text.read_bytes()[: MAX_TEXT + 1], str(text)): 1.0})
    for path in () if told else pictures:
        if path.parent != folder:
            yield Example(path, {path.parent.name.replace("_", " "): 1.0})


def _manifest(manifest: Path) -> Iterator[Example]:
    for number, row in _rows(manifest):
        try:
            yield _example(manifest.parent, json.loads(row) if isinstance(row, str) else row)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(
                f"'{manifest}' line {number} is wrong ({error})", "mend the line", id="input.data"
            ) from None


def _rows(manifest: Path) -> Iterator[tuple[int, Any]]:
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            if manifest.suffix == ".csv":
                reader = csv.DictReader(file)
                yield from ((reader.line_num, row) for row in reader)
            else:
                yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"'{manifest}' cannot be read ({error})", "save it as UTF-8 text", id="input.data"
        ) from None


def _example(folder: Path, row: dict[str, Any]) -> Example:
    path = folder / row["file_name"]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("file_name points out of the folder")
    captions = {str(text): float(weight) for text, weight in (row.get("captions") or {}).items()}
    if not captions:
        text = row["text"] if "text" in row or "caption" not in row else row["caption"]
        captions = {("" if text is None else str(text)): 1.0}
    weight = 1.0 if row.get("weight") in (None, "") else float(row["weight"])
    if not all(0 < value <= MAX_WEIGHT for value in (*captions.values(), weight)):
        raise ValueError(f"weights must be above 0, and at most {MAX_WEIGHT:g}")
    return Example(path, captions, weight)


def _shard(path: Path) -> Iterator[Example]:
    """Yield what a webdataset shard holds; only headers and captions are read."""
    pictures: dict[str, tarfile.TarInfo] = {}
    texts: dict[str, tarfile.TarInfo] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                folder, _, name = member.name.rpartition("/")
                key, dot, end = name.partition(".")
                if member.isreg() and f"{dot}{end.lower()}" in SUFFIXES + TEXTS:
                    found = texts if f".{end.lower()}" in TEXTS else pictures
                    found.setdefault(f"{folder}/{key}", member)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(
            f"'{path}' cannot be read as a tar file ({error})",
            "give shards that are whole and not compressed",
            id="input.data",
        ) from None
    for key, member in pictures.items():
        if key in texts:
            said = texts[key]
            data = read_at(path, said.offset_data, min(said.size, MAX_TEXT + 1))
            caption = _text(said.name, data, f"{path}: {said.name}")
            yield Example(path, {caption: 1.0}, place=(member.offset_data, member.size, member.name))


def _text(name: str, data: bytes, place: str) -> str:
    """Return the caption in a .txt or .json file.

    Raises:
        InputError: too long, not UTF-8, or JSON without a caption.
    """
    try:
        if len(data) > MAX_TEXT:
            raise ValueError(f"longer than {MAX_TEXT} bytes")
        text = data.decode("utf-8-sig")
        if name.endswith(".json"):
            row = json.loads(text)
            text = row["caption"] if "caption" in row else row["text"]
        if not isinstance(text, str):
            raise TypeError("the caption is no text")
        return text.strip()
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{place}' is no caption ({error})", "remove it or mend it", id="input.data") from None
