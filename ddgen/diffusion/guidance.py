"""Classifier-free guidance: D = D_uncond + scale (D_cond - D_uncond), bound to its conditioning before
sampling starts.

Returns closures `denoise(x, sigma)`, so that samplers never see conditioning. Both branches go through the
network as one batch. All statistics are per image: an image must not depend on its neighbours. The x0 clamp
of the denoiser is applied here, to the guided estimate.

Ref: Ho & Salimans 2022, arXiv 2207.12598; rescale: Lin et al. 2023, arXiv 2305.08891, eq. 15-16; interval:
Kynkaanniemi et al. 2024, arXiv 2404.07724.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddgen.conditioning import Conditioning
from ddgen.diffusion.denoiser import Denoise, Denoiser, clamped


def guided(
    denoiser: Denoiser,
    cond: Conditioning | Sequence[Conditioning],
    uncond: Conditioning | None,
    *,
    scale: float | Tensor,
    weights: Tensor | None = None,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """Return denoise(x, sigma) with the conditioning bound.

    cond:     one conditioning, or several that are composed: D_cond = D_uncond + sum_i w_i (D_i - D_uncond).
    scale:    1 = off, one network call on half the batch (uncond may be None then); a (B,) tensor gives each
              image its own.
    weights:  (B, parts) of a composition.
    rescale:  phi in [0, 1]: how far the standard deviation of the guided network output is pulled back to
              that of the conditional one.
    interval: (low, high) in sigma: guided only where low < sigma <= high, elsewhere the conditional estimate
    alone.

    Ref of the composition: Liu et al. 2022, arXiv 2206.01714, eq. 11.
    """
    conds = [denoiser.fit(c) for c in ([cond] if isinstance(cond, Conditioning) else cond)]
    plain = weights is None
    if plain and len(conds) != 1:
        raise ValueError("several conditionings need weights")
    off = bool((scale == 1).all()) if isinstance(scale, Tensor) else scale == 1

    def conditional(x: Tensor, sigma: float) -> Tensor:
        return denoiser(x, sigma, conds[0])

    if off and plain:
        return conditional if denoiser.x0_clamp is None else clamped(conditional, denoiser.x0_clamp)
    if uncond is None:
        raise ValueError("guidance with scale != 1 needs an unconditional branch")
    branches = join(denoiser.fit(uncond), *conds)
    strength = scale.reshape(-1, 1, 1, 1) if isinstance(scale, Tensor) else scale

    def denoise(x: Tensor, sigma: float) -> Tensor:
        inside = interval is None or interval[0] < sigma <= interval[1]
        if plain and not inside:
            return conditional(x, sigma)
        d_uncond, *d_parts = denoiser(x, sigma, branches).chunk(1 + len(conds))
        d_cond = d_parts[0] if weights is None else _composed(d_uncond, d_parts, weights)
        if not inside:
            return d_cond
        d_guided = d_uncond + strength * (d_cond - d_uncond)
        if rescale == 0:
            return d_guided
        return _rescaled(denoiser, x, sigma, d_cond, d_guided, rescale)

    return denoise if denoiser.x0_clamp is None else clamped(denoise, denoiser.x0_clamp)


def guided_by_image(
    denoiser: Denoiser,
    conds: Sequence[Conditioning],
    uncond: Conditioning,
    beside: Tensor,
    *,
    scale: float | Tensor,
    image_scale: float,
    weights: Tensor | None = None,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """Return denoise(x, sigma) for a network that reads a picture beside its noise, guided by text and picture:

        D = D(0, 0) + s_image (D(0, I) - D(0, 0)) + s_text (D(T, I) - D(0, I))

    beside: (B, K, h, w) the picture's channels; zeros stand for no picture. The rest as in `guided`.
    Ref: Brooks et al. 2022 (InstructPix2Pix), arXiv 2211.09800, eq. 3.
    """
    branches = denoiser.fit(join(uncond, uncond, *conds))
    count = 2 + len(conds)
    reading = with_channels(denoiser, torch.cat([torch.zeros_like(beside), beside.repeat(count - 1, 1, 1, 1)]))
    strength = scale.reshape(-1, 1, 1, 1) if isinstance(scale, Tensor) else scale

    def denoise(x: Tensor, sigma: float) -> Tensor:
        d_free, d_image, *d_parts = reading(x.repeat(count, 1, 1, 1), sigma, branches).chunk(count)
        d_cond = d_parts[0] if weights is None else _composed(d_image, d_parts, weights)
        if interval is not None and not interval[0] < sigma <= interval[1]:
            return d_cond
        d_guided = d_free + image_scale * (d_image - d_free) + strength * (d_cond - d_image)
        return d_guided if rescale == 0 else _rescaled(denoiser, x, sigma, d_cond, d_guided, rescale)

    return denoise if denoiser.x0_clamp is None else clamped(denoise, denoiser.x0_clamp)


def with_channels(denoiser: Denoiser, beside: Tensor) -> Denoiser:
    """Return the denoiser of a network that reads constant channels behind c_in x: mask, picture.

    beside: (B, K, h, w); a batch of several branches gets them again for each.
    """
    network = denoiser.network

    def reading(x: Tensor, *rest: Tensor | None, **named: Tensor) -> Tensor:
        rows = beside.to(x).repeat(len(x) // len(beside), 1, 1, 1)
        return network(torch.cat([x, rows], dim=1), *rest, **named)

    bound = copy.copy(denoiser)
    bound.network = reading
    return bound


def _composed(d_uncond: Tensor, d_parts: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return D_uncond + sum_i w_i (D_i - D_uncond)."""
    total = d_uncond
    for d_part, weight in zip(d_parts, weights.unbind(1), strict=True):
        total = total + weight.reshape(-1, 1, 1, 1) * (d_part - d_uncond)
    return total


