"""The training side: the forward process x = x0 + sigma eps and a weighted squared error of the denoiser.

    loss = w(sigma) mean (D(x; sigma) - x0)^2

Every weighting is written for the error of x0, so that one loss serves all predictions: the mean squared
error of the network's own output is w = 1 / c_out^2 (for eps 1/sigma^2, for v 1 + 1/sigma^2). Knows no
optimizer and no data; randomness comes in as tensors.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ddgen.conditioning import Conditioning
from ddgen.diffusion.denoiser import Denoiser
from ddgen.diffusion.schedule import Schedule
from ddgen.errors import choose

Weighting = Callable[[Denoiser, Tensor], Tensor]


def _output(denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """Unit weight on the network's output F.

    Ref: Ho et al. 2020, arXiv 2006.11239, eq. 14 (eps); Karras et al. 2022, arXiv 2206.00364, eq. 8 (edm).
    """
    c_out = denoiser.coefficients(sigma)[1]
    return torch.ones_like(sigma) / c_out**2


def _x0(denoiser: Denoiser, sigma: Tensor) -> Tensor:
    return torch.ones_like(sigma)


def _min_snr(denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """min(SNR, 5): no level dominates (Hang et al. 2023, arXiv 2303.09556, eq. 8)."""
    return (sigma**-2).clamp(max=5.0)


def _capped(denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """min(1 / max(s, 0.1)^2, 50), s = sigma / sqrt(1 + sigma^2): 1 at high noise, more for details."""
    variance = sigma**2 / (1 + sigma**2)
    return (1 / variance.clamp(min=0.01)).clamp(max=50.0)


def _soft_min_snr(denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """5 SNR / (SNR + 5): min_snr without its corner (Crowson et al. 2024, arXiv 2401.11605, section 3.4, with 5
    for 4).
    """
    snr = sigma**-2
    return 5.0 * snr / (snr + 5.0)


def _debiased(denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """sqrt(SNR) for x0, which is 1 / sqrt(SNR) for eps (Yu et al. 2023, arXiv 2310.08442, eq. 13)."""
    return 1 / sigma


def _p2(denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """SNR / (1 + SNR) for x0: 1 / (1 + SNR) for eps (Choi et al. 2022, arXiv 2204.00227, eq. 8, k = gamma = 1)."""
    return 1 / (1 + sigma**2)


WEIGHTINGS: dict[str, Weighting] = {
    "output": _output,
    "x0": _x0,
    "min_snr": _min_snr,
    "capped": _capped,
    "soft_min_snr": _soft_min_snr,
    "debiased": _debiased,
    "p2": _p2,
}


def forward_process(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """Return x = x0 + sigma eps. x0, eps: (B, C, h, w). sigma: (B,)."""
    return x0 + sigma.reshape(-1, *[1] * (x0.ndim - 1)) * eps


def stratified(
    batch: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Return (B,) uniforms in [0, 1), one in each of B equal cells, in random order."""
    cells = torch.randperm(batch, generator=generator, device=device)
    return (cells + torch.rand(batch, generator=generator, device=device)) / batch


def sigmas_at(schedule: Schedule, u: Tensor, *, mean: float | None = None, std: float = 1.0) -> Tensor:
    """Return (B,) noise levels for uniforms u.

    Uniform in the schedule's time; with `mean`, ln sigma is normal (mean, std) instead, cut to the trained
    range: EDM uses (-1.2, 1.2), the logit-normal times of flow models are (0, 1).
    """
    if mean is None:
        return schedule.sigma(schedule.time_min + u * (schedule.time_max - schedule.time_min))
    edge = torch.finfo(u.dtype).eps
    return (
        (mean + std * torch.special.ndtri(u.clamp(edge, 1 - edge)))
        .exp()
        .clamp(schedule.sigma_min, schedule.sigma_max)
    )


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Conditioning,
    sigma: Tensor,
    eps: Tensor,
    *,
    weighting: str = "output",
    target: Tensor | None = None,
) -> Tensor:
    """Return the weighted squared error of each image, (B,).

    x0, eps: (B, C, h, w). sigma: (B,). weighting: a name of WEIGHTINGS. target: what the estimate is compared
        with, like x0; None is x0 itself, any other must have the same mean given x (`posterior_mean`).

    Raises:
        UsageError: unknown weighting.
    """
    weigh = WEIGHTINGS[choose("weighting", weighting, WEIGHTINGS)]
    denoised = denoiser(forward_process(x0, eps, sigma), sigma, cond)
    return weigh(denoiser, sigma) * (denoised - (x0 if target is None else target)).square().flatten(1).mean(1)


def posterior_mean(x: Tensor, sigma: Tensor, known: Tensor, chances: Tensor) -> Tensor:
    """Return E[x0 | x], (B, C, h, w), when x0 is one of N known pictures: the ideal denoiser of a data set.

        sum_i w_i x0_i,   w_i ~ p_i exp(-|x - x0_i|^2 / (2 sigma^2))

    As a target it has the mean of the drawn x0 given x, so training ends at the same place, with a gradient
    that is less noisy.

    x: (B, C, h, w). sigma: (B,). known: (N, C, h, w). chances: (N,), p_i, above 0.

    Ref: Xu, Tong & Jaakkola 2023, arXiv 2302.00670, eq. 8.
    """
    flat, points = x.flatten(1).double(), known.flatten(1).double()
    distances = torch.cdist(flat, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    weights = (chances.double().log() - distances / (2 * sigma.double().square()[:, None])).softmax(1)
    return (weights @ points).to(x.dtype).reshape(x.shape)
