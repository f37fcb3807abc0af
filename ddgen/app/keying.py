"""What stands on a flat ground: the ground's colour, the things' mask, their number, places and colour. Pure numpy.

    ground = the median of the frame; outside = what is like it and hangs together with the frame; the rest are things
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddgen.app.concepts import BACKGROUNDS, COLOURS, KEY
from ddgen.app.stickers import dominant_hue

SIDE = 64  # pixels, at which things are looked for
NEAR = 36  # of 255: how far a colour may be from the ground's and still be ground
SMALL = 0.15  # of the largest thing's area: smaller ones are its crumbs
FAINT = 0.004  # of the picture's area: less is nothing at all

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Keyed:
    """A picture read: pixels (SIDE, SIDE, 3); ground: RGB; things: one mask each, the largest first; mask: where they and
    their crumbs are."""

    pixels: Pixels
    ground: tuple[int, int, int]
    things: tuple[Mask, ...]
    mask: Mask

    def cut(self, mask: Mask) -> Pixels:
        """Return what a mask covers as a square RGBA picture (SIDE, SIDE, 4), fitted with a small rim; on white with
        the half-covered pixels of its edge, which are white already."""
        mask = wider(mask) if min(self.ground) > 240 else mask
        return fitted(np.dstack([self.pixels, np.where(mask, 255, 0).astype(np.uint8)]))

    def middle(self, mask: Mask) -> tuple[float, float]:
        """Return the middle of a mask, (right, down) in pixels."""
        rows, columns = np.nonzero(mask)
        return float(columns.mean()), float(rows.mean())


def fitted(raw: Pixels) -> Pixels:
    """Return what is opaque of an RGBA picture at the middle of one of SIDE x SIDE, as large as fits with a small rim."""
    mask = raw[..., 3] > 76
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros((SIDE, SIDE, 4), np.uint8)
    part = raw[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    part[part[..., 3] == 0] = 0
    height, width = part.shape[:2]
    size = [max(1, round(0.95 * SIDE * n / max(height, width))) for n in (width, height)]
    found = Image.new("RGBA", (SIDE, SIDE))
    scaled = Image.fromarray(part).convert("RGBa").resize(size, Image.Resampling.BILINEAR).convert("RGBA")
    found.paste(scaled, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return np.asarray(found)


def spread(start: Mask, within: Mask) -> Mask:
    """Return what of `within` hangs together with `start`, by sides."""
    found = start & within
    while True:
        more = wider(found) & within
        if (more == found).all():
            return found
        found = more


def wider(mask: Mask) -> Mask:
    """Return a mask with the pixels beside it."""
    found = mask.copy()
    found[1:] |= mask[:-1]
    found[:-1] |= mask[1:]
    found[:, 1:] |= mask[:, :-1]
    found[:, :-1] |= mask[:, 1:]
    return found


def components(mask: Mask) -> list[Mask]:
    """Return the parts of a mask that hang together, the largest first; at equal size the upper left first."""
    left, found = mask.copy(), []
    while left.any():
        seed = np.zeros_like(left)
        seed.flat[int(left.argmax())] = True
        part = spread(seed, left)
        found.append(part)
        left &= ~part
    return sorted(found, key=lambda part: -int(part.sum()))


def key(picture: Pixels) -> Keyed:
    """Read a picture (H, W, 3) on a flat ground."""
    small = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX))
    frame = np.concatenate([small[0], small[-1], small[1:-1, 0], small[1:-1, -1]])
    ground = np.median(frame, axis=0)
    like = np.abs(small.astype(np.float32) - ground).max(-1) <= NEAR
    rim = np.zeros((SIDE, SIDE), bool)
    rim[[0, -1]] = rim[:, [0, -1]] = True
    mask = ~spread(rim, like)
    parts = [part for part in components(mask) if part.sum() >= FAINT * SIDE * SIDE]
    things = tuple(part for part in parts if part.sum() >= SMALL * parts[0].sum())
    red, green, blue = (int(round(value)) for value in ground)
    return Keyed(small, (red, green, blue), things, mask)


def background(ground: tuple[int, int, int]) -> str:
    """Return the name of the nearest background, or white."""
    known = {name: colour for name, colour in BACKGROUNDS.items() if name != KEY} | {"white": (255, 255, 255)}
    return min(known, key=lambda name: sum((a - b) ** 2 for a, b in zip(known[name], ground, strict=True)))


def colour(raw: Pixels) -> str:
    """Return the colour word for most of the coloured part of an RGBA picture, by hue."""
    hue = dominant_hue(raw)
    return min(COLOURS, key=lambda name: abs((COLOURS[name][0] - hue + 180) % 360 - 180))