def _rescaled(
    denoiser: Denoiser, x: Tensor, sigma: float, d_cond: Tensor, d_guided: Tensor, phi: float
) -> Tensor:
    """Return the guided estimate with the spread of the network's output restored.

    The statistics are those of F, not of D.
    """
    c_skip, c_out, _ = denoiser.coefficients(sigma)
    f_cond, f_guided = (d_cond - c_skip * x) / c_out, (d_guided - c_skip * x) / c_out
    dims = tuple(range(1, x.ndim))
    # A constant output has no spread to restore.
    spread = f_guided.std(dims, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    factor = phi * f_cond.std(dims, keepdim=True) / spread + (1 - phi)
    return c_skip * x + c_out * (factor * f_guided)


def join(*conditionings: Conditioning) -> Conditioning:
    """Return conditionings as one batch, the first on top.

    Contexts of different length are repeated to their least common multiple: softmax attention over a context
    repeated k times equals attention over it once, so no padding token enters the sums.
    """
    length = math.lcm(*(c.context.shape[1] for c in conditionings))
    context = torch.cat(
        [c.context.repeat(1, length // c.context.shape[1], 1) for c in conditionings]
    )  # (sum of B, 77k, D)
    vectors = [c.vector for c in conditionings if c.vector is not None]
    pictured = [c.pictured for c in conditionings if c.pictured is not None]
    vector, shown = (
        torch.cat(rows) if len(rows) == len(conditionings) else None for rows in (vectors, pictured)
    )
    return Conditioning(context, vector, shown)


def interval_from_steps(sigmas: tuple[float, ...], low: float, high: float) -> tuple[float, float]:
    """Return the sigma interval (low, high] of the steps between two fractions of the run, 0 = first step, 1
    = end.

    Step i of n is inside when low <= i / n < high.
    """
    steps = len(sigmas) - 1
    inside = [i for i in range(steps) if low <= i / steps < high]
    if not inside:
        return (math.inf, math.inf)
    return (sigmas[inside[-1] + 1], sigmas[inside[0]])
