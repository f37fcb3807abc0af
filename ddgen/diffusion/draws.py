"""The generators of other programs: torch's CPU generator per image or per batch, and CUDA's Philox computed
on the CPU.

Which program draws from which, and what x starts at, is in rng.py. torch's CPU generator may differ between
instruction sets.
Ref: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class GeneratorNoise:
    """torch's CPU generator, one per image, seeded with the image's seed; every draw goes on where the last
    one ended.
    """

    def __init__(
        self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.seeds, self.shape, self.device, self.dtype = tuple(seeds), tuple(shape), device, dtype
        self._generators = self._seeded()

    def initial(self) -> Tensor:
        """Return the first draw, (B, C, h, w), after seeding anew."""
        self._generators = self._seeded()
        return self._draw()

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        return self._draw()

    def _seeded(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def _draw(self) -> Tensor:
        rows = [
            torch.randn((1, *self.shape), generator=generator, dtype=self.dtype)
            for generator in self._generators
        ]
        return torch.cat(rows).to(self.device)


class BatchNoise:
    """torch's CPU generator for the batch as a whole, seeded with its first seed; later draws from a second
    one, seeded one higher.
    """

    def __init__(
        self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.seeds, self.shape, self.device, self.dtype = tuple(seeds), tuple(shape), device, dtype
        self._later = self._seeded(1)

    def initial(self) -> Tensor:
        """Return the first draw, (B, C, h, w)."""
        self._later = self._seeded(1)
        return self._draw(self._seeded(0))

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        return self._draw(self._later)

    def _seeded(self, ahead: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seeds[0] + ahead)

    def _draw(self, generator: torch.Generator) -> Tensor:
        return torch.randn((len(self.seeds), *self.shape), generator=generator, dtype=self.dtype).to(
            self.device
        )


class PhiloxNoise:
    """What CUDA's generator gives, one per image: draw k of element i is Philox4x32-10 of counter (k, 0, i,
    0) under the seed.
    """

    def __init__(
        self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.seeds, self.shape, self.device, self.dtype = tuple(seeds), tuple(shape), device, dtype
        self._drawn = 0

    def initial(self) -> Tensor:
        """Return draw 0, (B, C, h, w)."""
        self._drawn = 0
        return self._draw()

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        return self._draw()

    def _draw(self) -> Tensor:
        rows = [cuda_normals(seed, self._drawn, self.shape) for seed in self.seeds]
        self._drawn += 1
        return torch.from_numpy(np.stack(rows)).to(device=self.device, dtype=self.dtype)


_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_ROUNDS = 10
_STEP = np.float32(2.3283064e-10)  # 2^-32
_ANGLE = np.float32(2.3283064e-10 * 6.2831855)  # 2 pi 2^-32


def philox(counter: tuple[np.ndarray, ...], seed: int) -> tuple[np.ndarray, ...]:
    """Return Philox4x32-10 of four uint32 counters under a 64-bit key."""
    a, b, c, d = counter
    keys = [np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32 & 0xFFFFFFFF)]
    for _ in range(_ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]  # uint64
        high = [(product >> np.uint64(32)).astype(np.uint32) for product in (first, second)]
        low = [product.astype(np.uint32) for product in (first, second)]
        a, b, c, d = high[1] ^ b ^ keys[0], low[1], high[0] ^ d ^ keys[1], low[0]
        keys = [np.uint32((int(key) + int(step)) & 0xFFFFFFFF) for key, step in zip(keys, _WEYL, strict=True)]
    return a, b, c, d


def cuda_normals(seed: int, draw: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 standard normals of one draw, by Box and Muller's method from the first two outputs."""
    count = math.prod(shape)
    zero = np.zeros(count, dtype=np.uint32)
    x, y, _, _ = philox((zero + np.uint32(draw), zero, np.arange(count, dtype=np.uint32), zero), seed)
    uniform = x.astype(np.float64) * _STEP + _STEP / np.float32(2)
    angle = y.astype(np.float64) * _ANGLE + _ANGLE / np.float32(2)
    normals = np.sqrt(-2.0 * np.log(uniform)) * np.sin(angle)
    return normals.astype(np.float32).reshape(shape)
