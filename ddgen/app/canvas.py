"""Pictures and masks on their way to the network and back: fitting, cutting, growing, feathering, pasting.
Torch-free.

    picture --Frame.cut--> the network's size --(edited)--> Frame.put --> the picture, otherwise bit for bit

A picture is (H, W, 3) uint8, a mask (H, W) bool with True = made anew, a weight (H, W) float32 in [0, 1]
with 0 wherever the mask is not: feathering goes inwards.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ddgen.app import plan
from ddgen.weights.spec import Spec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ddgen.io.images import Pixels

    Mask = NDArray[np.bool_]
    Weight = NDArray[np.float32]

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels, the last two outside."""

TOGETHER = 1.5
REACH = 32  # pixels beyond a border over which colours are brought together
LOBES = 3  # source pixels that Lanczos looks at to each side
FITS = ("crop", "pad", "stretch")
LANCZOS, BOX = Image.Resampling.LANCZOS, Image.Resampling.BOX


def digest(array: "Pixels | Mask") -> str:
    """Return the sha256 of a picture's or a mask's size and values."""
    found = hashlib.sha256("x".join(map(str, array.shape)).encode() + b"\0")
    found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def resize(pixels: "Pixels", width: int, height: int, ring: str = "") -> "Pixels":
    """Return the picture at another size (Lanczos); at its own size, the picture itself.

    ring: the axes, of "x" and "y", along which its ends meet: what lies beyond one is the other.
    """
    high, wide = pixels.shape[:2]
    if (high, wide) == (height, width):
        return pixels
    down, across = (
        math.ceil(LOBES * max(1.0, old / new)) if axis in ring else 0
        for axis, old, new in (("y", high, height), ("x", wide, width))
    )
    image = Image.fromarray(around(pixels, down, across))
    return np.asarray(image.resize((width, height), LANCZOS, box=(across, down, across + wide, down + high)))


def around(pixels: "Pixels", down: int, across: int) -> "Pixels":
    """Return the picture with so many rows and columns of its other end at each of its ends."""
    return np.pad(pixels, ((down, down), (across, across), (0, 0)), mode="wrap") if down or across else pixels


def fit(pixels: "Pixels", width: int, height: int, how: str) -> "Pixels":
    """Return the picture at a size: "crop" loses what overhangs, "pad" adds white, "stretch" distorts."""
    high, wide = pixels.shape[:2]
    if how == "stretch":
        return resize(pixels, width, height)
    choose = max if how == "crop" else min
    factor = choose(width / wide, height / high)
    scaled = resize(pixels, max(1, round(wide * factor)), max(1, round(high * factor)))
    high, wide = scaled.shape[:2]
    found = np.full((height, width, 3), 255, np.uint8)
    # Where one is larger than the other, their centres meet.
    (into_y, from_y), (into_x, from_x) = _centred(height, high), _centred(width, wide)
    found[into_y, into_x] = scaled[from_y, from_x]
    return found


def _centred(room: int, length: int) -> tuple[slice, slice]:
    common = min(room, length)
    into, out = (room - common) // 2, (length - common) // 2
    return slice(into, into + common), slice(out, out + common)


def work_size(spec: Spec, width: int, height: int) -> tuple[int, int]:
    """Return the size at which the network sees a picture: its own where that is near the model's, else its
    shape at the model's area."""
    native = spec.defaults.width * spec.defaults.height
    on_grid = width % spec.divisor == 0 and height % spec.divisor == 0
    if on_grid and min(width, height) >= plan.smallest(spec) and native / 2 <= width * height <= native * 1.5:
        return width, height
    return plan.size_of_ratio(spec, width, height)


