"""Classifier-free guidance: D = D_uncond + scale (D_cond - D_uncond), bound to its conditioning before sampling starts.

Returns closures `denoise(x, sigma)`, so that samplers never see conditioning. Both branches go through the network as one batch. All
statistics are per image: an image must not depend on its neighbours. The x0 clamp of the denoiser is applied here, to the guided estimate.

Ref: Ho & Salimans 2022, arXiv 2207.12598; rescale: Lin et al. 2023, arXiv 2305.08891, eq. 15-16; interval: Kynkaanniemi et al. 2024,
arXiv 2404.07724.
"""

import math

import torch
from torch import Tensor

from ddgen.conditioning import Conditioning
from ddgen.diffusion.denoiser import Denoise, Denoiser, clamped


def guided(
    denoiser: Denoiser,
    cond: Conditioning,
    uncond: Conditioning | None,
    *,
    scale: float | Tensor,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """Return denoise(x, sigma) with the conditioning bound.

    scale:    1 = off, one network call on half the batch (uncond may be None then); a (B,) tensor gives each image its own.
    rescale:  phi in [0, 1]: how far the standard deviation of the guided network output is pulled back to that of the conditional one.
    interval: (low, high) in sigma: guided only where low < sigma <= high, elsewhere the conditional estimate alone.
    """
    off = bool((scale == 1).all()) if isinstance(scale, Tensor) else scale == 1

    def conditional(x: Tensor, sigma: float) -> Tensor:
        return denoiser(x, sigma, cond)

    if off:
        return conditional if denoiser.x0_clamp is None else clamped(conditional, denoiser.x0_clamp)
    if uncond is None:
        raise ValueError("guidance with scale != 1 needs an unconditional branch")
    both = join(uncond, cond)
    weight = scale.reshape(-1, 1, 1, 1) if isinstance(scale, Tensor) else scale

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if interval is not None and not interval[0] < sigma <= interval[1]:
            return conditional(x, sigma)
        d_uncond, d_cond = denoiser(torch.cat([x, x]), sigma, both).chunk(2)
        d_guided = d_uncond + weight * (d_cond - d_uncond)
        if rescale == 0:
            return d_guided
        return _rescaled(denoiser, x, sigma, d_cond, d_guided, rescale)

    return denoise if denoiser.x0_clamp is None else clamped(denoise, denoiser.x0_clamp)


def _rescaled(denoiser: Denoiser, x: Tensor, sigma: float, d_cond: Tensor, d_guided: Tensor, phi: float) -> Tensor:
    """Return the guided estimate with the spread of the network's output restored; the statistics are those of F, not of D."""
    c_skip, c_out, _ = denoiser.coefficients(sigma)
    f_cond, f_guided = (d_cond - c_skip * x) / c_out, (d_guided - c_skip * x) / c_out
    dims = tuple(range(1, x.ndim))
    # A constant output has no spread to restore.
    spread = f_guided.std(dims, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    factor = phi * f_cond.std(dims, keepdim=True) / spread + (1 - phi)
    return c_skip * x + c_out * (factor * f_guided)


def join(first: Conditioning, second: Conditioning) -> Conditioning:
    """Return both conditionings as one batch, `first` above `second`.

    Contexts of different length are repeated to their least common multiple: softmax attention over a context repeated k times equals
    attention over it once, so no padding token enters the sums.
    """
    length = math.lcm(first.context.shape[1], second.context.shape[1])
    context = torch.cat([c.context.repeat(1, length // c.context.shape[1], 1) for c in (first, second)])  # (2B, 77k, D)
    if first.vector is None or second.vector is None:
        return Conditioning(context)
    return Conditioning(context, torch.cat([first.vector, second.vector]))


def interval_from_steps(sigmas: tuple[float, ...], low: float, high: float) -> tuple[float, float]:
    """Return the sigma interval (low, high] of the steps between two fractions of the run, 0 = first step, 1 = end.

    Step i of n is inside when low <= i / n < high.
    """
    steps = len(sigmas) - 1
    inside = [i for i in range(steps) if low <= i / steps < high]
    if not inside:
        return (math.inf, math.inf)
    return (sigmas[inside[-1] + 1], sigmas[inside[0]])
