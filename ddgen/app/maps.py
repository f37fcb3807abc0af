"""Control pictures from ordinary ones, in numpy: edges (canny), bold edges (scribble), the picture itself
(tile, map).

Ref: Canny 1986, "A computational approach to edge detection"; thresholds as ControlNet's annotators have
them.
"""

from typing import TYPE_CHECKING

import numpy as np

from ddgen.app.canvas import grown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ddgen.io.images import Pixels

KINDS = ("canny", "scribble", "tile", "map")
LOW, HIGH = 100.0, 200.0  # of the gradient's L1 norm, for values of 0 to 255


def control_map(pixels: "Pixels", kind: str) -> "Pixels":
    """Return what a ControlNet of a kind reads: white lines on black, or the picture as it is."""
    if kind in ("tile", "map"):
        return pixels
    edges = canny(pixels)
    if kind == "scribble":
        edges = grown(edges, 2)
    return np.repeat((edges * np.uint8(255))[..., None], 3, axis=2)


def canny(pixels: "Pixels", low: float = LOW, high: float = HIGH) -> "NDArray[np.bool_]":
    """Return the edges (H, W): ridges of the gradient above `low` that hang together with one above
    `high`."""
    grey = pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    padded = np.pad(grey, 1, mode="edge")
    smooth_y = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_x = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across, down = smooth_y[:, 2:] - smooth_y[:, :-2], smooth_x[2:] - smooth_x[:-2]  # Sobel
    strength = np.abs(across) + np.abs(down)
    ridge = strength > 0
    sector = np.round(np.arctan2(down, across) / (np.pi / 4)).astype(int) % 4
    around = np.pad(strength, 1)
    height, width = strength.shape
    for number, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = around[1 + y : 1 + y + height, 1 + x : 1 + x + width]
        behind = around[1 - y : 1 - y + height, 1 - x : 1 - x + width]
        ridge &= (sector != number) | ((strength > behind) & (strength >= ahead))
    weak, found = ridge & (strength > low), ridge & (strength > high)
    while True:  # what touches an edge and is weak is edge, too
        more = weak & grown(found, 1)
        if np.array_equal(more, found):
            return found
        found = more
