"""Noise as data: the normals of an image depend on its seed and the draw's number, on nothing else.

A noise source is anything with `initial()` and `__call__(sigma, sigma_next)`; samplers see only the second.
Samplers ask in a fixed order and for intervals that do not overlap, so independent normals are the increments
of a Brownian path on a fixed grid, and a source that holds a real path can take the place of this one.

SeededNoise draws from numpy's Philox (a counter-based generator: Salmon et al. 2011) keyed by (seed, draw),
per image and on the CPU: an image gets the same noise alone, in a batch, on a GPU or on another machine.
torch's generators promise none of this.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class NoiseSource(Protocol):
    """Where the randomness of a batch of images comes from."""

    def initial(self) -> Tensor:
        """Return the (B, C, h, w) standard normals that the run starts from."""
        ...

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """Return (B, C, h, w) standard normals for the noise added between two levels, sigma > sigma_next."""
        ...


class SeededNoise:
    """Independent standard normals keyed by (seed, draw index); draw 0 is `initial()`.

    seeds: one per image, 0 .. 2^63 - 1. shape: (C, h, w) of one image.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.seeds = tuple(seeds)
        self.shape = tuple(shape)
        self.device = device
        self.dtype = dtype
        self.drawn = 0

    def initial(self) -> Tensor:
        """Return draw 0, and start the count of draws again."""
        self.drawn = 0
        return self.draw(0)

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """Return the next draw; the levels do not matter to independent normals."""
        self.drawn += 1
        return self.draw(self.drawn)

    def draw(self, index: int) -> Tensor:
        """Return draw `index` of every image, (B, C, h, w)."""
        rows = [normals(seed, index, self.shape) for seed in self.seeds]
        return torch.from_numpy(np.stack(rows)).to(device=self.device, dtype=self.dtype)


def normals(seed: int, draw: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return float64 standard normals of one image for one draw."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, draw], dtype=np.uint64)))
    return generator.standard_normal(shape)


def slerp(a: Tensor, b: Tensor, amount: float) -> Tensor:
    """Return what lies `amount` of the way from a to b on the arc between them: normals stay as large as normals are.

    Ref: Shoemake 1985, "Animating rotation with quaternion curves", section 3.3; White 2016, arXiv 1609.04468.
    """
    if amount == 0 or amount == 1:  # exactly the ends
        return b if amount else a
    angle = torch.acos((torch.sum(a * b) / (a.norm() * b.norm())).clamp(-1.0, 1.0))
    if torch.sin(angle) < 1e-4:  # parallel
        return torch.lerp(a, b, amount)
    return (torch.sin((1 - amount) * angle) * a + torch.sin(amount * angle) * b) / torch.sin(angle)
