"""Cut a picture out of a ground of one known colour: (H, W, 3) -> (H, W, 4), exact where the ground is plain.

    C = a F + (1 - a) K   ->   a = (1 - share(C)) / (1 - share(F)),   F = (C - (1 - a) K) / a

A pixel is ground where it is near the key colour K; only pixels within a few of the ground, or of the picture's
edge, can be mixed with it, all others are the thing itself, whatever its colours. `share` is how much of the
key's tint a colour has, 1 for the key: for magenta min(R, B) - G. share(F) is taken from the thing beside the
mixed pixel, so purple things keep their edges; no mixed pixel keeps more of the key's tint than that, so no rim
is left.

Ref: Smith & Blinn 1996, "Blue screen matting", section 4.
"""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ddgen.io.images import Pixels

GROUND = 0.6  # share of the key: more is ground
RIM = 5  # pixels beside the ground that may be mixed with it, at 128 x 128


def key_out(pixels: "Pixels", key: tuple[int, int, int]) -> "Pixels":
    """Return a picture (H, W, 3) with an alpha channel: 0 where its ground of colour `key` was.

    key: RGB; its strong channels and its weak ones must differ, as in pure magenta, green or blue.
    """
    colour = np.asarray(key, np.float32)
    share = np.clip(_spill(pixels.astype(np.float32), colour) / _spill(colour, colour), 0, 1)
    ground = share > GROUND
    rim = max(1, round(RIM * max(pixels.shape[:2]) / 128))
    around = np.pad(ground, rim, constant_values=ground.any())  # it goes on beyond the edge
    mixed = _most(around.astype(np.float32), rim)[rim:-rim, rim:-rim] > 0
    beside = _most(np.where(mixed, 0, share), 2 * rim)
    alpha = np.where(mixed, ((1 - share) / (1 - beside)).clip(0, 1), 1.0)
    alpha[ground] = 0
    cover = alpha[..., None]
    free = (pixels - (1 - cover) * colour) / np.maximum(cover, 1 / 255)
    left = (_spill(free, colour) - beside * _spill(colour, colour)).clip(0) * mixed
    free -= left[..., None] * (colour > colour.mean())
    found = np.concatenate([free.clip(0, 255), 255 * alpha[..., None]], axis=-1)
    found[alpha == 0] = 0  # what cannot be seen says nothing, and packs best
    return (found + 0.5).astype(np.uint8)


def _spill(colours: "NDArray[np.float32]", key: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Return how much of the key's tint colours (..., 3) have."""
    strong = key > key.mean()
    return colours[..., strong].min(-1) - colours[..., ~strong].max(-1)


def _most(values: "NDArray[np.float32]", pixels: int) -> "NDArray[np.float32]":
    """Return the largest of the values (H, W) in [0, 1] within so many pixels of each."""
    image = Image.fromarray((255 * values + 0.5).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * pixels + 1))).astype(np.float32) / 255
