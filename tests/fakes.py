"""Closed forms to test diffusion against: data N(0, std^2), whose ideal denoiser and ODE are known exactly.

D(x; sigma) = x std^2 / (std^2 + sigma^2),   x(sigma) = x(s0) sqrt((std^2 + sigma^2) / (std^2 + s0^2))
"""

import math

import torch
from torch import Tensor

from ddgen.conditioning import Conditioning
from ddgen.diffusion.prediction import target
from ddgen.diffusion.schedule import Schedule, make_schedule

SCHEDULES = {
    "sd": {"kind": "scaled_linear"},
    "zero_snr": {"kind": "scaled_linear", "zero_terminal_snr": True},
    "linear": {"kind": "linear"},
    "cosine": {"kind": "cosine", "shift": 2 * math.log(0.5)},
    "flow": {"kind": "flow"},
    "edm": {"kind": "edm"},
}

# What each prediction is trained on in practice.
SCHEDULE_OF = {"eps": "sd", "v": "zero_snr", "x0": "cosine", "flow": "flow", "edm": "edm"}


def schedule(name: str) -> Schedule:
    return make_schedule(SCHEDULES[name])


def gaussian(std: float):
    """Return the ideal denoise(x, sigma) of data N(0, std^2)."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return x * (std**2 / (std**2 + sigma**2))

    return denoise


def gaussian_end(x: Tensor, sigma: float, end: float, std: float) -> Tensor:
    """Return where the probability flow ODE takes x from sigma to end."""
    return x * math.sqrt((std**2 + end**2) / (std**2 + sigma**2))


class GaussianNetwork:
    """The network that a perfect training on N(0, std^2) would give, for any prediction; counts its calls."""

    def __init__(self, prediction: str, schedule: Schedule, std: float, sigma_data: float = 1.0) -> None:
        self.prediction, self.schedule, self.std, self.sigma_data = prediction, schedule, std, sigma_data
        self.calls: list[int] = []

    def __call__(self, x: Tensor, time: Tensor, context: Tensor, vector: Tensor | None = None) -> Tensor:
        self.calls.append(len(x))
        sigma = self.schedule.sigma(time.double()).reshape(-1, 1, 1, 1)
        scale = 1 + sigma if self.prediction == "flow" else (1 + sigma**2).sqrt()
        if self.prediction == "edm":
            scale = (sigma**2 + self.sigma_data**2).sqrt()
        ve = x.double() * scale
        total = self.std**2 + sigma**2
        x0, eps = ve * self.std**2 / total, ve * sigma / total
        return target(self.prediction, x0, eps, sigma, self.sigma_data).to(x.dtype)


def no_text(batch: int) -> Conditioning:
    return Conditioning(torch.zeros(batch, 77, 1))
