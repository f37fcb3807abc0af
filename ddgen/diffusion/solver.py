"""What every sampler shares: the Step it yields, the types it works on, and the split of a step into a
smaller one plus noise.

A sampler is a generator `sampler(denoise, x, sigmas, noise, **options)`. It takes one Step per interval of
`sigmas`, asks `noise` in a fixed order for intervals that do not overlap, and holds no progress bar, random
generator or device. Sigmas are Python floats throughout, so that nothing waits for a GPU; torch is imported
for type checking only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Denoise = Callable[[Any, float], Any]
Noise = Callable[[float, float], Any]


@dataclass(frozen=True)
class Step:
    """The state after one step.

    index:    0-based number of the step.
    sigma:    the level that x is at now (0 after the last step of most grids).
    x:        (B, C, h, w) VE state x0 + sigma eps.
    denoised: (B, C, h, w) the latest estimate of x0, for previews.
    """

    index: int
    sigma: float
    x: Tensor
    denoised: Tensor


Sampler = Callable[..., Iterator[Step]]


def intervals(sigmas: Sequence[float] | Tensor) -> Iterator[tuple[int, float, float]]:
    """Yield (index, sigma, sigma_next) of each step; a tensor is read from its device once."""
    levels: list[float] = sigmas.tolist() if hasattr(sigmas, "tolist") else list(sigmas)
    for index, (sigma, sigma_next) in enumerate(zip(levels, levels[1:], strict=False)):
        yield index, sigma, sigma_next


def toward(x: Tensor, denoised: Tensor, ratio: float) -> Tensor:
    """Return x moved along the line to `denoised`, ratio = sigma_next / sigma of the noise left.

    The same as x + (x - denoised) / sigma (sigma_next - sigma), without the cancellation at large sigma, and
    exact at sigma_next = 0.
    """
    return denoised + ratio * (x - denoised)


def split(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Return (sigma_down, sigma_up): step to sigma_down, add sigma_up of noise, and be at sigma_next.

    eta = 1 is the reverse of the training chain (DDPM's posterior variance), eta = 0 has no noise.
    """
    up = min(sigma_next, eta * sigma_next * math.sqrt(max(1 - (sigma_next / sigma) ** 2, 0.0)))
    return math.sqrt(max(sigma_next**2 - up**2, 0.0)), up
