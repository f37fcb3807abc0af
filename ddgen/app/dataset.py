"""A data set as training sees it: pictures of one size or a few, their texts; what a step sees is a pure function.

Pictures are kept as uint8 while they fit the memory given, and decoded whenever they are asked for beyond it.
With `bucket` every picture goes to that size of about the same area whose aspect is nearest to its own, and a step
takes all its pictures from one size. Where they come from: examples.py.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddgen.app.examples import MANIFESTS, Example, read_folder
from ddgen.errors import InputError

EMPTY = ""
BUDGET = 4 * 2**30  # bytes
MAX_ASPECT = 2.5
Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Draw:
    """What one step sees. pictures, captions: indices (B,), caption 0 is the empty one. u: (B,) in [0, 1).
    eps: standard normals.
    """

    pictures: NDArray[np.int64]
    captions: NDArray[np.int64]
    u: NDArray[np.float64]
    eps: NDArray[np.float32]

    def part(self, rows: slice) -> "Draw":
        return Draw(self.pictures[rows], self.captions[rows], self.u[rows], self.eps[rows])


@dataclass(frozen=True)
class Frame:
    """How a picture came to its size. original: its own size. crop: what was cut off at its left and top after it was
    resized, in pixels."""

    original: Size
    crop: tuple[int, int]


class Dataset:
    """Pictures with captions, from a directory or shards.

    bucket: sides of the other sizes are multiples of this many pixels; None: one size. budget: bytes that
    pictures may take; beyond it they are decoded each time. word: put before captions that do not have it.

    Raises:
        InputError: an unreadable manifest or picture, or none at all.
    """

    def __init__(
        self,
        folder: Path,
        width: int,
        height: int,
        *,
        bucket: int | None = None,
        budget: int = BUDGET,
        word: str | None = None,
    ) -> None:
        self.examples = list(read_folder(folder))
        if not self.examples:
            raise InputError(
                f"'{folder}' holds no pictures with captions",
                f"add {MANIFESTS[0]}, or a .txt beside each picture",
                id="input.data",
            )
        if word is not None:
            self.examples = [_with_word(example, word) for example in self.examples]
        self.bucket = bucket
        self.sizes: list[Size] = [(width, height)]
        self.size_of = np.zeros(len(self.examples), dtype=np.int64)
        if bucket is not None:
            self._sort(bucket)
        wanted = sum(3 * w * h for w, h in (self.sizes[i] for i in self.size_of))
        self._kept: list[Tensor] | None = None
        self._originals: list[Size] = []
        if wanted <= budget:
            self._kept = [self._decoded(i) for i in range(len(self.examples))]
        else:
            # What is missing or no picture is said before hours of work.
            self._originals = [example.size() for example in self.examples]
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
        """Return pictures of one size as float32 (B, 3, H, W) in [-1, 1]."""
        found = [self._decoded(i) if self._kept is None else self._kept[i] for i in indices.tolist()]
        return torch.stack(found).float() / 127.5 - 1

    @property
    def pixels(self) -> Tensor:
        """All pictures as uint8 (N, 3, H, W), where they have one size."""
        kept = map(self._decoded, range(len(self))) if self._kept is None else self._kept
        return torch.stack(list(kept))

    def digest(self, *, pixels: bool | None = None) -> str:
        """Return the sha256 of the pictures and the texts: of the pixels, or of the files. None: of the files where the
        pixels are not kept.
        """
        found, kept = hashlib.sha256(), self._kept
        if pixels is None:
            pixels = kept is not None
        for i, example in enumerate(self.examples):
            if pixels:
                found.update((self._decoded(i) if kept is None else kept[i]).numpy().data)
            else:
                found.update(example.read())
        found.update(json.dumps(list(self.texts)).encode())
        return found.hexdigest()

    @property
    def keeps(self) -> bool:
        """Whether the pixels are held in memory."""
        return self._kept is not None

    def draw(
        self,
        seed: int,
        step: int,
        batch: int,
        shapes: Sequence[Sequence[int]],
        *,
        dropout: float,
        high_noise: float,
    ) -> Draw:
        """Return what step `step` of the run `seed` sees, whatever came before: resuming needs no state of a
        generator.

        shapes: of one latent, for each of the sizes. dropout: share of empty captions. high_noise: share of u
            drawn from the upper fifth, where layout is decided.
        """
        rng = np.random.Generator(np.random.Philox(key=[seed, step]))
        size, weights = 0, self._weights
        if len(self.sizes) > 1:
            shares = np.bincount(self.size_of, self._weights, len(self.sizes))
            size = int(rng.choice(len(self.sizes), p=shares))
            weights = np.where(self.size_of == size, self._weights, 0.0) / shares[size]
        pictures = rng.choice(len(self), batch, p=weights, replace=batch > np.count_nonzero(weights))
        captions = np.array(
            [
                0 if rng.random() < dropout else rng.choice(self._choices[i], p=self._chances[i])
                for i in pictures
            ]
        )
        u = (rng.permutation(batch) + rng.random(batch)) / batch
        u = np.where(rng.random(batch) < high_noise, 0.8 + 0.2 * u, u)
        return Draw(pictures, captions, u, rng.standard_normal((batch, *shapes[size]), dtype=np.float32))

    def fixed(self, count: int, shapes: Sequence[Sequence[int]]) -> list[Draw]:
        """Return the fixed evaluation set, a draw for each size: `count` pictures with their first captions, u on
        an even grid, never dropped.
        """
        rng = np.random.Generator(np.random.Philox(key=[0, 0]))
        likely = np.flatnonzero(self._weights == self._weights.max())
        pictures = rng.choice(likely, count, replace=count > len(likely))
        captions = np.array([self._choices[i][0] for i in pictures])
        u = rng.permutation((np.arange(count) + 0.5) / count)
        rows = [np.flatnonzero(self.size_of[pictures] == size) for size in range(len(self.sizes))]
        return [
            Draw(
                pictures[row],
                captions[row],
                u[row],
                rng.standard_normal((len(row), *shape), dtype=np.float32),
            )
            for row, shape in zip(rows, shapes, strict=True)
            if len(row)
        ]

    def _sort(self, step: int) -> None:
        """Give every picture the size whose aspect is nearest to its own; keep the sizes that are used."""
        every = bucket_sizes(*self.sizes[0], step)
        aspects = np.log([w / h for w, h in every])
        sizes = [example.size() for example in self.examples]
        own = [np.log(width / height) for width, height in sizes]
        nearest = np.abs(np.array(own)[:, None] - aspects).argmin(1)
        used, self.size_of = np.unique(nearest, return_inverse=True)
        self.sizes = [every[i] for i in used]

    def _decoded(self, index: int) -> Tensor:
        pixels, original = _picture(self.examples[index], *self.sizes[self.size_of[index]])
        if index == len(self._originals):
            self._originals.append(original)
        return pixels

    def frame(self, index: int) -> Frame:
        """Return how a picture came to its size."""
        (width, height), (wide, high) = self.sizes[self.size_of[index]], self._originals[index]
        scale = max(width / wide, height / high)
        return Frame((wide, high), (round((wide * scale - width) / 2), round((high * scale - height) / 2)))


def bucket_sizes(width: int, height: int, step: int) -> list[Size]:
    """Return sizes with sides that are multiples of `step` and no more area than width x height, widest last."""
    found = {(width, height)}
    for w in range(step, int(width * height / step) + 1, step):
        h = int(width * height / w) // step * step
        if h and max(w / h, h / w) <= MAX_ASPECT:
            found.add((w, h))
    return sorted(found, key=lambda size: size[0] / size[1])


def _with_word(example: Example, word: str) -> Example:
    """Return the example with a word in front of the captions that do not have it as a whole word."""
    whole = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
    captions: dict[str, float] = {}
    for text, weight in example.captions.items():
        told = text if whole.search(text) else f"{word}, {text}" if text else word
        captions[told] = captions.get(told, 0.0) + weight
    return replace(example, captions=captions)


def _picture(example: Example, width: int, height: int) -> tuple[Tensor, Size]:
    """Return a picture as uint8 (3, height, width): upright, on white, its middle in the wanted aspect, resized
    (Lanczos); and its own size.
    """
    rgba = example.decoded()
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if flat.size != (width, height):
        scale = max(width / flat.width, height / flat.height)
        w, h = width / scale, height / scale
        left, top = (flat.width - w) / 2, (flat.height - h) / 2
        flat = flat.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + w, top + h))
    return torch.from_numpy(np.asarray(flat).copy()).permute(2, 0, 1).contiguous(), rgba.size
