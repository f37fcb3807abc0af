"""Emoji on grounds, moved, turned and recoloured: the pictures that the image tower and the evaluator are shown.

Pictures are RGBA, (B, 4, S, S) float32 in [0, 1] with premultiplied colours, until `on_ground` lays them on one.
Every draw comes from the generator that is handed in, so that a step can be made again from its number.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

WHITE = (255, 255, 255)


def premultiplied(pixels: NDArray[np.uint8]) -> Tensor:
    """Return RGBA pictures (B, S, S, 4) uint8 as (B, 4, S, S) with colours times alpha."""
    x = torch.from_numpy(pixels.astype(np.float32) / 255).movedim(-1, 1)
    return torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)


def place(x: Tensor, scale: Tensor, angle: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    """Return each picture scaled, turned (radians), mirrored (flip = -1) and shifted; outside is transparent.

    shift: (B, 2) in half pictures, to the right and down.
    """
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = torch.stack([torch.stack([cos * flip, sin * flip], -1), torch.stack([-sin, cos], -1)], 1)  # (B, 2, 2)
    moved = -(rows @ shift[..., None])
    grid = F.affine_grid(torch.cat([rows, moved], -1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def moved(
    x: Tensor, rng: np.random.Generator, scale: tuple[float, float], shift: float, turn: float, *, mirror: int | None = None
) -> Tensor:
    """Return each picture placed at random. scale: range; shift: at most, in half pictures; turn: radians; mirror:
    how many from the first on may be mirrored, None = all."""
    count = len(x)
    sizes = rng.uniform(*scale, count)
    angles = rng.uniform(-turn, turn, count)
    shifts = rng.uniform(-shift, shift, (count, 2))
    flips = rng.choice([-1.0, 1.0], count)
    if mirror is not None:
        flips[mirror:] = 1.0
    return place(x, *(torch.from_numpy(v.astype(np.float32)) for v in (sizes, angles, shifts, flips)))


def on_ground(x: Tensor, grounds: NDArray[np.float32]) -> Tensor:
    """Return pictures laid on one colour each, (B, 3) RGB 0 to 255: (B, 3, S, S) in [0, 1]."""
    ground = torch.from_numpy(grounds.astype(np.float32) / 255)[..., None, None]
    return x[:, :3] + ground * (1 - x[:, 3:])


def turned_hue(rgb: Tensor, angle: Tensor) -> Tensor:
    """Return colours turned about the grey axis by an angle (radians) each: a shift of all hues. Premultiplied
    colours stay so."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    a, b, c = cos + (1 - cos) / 3, (1 - cos) / 3 - sin / math.sqrt(3), (1 - cos) / 3 + sin / math.sqrt(3)
    rows = torch.stack([torch.stack([a, b, c], -1), torch.stack([c, a, b], -1), torch.stack([b, c, a], -1)], 1)
    return torch.einsum("bij,bjhw->bihw", rows, rgb)


def worn(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Return pictures (B, 3, S, S) in [0, 1] as a small generator might draw them: blurred, noisy, paler or darker."""
    count = len(x)
    blur = torch.from_numpy((rng.uniform(0, 1, count) * (rng.random(count) < 0.5)).astype(np.float32))[:, None, None, None]
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = x + blur * (soft - x)
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (count, 3, 1, 1)).astype(np.float32))
    level = torch.from_numpy((rng.uniform(0, 0.06, (count, 1, 1, 1))).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    return ((x - 0.5) * gain + 0.5 + level * noise).clamp(0, 1)


def boxes(count: int) -> list[tuple[float, float, float]]:
    """Return where `count` equal things stand apart from one another: (scale, x, y), the last two in half
    pictures, of their middles."""
    if count == 1:
        return [(0.95, 0.0, 0.0)]
    if count == 2:
        return [(0.47, -0.5, 0.0), (0.47, 0.5, 0.0)]
    if count == 3:
        return [(0.45, -0.5, -0.45), (0.45, 0.5, -0.45), (0.45, 0.0, 0.5)]
    return [(0.43, x, y) for y in (-0.5, 0.5) for x in (-0.5, 0.5)][:count]


def together(x: Tensor, spots: list[tuple[float, float, float]]) -> Tensor:
    """Return one RGBA picture (4, S, S) of several (N, 4, S, S), each at its spot (scale, x, y), over one another."""
    scale, right, down = (torch.tensor(v, dtype=torch.float32) for v in zip(*spots, strict=True))
    zero = torch.zeros(len(x))
    parts = place(x, scale, zero, torch.stack([right, down], 1), torch.ones(len(x)))
    found = parts[0]
    for part in parts[1:]:
        found = part + found * (1 - part[3:])
    return found
