"""Pictures with captions from a folder (`imagefolder`); which of them a step sees is a pure function.

    DIR/metadata.jsonl     {"file_name": "noto/fox.png", "text": "a fox"}                a line each; or
    DIR/fox.png, fox.txt   the caption beside the picture

A line may also have `captions` ({text: weight}; one is drawn each time) and `weight` (how often the picture
is drawn; default 1).
"""

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ddgen.errors import InputError

MANIFEST = "metadata.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
EMPTY = ""


@dataclass(frozen=True)
class Example:
    """One picture: its file, its captions with their weights, how often it is drawn."""

    path: Path
    captions: dict[str, float]
    weight: float = 1.0


@dataclass(frozen=True)
class Draw:
    """What one step sees. pictures, captions: indices (B,), caption 0 is the empty one. u: (B,) in [0, 1).
    eps: standard normals."""

    pictures: NDArray[np.int64]
    captions: NDArray[np.int64]
    u: NDArray[np.float64]
    eps: NDArray[np.float32]


class Dataset:
    """All pictures in memory as uint8 (N, 3, H, W), and all texts once.

    Raises:
        InputError: an unreadable manifest or picture, or none at all.
    """

    def __init__(self, folder: Path, width: int, height: int) -> None:
        self.examples = list(read_folder(folder))
        if not self.examples:
            raise InputError(
                f"'{folder}' holds no pictures with captions",
                f"add {MANIFEST}, or a .txt beside each picture",
                id="input.data",
            )
        self.pixels = torch.stack([_picture(example.path, width, height) for example in self.examples])
        self.texts = [
            EMPTY,
            *sorted({text for example in self.examples for text in example.captions} - {EMPTY}),
        ]
        place = {text: i for i, text in enumerate(self.texts)}
        weights = np.array([example.weight for example in self.examples])
        self._weights = weights / weights.sum()
        self._choices = [np.array([place[text] for text in example.captions]) for example in self.examples]
        self._chances = [np.array(list(example.captions.values())) for example in self.examples]
        self._chances = [chance / chance.sum() for chance in self._chances]

        self._fitting = self._invert()

    def _invert(self) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return for each text its pictures and how likely each is to be drawn with it."""
        pictures: list[list[int]] = [[] for _ in self.texts]
        chances: list[list[float]] = [[] for _ in self.texts]
        for i, (choices, shares) in enumerate(zip(self._choices, self._chances, strict=True)):
            for text, share in zip(choices, shares, strict=True):
                pictures[text].append(i)
                chances[text].append(self._weights[i] * share)
        fitting = [(np.array(p, np.int64), np.array(c)) for p, c in zip(pictures, chances, strict=True)]
        fitting[0] = (np.arange(len(self), dtype=np.int64), self._weights)
        return fitting

    def pictures_of(self, text: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the pictures that may be drawn with a text, and in what proportion; all, for the empty one."""
        return self._fitting[text]

    def __len__(self) -> int:
        return len(self.examples)

    def images(self, indices: NDArray[np.int64]) -> Tensor:
        """Return pictures as float32 (B, 3, H, W) in [-1, 1]."""
        return self.pixels[torch.from_numpy(indices)].float() / 127.5 - 1

    def draw(
        self, seed: int, step: int, batch: int, shape: Sequence[int], *, dropout: float, high_noise: float
    ) -> Draw:
        """Return what step `step` of the run `seed` sees, whatever came before: resuming needs no state of a
        generator.

        shape: of one latent. dropout: share of empty captions. high_noise: share of u drawn from the upper
            fifth, where layout is decided.
        """
        rng = np.random.Generator(np.random.Philox(key=[seed, step]))
        pictures = rng.choice(
            len(self), batch, p=self._weights, replace=batch > np.count_nonzero(self._weights)
        )
        captions = np.array(
            [
                0 if rng.random() < dropout else rng.choice(self._choices[i], p=self._chances[i])
                for i in pictures
            ]
        )
        u = (rng.permutation(batch) + rng.random(batch)) / batch
        u = np.where(rng.random(batch) < high_noise, 0.8 + 0.2 * u, u)
        return Draw(pictures, captions, u, rng.standard_normal((batch, *shape), dtype=np.float32))

    def fixed(self, count: int, shape: Sequence[int]) -> Draw:
        """Return the fixed evaluation set: `count` pictures with their first captions, u on an even grid,
        never dropped."""
        rng = np.random.Generator(np.random.Philox(key=[0, 0]))
        likely = np.flatnonzero(self._weights == self._weights.max())
        pictures = rng.choice(likely, count, replace=count > len(likely))
        captions = np.array([self._choices[i][0] for i in pictures])
        u = rng.permutation((np.arange(count) + 0.5) / count)
        return Draw(pictures, captions, u, rng.standard_normal((count, *shape), dtype=np.float32))


def read_folder(folder: Path) -> Iterator[Example]:
    """Yield the examples of a folder, in the order of its manifest or of the names.

    Raises:
        InputError: no such folder, or a line that is wrong.
    """
    manifest = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(
            f"'{folder}' is not a directory", "give a folder of pictures with captions", id="input.data"
        )
    if not manifest.is_file():
        for path in sorted(folder.rglob("*")):
            text = path.with_suffix(".txt")
            if path.suffix.lower() in SUFFIXES and text.is_file():
                yield Example(path, {text.read_text(encoding="utf-8").strip(): 1.0})
        return
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield _example(folder, json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"'{manifest}' line {number} is wrong ({error})", "mend the line", id="input.data"
            ) from None


def _example(folder: Path, row: dict[str, Any]) -> Example:
    path = folder / row["file_name"]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("file_name points out of the folder")
    captions = {str(text): float(weight) for text, weight in row.get("captions", {}).items()} or {
        str(row["text"]): 1.0
    }
    weight = float(row.get("weight", 1.0))
    if not all(math.isfinite(value) and value > 0 for value in (*captions.values(), weight)):
        raise ValueError("weights must be above 0")
    return Example(path, captions, weight)


def _picture(path: Path, width: int, height: int) -> Tensor:
    """Return a picture as uint8 (3, height, width): on white, its middle in the wanted aspect, resized
    (Lanczos)."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            rgba = image.convert("RGBA")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(
            f"'{path}' cannot be read ({type(error).__name__})", "remove it or mend it", id="input.data"
        ) from None
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if flat.size != (width, height):
        scale = max(width / flat.width, height / flat.height)
        w, h = width / scale, height / scale
        left, top = (flat.width - w) / 2, (flat.height - h) / 2
        flat = flat.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + w, top + h))
    return torch.from_numpy(np.asarray(flat).copy()).permute(2, 0, 1).contiguous()
