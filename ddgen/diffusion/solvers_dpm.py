"""DPM-Solver++: exponential integrators for the estimate of x0, in lambda = -ln sigma.

    x(sigma_next) = (sigma_next / sigma) x + integral of D over lambda,   h = ln(sigma / sigma_next)

The ODE forms approximate D by its value or a line; the SDE forms add noise of share eta. Ratios of sigma are
used in place of exponentials, so the last step to sigma = 0 (h = infinity) needs no special case where the
formula has a limit.

Ref: Lu et al. 2022, arXiv 2211.01095; the third-order SDE form after Gonzalez et al. 2023, arXiv 2305.14267.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ddgen.diffusion.solver import Denoise, Noise, Step, intervals, split, toward

if TYPE_CHECKING:
    from torch import Tensor


def dpmpp_2s_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++(2S) to sigma_down, then noise; second order at eta 0, two calls a step but the last.

    Ref: Alg. 1.
    """
    for index, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, sigma)
        down, up = split(sigma, sigma_next, eta)
        if down == 0:
            x = denoised
        else:
            middle = math.sqrt(sigma * down)
            x_middle = toward(x, denoised, middle / sigma)
            x = toward(x, denoise(x_middle, middle), down / sigma)
        if up > 0:
            x = x + up * noise(sigma, sigma_next)
        yield Step(index, sigma_next, x, denoised)


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M): second order from the last two estimates, one call a step; first order on the first
    step and into 0.

    Ref: Alg. 2.
    """
    previous: Tensor | None = None
    h_last = 0.0
    for index, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, sigma)
        h = _h(sigma, sigma_next)
        estimate = denoised
        if previous is not None and sigma_next > 0:
            estimate = denoised + (denoised - previous) * (h / (2 * h_last))
        x = toward(x, estimate, sigma_next / sigma)
        previous, h_last = denoised, h
        yield Step(index, sigma_next, x, denoised)


def dpmpp_sde(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0
) -> Iterator[Step]:
    """SDE-DPM-Solver++ with a stochastic middle step (r = 1/2), two calls and two draws a step but the last.

    The draws are for sigma -> middle and middle -> sigma_next. The noise of the whole step is put together
    from both, as the increment of one Brownian path over both intervals would be: drawing it afresh would
    cost the second order of the mean and the variance.
    """
    for index, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            x = denoised
        else:
            middle = math.sqrt(sigma * sigma_next)
            down, up = split(sigma, middle, eta)
            x_middle = toward(x, denoised, down / sigma)
            first = second = None
            if up > 0:
                first, second = noise(sigma, middle), noise(middle, sigma_next)
                x_middle = x_middle + up * first
            estimate = denoise(x_middle, middle)
            down, up = split(sigma, sigma_next, eta)
            x = toward(x, estimate, down / sigma)
            if first is not None and second is not None:
                share = (sigma - middle) / (sigma - sigma_next)
                x = x + up * (math.sqrt(share) * first + math.sqrt(1 - share) * second)
        yield Step(index, sigma_next, x, denoised)


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 1.0,
    solver: str = "midpoint",
) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M), one call a step; `solver` is "midpoint" or "heun"."""
    previous: Tensor | None = None
    h_last = 0.0
    for index, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, sigma)
        h = _h(sigma, sigma_next)
        if sigma_next == 0:
            x = denoised
        else:
            kept = (sigma_next / sigma) ** (1 + eta)  # exp(-h (1 + eta))
            x = toward(x, denoised, kept)
            if previous is not None:
                slope = (denoised - previous) * (h / h_last)
                x = x + slope * ((1 - kept) / 2 if solver == "midpoint" else 1 - (1 - kept) / (h * (1 + eta)))
            x = _noised(x, sigma, sigma_next, eta, noise)
        previous, h_last = denoised, h
        yield Step(index, sigma_next, x, denoised)


def dpmpp_3m_sde(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0
) -> Iterator[Step]:
    """SDE-DPM-Solver++(3M), one call a step.

    The curvature enters as published and as every program has it (but diffusers, whose term has the other
    sign and does not vanish with h): with half the weight that third order asks for. The order is two, with a
    smaller error than 2M on smooth grids.
    """
    past: list[Tensor] = []
    steps: list[float] = []
    for index, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, sigma)
        h = _h(sigma, sigma_next)
        if sigma_next == 0:
            x = denoised
        else:
            h_eta = h * (1 + eta)
            kept = (sigma_next / sigma) ** (1 + eta)
            x = toward(x, denoised, kept)
            phi_2 = (kept - 1) / h_eta + 1
            if len(past) == 1:
                x = x + phi_2 * (h / steps[0]) * (denoised - past[0])
            elif len(past) == 2:
                r_0, r_1 = steps[0] / h, steps[1] / h
                near, far = (denoised - past[0]) / r_0, (past[0] - past[1]) / r_1
                first = near + (near - far) * (r_0 / (r_0 + r_1))
                second = (near - far) / (r_0 + r_1)
                x = x + phi_2 * first - (phi_2 / h_eta - 0.5) * second
            x = _noised(x, sigma, sigma_next, eta, noise)
        past, steps = [denoised, *past][:2], [h, *steps][:2]
        yield Step(index, sigma_next, x, denoised)


def _h(sigma: float, sigma_next: float) -> float:
    return math.log(sigma / sigma_next) if sigma_next > 0 else math.inf


def _noised(x: Tensor, sigma: float, sigma_next: float, eta: float, noise: Noise) -> Tensor:
    """Return x with the noise of the SDE over one step: variance sigma_next^2 (1 - exp(-2 eta h))."""
    if eta == 0:
        return x
    return x + noise(sigma, sigma_next) * (sigma_next * math.sqrt(1 - (sigma_next / sigma) ** (2 * eta)))