@dataclass(frozen=True)
class Frame:
    """A part of a picture, and the size at which the network sees it."""

    box: Box
    width: int
    height: int

    @property
    def place(self) -> tuple[slice, slice]:
        left, top, right, bottom = self.box
        return slice(top, bottom), slice(left, right)

    def cut(self, pixels: "Pixels") -> "Pixels":
        """Return that part at the network's size."""
        return resize(np.ascontiguousarray(pixels[self.place]), self.width, self.height)

    def cut_mask(self, mask: "Mask") -> "Mask":
        """Return that part of a mask; what is partly covered is covered."""
        part = mask[self.place]
        if part.shape == (self.height, self.width):
            return np.ascontiguousarray(part)
        image = Image.fromarray(part.astype(np.uint8) * 255)
        return np.asarray(image.resize((self.width, self.height), BOX)) > 0

    def put(self, pixels: "Pixels", made: "Pixels", weight: "Weight", *, match: bool = False) -> "Pixels":
        """Return the picture with what was made of its part laid over it by a weight of the picture's size.

        match: shift the colours near the border to those of the picture.
        """
        left, top, right, bottom = self.box
        part = resize(made, right - left, bottom - top)
        below, share = pixels[self.place], weight[self.place]
        found = pixels.copy()
        found[self.place] = paste(below, joined(below, part, share > 0) if match else part, share)
        return found


def paste(below: "Pixels", above: "Pixels", weight: "Weight") -> "Pixels":
    """Return `above` laid over `below`; where the weight is 0 the bytes are those of `below`."""
    share = weight[..., None].astype(np.float64)
    mixed = below + share * (above.astype(np.float64) - below)
    return np.where(share > 0, mixed.round().astype(np.uint8), below)


def joined(below: "Pixels", above: "Pixels", mask: "Mask") -> "Pixels":
    """Return `above` with its colours inside the mask shifted so that no border shows: at the border it
    meets the pixels of `below`, from there the shift fades to nothing over REACH pixels.

    An autoencoder, or a window at another size, returns what it was given in slightly other colours, and
    a network may go on with something else than what it was shown. The shift is what the first new pixel
    misses of the known one beside it, carried on outwards and levelled along the border as it goes: a
    gradient that the border does not have, laid over all that the new part has of its own. Ref: Perez et
    al. 2003, "Poisson image editing", whose membrane this is for a mask of any extent.
    """
    known, first = ~mask, np.zeros_like(mask)
    missed = np.zeros(below.shape, np.float64)
    count = np.zeros(mask.shape, np.int64)
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        beside = _moved(known, axis, step) & mask
        missed += _moved(below.astype(np.float64), axis, step) * beside[..., None]
        count += beside
        first |= beside
    missed = missed / np.maximum(count, 1)[..., None] - above
    shift, rings = spread(missed, first, mask & ~first, REACH)
    fade = np.where(first | (rings > 0), 0.5 + 0.5 * np.cos(np.pi * rings / REACH), 0.0)
    moved = above + shift * fade[..., None]
    return np.where(mask[..., None], moved.round().clip(0, 255).astype(np.uint8), above)


def _moved(values: "NDArray[Any]", axis: int, step: int) -> "NDArray[Any]":
    """Return values moved by one place; what comes in over the edge is zero."""
    found = np.zeros_like(values)
    here, there = [slice(None)] * 2, [slice(None)] * 2
    here[axis], there[axis] = (slice(1, None), slice(-1)) if step > 0 else (slice(-1), slice(1, None))
    found[tuple(here)] = values[tuple(there)]
    return found


def spread(
    values: "NDArray[np.float64]", seen: "Mask", into: "Mask", reach: int | None = None
) -> tuple["NDArray[np.float64]", "NDArray[np.int64]"]:
    """Carry the values (H, W, C) of the seen places into others, ring by ring, each place the mean of its
    neighbours of the rings before; return them and the ring of each place, 0 = none.

    What is carried far is level along the border: a picture goes on as its colours, without streaks.
    """
    high, wide = seen.shape[0] + 2, seen.shape[1] + 2
    total = np.pad(values, ((1, 1), (1, 1), (0, 0))).reshape(high * wide, -1)
    known, open_ = np.pad(seen, 1).ravel(), np.pad(into & ~seen, 1).ravel()
    rings = np.zeros(high * wide, np.int64)
    around = np.array([y * wide + x for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x])
    beside = grown(known.reshape(high, wide), 1).ravel()
    front, ring = np.flatnonzero(beside & open_), 0
    while front.size and (reach is None or ring < reach):
        ring += 1
        places = front[:, None] + around
        near = known[places][..., None]
        total[front] = (total[places] * near).sum(1) / near.sum(1)
        known[front], open_[front], rings[front] = True, False, ring
        others = np.unique(places)
        front = others[open_[others]]
    inner = (slice(1, -1), slice(1, -1))
    return total.reshape(high, wide, -1)[inner], rings.reshape(high, wide)[inner]


