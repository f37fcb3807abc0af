"""Solvers of dx/dsigma = (x - D) / sigma that work on the slope: Euler, Heun, DPM2, linear multistep, and the
ancestral family.

In VE coordinates DDIM with eta, DDPM and Euler ancestral are one update, D + (sigma_down / sigma)(x - D) +
sigma_up noise; they differ in the usual eta and grid. PLMS is Adams-Bashforth with constant coefficients on
the same slope.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddgen.diffusion.solver import Denoise, Noise, Step, intervals, split, toward

if TYPE_CHECKING:
    from torch import Tensor


def ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0
) -> Iterator[Step]:
    """DDIM (eta 0), DDPM and Euler ancestral (eta 1): first order, with the share eta of the posterior's
    noise put back.

    Ref: Ho et al. 2020, arXiv 2006.11239, eq. 6-7; Song et al. 2020, arXiv 2010.02502, eq. 12 and 16.
    """
    for index, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, sigma)
        down, up = split(sigma, sigma_next, eta)
        x = toward(x, denoised, down / sigma)
        if up > 0:
            x = x + up * noise(sigma, sigma_next)
        yield Step(index, sigma_next, x, denoised)


def lcm(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Step]:
    """Multistep consistency sampling: take the estimate, put all the noise back.

    The boundary scaling of consistency models is left out: above time 20 it differs from the identity by less
    than 1e-5.
    Ref: Song et al. 2023, arXiv 2303.01469, Alg. 1; Luo et al. 2023, arXiv 2310.04378, Alg. 3.
    """
    for index, sigma, sigma_next in intervals(sigmas):
        x = denoised = denoise(x, sigma)
        if sigma_next > 0:
            x = denoised + sigma_next * noise(sigma, sigma_next)
        yield Step(index, sigma_next, x, denoised)


# A second slope, taken at sigma', multiplies the change of D by about sigma / sigma' in the result. Beyond
# this ratio (the first step from a level of a thousand, all levels in two steps) it harms and is left out.
TRUST = 20.0


@dataclass(frozen=True)
class Churn:
    """Noise put in before a step: `amount` over the run, for low <= sigma <= high, scaled by `spread`.

    Ref: Karras et al. 2022, arXiv 2206.00364, Alg. 2 (S_churn, S_tmin, S_tmax, S_noise).
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    spread: float = 1.0


NO_CHURN = Churn()


def _churned(x: Tensor, sigma: float, steps: int, noise: Noise, churn: Churn) -> tuple[Tensor, float]:
    """Return x at a raised level, and that level."""
    if churn.amount == 0 or not churn.low <= sigma <= churn.high:
        return x, sigma
    raised = sigma * (1 + min(churn.amount / steps, math.sqrt(2) - 1))
    return x + noise(raised, sigma) * (churn.spread * math.sqrt(raised**2 - sigma**2)), raised


def euler(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, churn: Churn = NO_CHURN
) -> Iterator[Step]:
    """Euler's method, first order. Ref: Karras et al. 2022, Alg. 2 without the correction."""
    for index, sigma, sigma_next in intervals(sigmas):
        x, sigma = _churned(x, sigma, len(sigmas) - 1, noise, churn)
        denoised = denoise(x, sigma)
        x = toward(x, denoised, sigma_next / sigma)
        yield Step(index, sigma_next, x, denoised)


def heun(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, churn: Churn = NO_CHURN
) -> Iterator[Step]:
    """Heun's method, second order, two calls a step; Euler's where the next level is 0 or beyond TRUST.

    Ref: Karras et al. 2022, Alg. 1 and 2.
    """
    for index, sigma, sigma_next in intervals(sigmas):
        x, sigma = _churned(x, sigma, len(sigmas) - 1, noise, churn)
        denoised = denoise(x, sigma)
        x_next = toward(x, denoised, sigma_next / sigma)
        if sigma_next * TRUST > sigma:
            slope, slope_next = (x - denoised) / sigma, (x_next - denoise(x_next, sigma_next)) / sigma_next
            x_next = x + (slope + slope_next) * ((sigma_next - sigma) / 2)
        x = x_next
        yield Step(index, sigma_next, x, denoised)


def dpm2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 0.0,
    churn: Churn = NO_CHURN,
) -> Iterator[Step]:
    """DPM-Solver-2 in sigma: the slope at the geometric middle, second order, two calls a step; eta > 0 is
    the ancestral form.

    Ref: Karras et al. 2022, Alg. 2 with the middle of Lu et al. 2022, arXiv 2206.00927, Alg. 1.
    """
    for index, sigma, sigma_next in intervals(sigmas):
        x, sigma = _churned(x, sigma, len(sigmas) - 1, noise, churn)
        denoised = denoise(x, sigma)
        down, up = split(sigma, sigma_next, eta)
        middle = math.sqrt(sigma * down)
        if middle * TRUST <= sigma:
            x = toward(x, denoised, down / sigma)
        else:
            x_middle = toward(x, denoised, middle / sigma)
            slope = (x_middle - denoise(x_middle, middle)) / middle
            x = x + slope * (down - sigma)
        if up > 0:
            x = x + up * noise(sigma, sigma_next)
        yield Step(index, sigma_next, x, denoised)


def lms(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, order: int = 4
) -> Iterator[Step]:
    """Adams-Bashforth on the actual, uneven grid: the slopes' interpolating polynomial is integrated exactly.

    Ref: Hairer, Norsett & Wanner 1993, Solving ODEs I, III.5.
    """
    levels: list[float] = []
    slopes: list[Tensor] = []
    for index, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, sigma)
        levels, slopes = [sigma, *levels][:order], [(x - denoised) / sigma, *slopes][:order]
        for weight, slope in zip(lagrange_integrals(levels, sigma_next), slopes, strict=True):
            x = x + weight * slope
        yield Step(index, sigma_next, x, denoised)


def lagrange_integrals(nodes: list[float], end: float) -> list[float]:
    """Return the integrals from nodes[0] to `end` of the Lagrange basis polynomials of at most four nodes.

    Two Gauss points integrate a cubic exactly.
    """
    half, centre = (end - nodes[0]) / 2, (end + nodes[0]) / 2
    points = [centre - half / math.sqrt(3), centre + half / math.sqrt(3)]
    weights = []
    for j, node in enumerate(nodes):
        others = nodes[:j] + nodes[j + 1 :]
        weights.append(
            half * sum(math.prod((p - other) / (node - other) for other in others) for p in points)
        )
    return weights


ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def plms(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Step]:
    """Pseudo linear multistep: four slopes with constant coefficients; the first step is Heun's, so n steps
    make n + 1 calls.

    Ref: Liu et al. 2022, arXiv 2202.09778, section 3.3 (the transfer part is exact in VE coordinates).
    """
    slopes: list[Tensor] = []
    for index, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, sigma)
        slopes = [(x - denoised) / sigma, *slopes][:4]
        if index == 0 and sigma_next * TRUST > sigma:
            x_next = toward(x, denoised, sigma_next / sigma)
            slope = (slopes[0] + (x_next - denoise(x_next, sigma_next)) / sigma_next) / 2
        else:
            slope = sum(
                weight * past for weight, past in zip(ADAMS_BASHFORTH[len(slopes) - 1], slopes, strict=True)
            )
        x = x + slope * (sigma_next - sigma)
        yield Step(index, sigma_next, x, denoised)
