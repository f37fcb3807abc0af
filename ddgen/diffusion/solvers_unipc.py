"""UniPC: a predictor and a corrector of any order that share one network call (Zhao et al. 2023, arXiv
2302.04867, Alg. 5-8).

In VE coordinates and with lambda = -ln sigma, h = ln(sigma / sigma_next), from the estimate D_0 at sigma and
older ones D_k:

    x_next = (sigma_next / sigma) x - (e^-h - 1) D_0 - B sum_k rho_k (D_k - D_0) / r_k
    r_k = (lambda_k - lambda_0) / h,   B = -h for "bh1", e^-h - 1 for "bh2"

The corrector repeats the last step with the new estimate as one more point (r = 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ddgen.diffusion.solver import Denoise, Noise, Step, intervals, toward

if TYPE_CHECKING:
    from torch import Tensor

# An estimate of x0 and the level it was made at.
Point = tuple[float, "Tensor"]


def unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    order: int = 3,
    variant: str = "bh1",
) -> Iterator[Step]:
    """UniPC of the given order, lower on the first and last steps; one call a step."""
    total = len(sigmas) - 1
    points: list[Point] = []  # newest first
    start, used = x, 1
    for index, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, sigma)
        if points:
            x = _advance(start, points[:used], sigma, variant, new=denoised)
        points = [(sigma, denoised), *points][:order]
        used = min(len(points), total - index)
        start = x
        x = _advance(x, points[:used], sigma_next, variant)
        yield Step(index, sigma_next, x, denoised)


def _advance(
    x: Tensor, points: list[Point], sigma_next: float, variant: str, new: Tensor | None = None
) -> Tensor:
    """Return x stepped from points[0] to sigma_next.

    new: the estimate at sigma_next, which makes this the corrector.
    """
    sigma, denoised = points[0]
    base = toward(x, denoised, sigma_next / sigma)
    # At order 1 there is no sum; into sigma = 0 B would be infinite under bh1.
    if sigma_next == 0 or (len(points) == 1 and new is None):
        return base
    h = math.log(sigma / sigma_next)
    ratios = [math.log(sigma / level) / h for level, _ in points[1:]]
    terms = [(older - denoised) / r for (_, older), r in zip(points[1:], ratios, strict=True)]
    if new is not None:
        ratios, terms = [*ratios, 1.0], [*terms, new - denoised]
    b = -h if variant == "bh1" else math.expm1(-h)
    # The paper fixes the weight of a single term, which the order conditions would leave to h.
    weights = [0.5] if len(ratios) == 1 else solve(*_conditions(ratios, -h, b))
    for weight, term in zip(weights, terms, strict=True):
        base = base - (b * weight) * term
    return base


def _conditions(ratios: list[float], h: float, b: float) -> tuple[list[list[float]], list[float]]:
    """Return the order conditions: rows r_k^(i-1), right sides i! phi_(i+1)(h) h / B."""
    rows, sides = [], []
    phi = math.expm1(h) / h - 1
    factorial = 1
    for i in range(len(ratios)):
        rows.append([r**i for r in ratios])
        factorial *= i + 1
        sides.append(phi * factorial / b)
        phi = phi / h - 1 / (factorial * (i + 2))
    return rows, sides


def solve(rows: list[list[float]], sides: list[float]) -> list[float]:
    """Return the solution of a small square linear system, by elimination with pivoting."""
    table = [[*row, side] for row, side in zip(rows, sides, strict=True)]
    for i in range(len(table)):
        pivot = max(range(i, len(table)), key=lambda k: abs(table[k][i]))
        table[i], table[pivot] = table[pivot], table[i]
        for k in range(len(table)):
            if k != i:
                factor = table[k][i] / table[i][i]
                table[k] = [a - factor * c for a, c in zip(table[k], table[i], strict=True)]
    return [row[-1] / row[i] for i, row in enumerate(table)]