def grown(mask: "Mask", by: int) -> "Mask":
    """Return the mask larger by so many pixels on every side (a square brush), or smaller for a negative
    number.

    The edge of the picture is no edge of the mask.
    """
    if by < 0:
        return ~grown(~mask, -by)
    for axis in (0, 1):
        count = np.cumsum(mask, axis=axis, dtype=np.int64)
        count = np.concatenate([np.zeros_like(np.take(count, [0], axis)), count], axis)
        length = mask.shape[axis]
        at = np.arange(length)
        mask = np.take(count, np.minimum(at + by + 1, length), axis) > np.take(
            count, np.maximum(at - by, 0), axis
        )
    return mask


def feathered(mask: "Mask", radius: int) -> "Weight":
    """Return a weight that rises from the mask's edge inwards over `radius` pixels, or fewer where nothing
    would reach 1."""
    total, inside, rings = np.zeros(mask.shape, np.float32), mask, 0
    while inside.any() and rings < max(1, radius):
        total += inside
        inside = grown(inside, -1)
        rings += 1
    return total / max(1, rings)


def crop_box(mask: "Mask", padding: int | None = None) -> Box:
    """Return the mask's surroundings: its bounding box with `padding` pixels (half its larger side, at least
    16), never slimmer than 1:2."""
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    spans = [
        (int(found[0]), int(found[-1]) + 1, limit)
        for found, limit in zip((across, down), mask.shape[::-1], strict=True)
    ]
    around = max(16, max(end - start for start, end, _ in spans) // 2) if padding is None else padding
    least = max(end - start for start, end, _ in spans) // 2 + around
    (left, right), (top, bottom) = (
        _widened(start - around, end + around, least, limit) for start, end, limit in spans
    )
    return left, top, right, bottom


def _widened(start: int, end: int, least: int, limit: int) -> tuple[int, int]:
    missing = max(0, least - (end - start))
    start, end = start - missing // 2, end + missing - missing // 2
    return max(0, start), min(limit, end)


def extended(pixels: "Pixels", left: int, top: int, right: int, bottom: int) -> tuple["Pixels", "Mask"]:
    """Return a larger canvas, its edge's colours carried outwards so that an encoder meets no hard border
    and a run may begin from them, and what is new of it."""
    room = ((top, bottom), (left, right))
    new = np.pad(np.zeros(pixels.shape[:2], bool), room, constant_values=True)
    board = np.pad(pixels, (*room, (0, 0)))
    return spread(board.astype(np.float64), ~new, new)[0].round().astype(np.uint8), new


def passes(width: int, height: int, known: Box, across: int, down: int) -> Iterator[Box]:
    """Yield the windows, of at most across x down pixels, in which a canvas grows out of what is known of it.

    A canvas of at most half as much again a side is one window, so that the whole is seen as one. Else a
    pass adds at most half a window to one side; what is longer than a window is done piece by
    piece, each half over the last.
    """
    if width <= TOGETHER * across and height <= TOGETHER * down:
        yield 0, 0, width, height
        return
    left, top, right, bottom = known
    while left > 0 or right < width:
        step = min(max(left, width - right), across // 2)
        to_left = left >= width - right
        left, right = (left - step, right) if to_left else (left, right + step)
        wide = min(across, right - left)
        start = left if to_left else right - wide
        yield from ((start, begin, start + wide, end) for begin, end in _pieces(top, bottom, down))
    while top > 0 or bottom < height:
        step = min(max(top, height - bottom), down // 2)
        upwards = top >= height - bottom
        top, bottom = (top - step, bottom) if upwards else (top, bottom + step)
        high = min(down, bottom - top)
        start = top if upwards else bottom - high
        yield from ((begin, start, end, start + high) for begin, end in _pieces(left, right, across))


def _pieces(start: int, end: int, length: int) -> list[tuple[int, int]]:
    if end - start <= length:
        return [(start, end)]
    count = 1 + math.ceil((end - start - length) / (length // 2))
    firsts = [start + round(i * (end - start - length) / (count - 1)) for i in range(count)]
    return [(first, first + length) for first in firsts]
