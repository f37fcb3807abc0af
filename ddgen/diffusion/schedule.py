"""What a network was trained on: the map between sigma and the network's time argument.

    x_t = sqrt(ab) x0 + sqrt(1 - ab) eps,   sigma = sqrt((1 - ab) / ab)
    x = x_t sqrt(1 + sigma^2) = x0 + sigma eps

A schedule is not a spacing: it says nothing about where inference steps. Tables of alpha_bar (1000 values for
Stable Diffusion) are interpolated linearly in log sigma, so that fractional times exist; the continuous kinds
are closed formulae:

    kind            sigma(time)                                      time
    scaled_linear   table, beta_t = linspace(sqrt b0, sqrt b1)^2     0 .. steps - 1
    linear          table, beta_t = linspace(b0, b1)                 0 .. steps - 1
    cosine          tan(pi u / 2) exp(-shift / 2)                    1000 u, u in [u_min, u_max]
    flow            t / (1 - t)                                      1000 t
    edm             exp(4 time)                                      0.25 ln sigma

Zero terminal SNR (Lin et al. 2023, arXiv 2305.08891, Alg. 1) and flow at t = 1 mean sigma = infinity, which
is cut to SIGMA_CAP here and nowhere else. Everything is computed in float64 for Python floats, in the
tensor's own dtype for tensors.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ddgen.errors import ModelError, choose

# alpha_bar = 2^-24, the smallest that leaves a trace of x0 in float32.
SIGMA_CAP = math.sqrt(2.0**24 - 1)

Value = TypeVar("Value", float, Tensor)


@dataclass(frozen=True)
class Schedule:
    """The training map of one network, both ways; arguments outside the trained range are clamped to it.

    sigma_min, sigma_max: the trained range of sigma (ratio).
    time_min, time_max:   the same range as the network's time.
    steps:                number of trained times, or None for a continuous schedule.
    infinite:             sigma_max is a cut: the network's last time means pure noise.
    """

    kind: str
    sigma_min: float
    sigma_max: float
    time_min: float
    time_max: float
    steps: int | None
    infinite: bool
    to_sigma: Callable[[Tensor], Tensor] = field(repr=False, compare=False)
    to_time: Callable[[Tensor], Tensor] = field(repr=False, compare=False)

    def sigma(self, time: Value) -> Value:
        """Return the noise level (ratio) at a network time; floats give floats, tensors tensors."""
        if isinstance(time, Tensor):
            return self.to_sigma(time.clamp(self.time_min, self.time_max))
        return self.to_sigma(_double(min(max(time, self.time_min), self.time_max))).item()

    def time(self, sigma: Value) -> Value:
        """Return the network time of a noise level; floats give floats, tensors tensors."""
        if isinstance(sigma, Tensor):
            return self.to_time(sigma.clamp(self.sigma_min, self.sigma_max))
        return self.to_time(_double(min(max(sigma, self.sigma_min), self.sigma_max))).item()


def _double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def make_schedule(spec: Mapping[str, object]) -> Schedule:
    """Return the schedule that a Spec describes: `kind` and that kind's own keys.

    Keys: scaled_linear, linear: beta_start, beta_end, steps, zero_terminal_snr. cosine (also called
    cosine_logsnr): shift, u_min, u_max.
    flow: none. edm: sigma_min, sigma_max. `formula` and `network_time` are remarks for the reader and must be
    text.

    Raises:
        ModelError: unknown kind or key, or a value out of range.
    """
    options = dict(spec)
    kind = str(options.pop("kind", ""))
    kind = choose("schedule", ALIASES.get(kind, kind), KINDS, error=ModelError)
    for remark in ("formula", "network_time"):
        if not isinstance(options.pop(remark, ""), str):
            raise ModelError(f"schedule '{kind}': '{remark}' must be text")
    build, keys = KINDS[kind]
    for key, value in options.items():
        choose(f"{kind} schedule key", key, keys, error=ModelError)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ModelError(f"schedule '{kind}': '{key}' is {value!r}, not a finite number")
    return build(kind, **options)


def _linear(
    kind: str,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    steps: int = 1000,
    zero_terminal_snr: bool = False,
) -> Schedule:
    _require(
        0 < beta_start < beta_end < 1, kind, f"0 < beta_start < beta_end < 1, not {beta_start} and {beta_end}"
    )
    _require(steps >= 2 and int(steps) == steps, kind, f"a whole number of steps >= 2, not {steps}")
    betas = torch.linspace(beta_start, beta_end, int(steps), dtype=torch.float64)
    return table_schedule(kind, torch.cumprod(1 - betas, 0), zero_terminal_snr=bool(zero_terminal_snr))


def _scaled_linear(
    kind: str,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    steps: int = 1000,
    zero_terminal_snr: bool = False,
) -> Schedule:
    _require(
        0 < beta_start < beta_end < 1, kind, f"0 < beta_start < beta_end < 1, not {beta_start} and {beta_end}"
    )
    _require(steps >= 2 and int(steps) == steps, kind, f"a whole number of steps >= 2, not {steps}")
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, int(steps), dtype=torch.float64) ** 2
    return table_schedule(kind, torch.cumprod(1 - betas, 0), zero_terminal_snr=bool(zero_terminal_snr))


def table_schedule(kind: str, alpha_bar: Tensor, *, zero_terminal_snr: bool = False) -> Schedule:
    """Return the schedule of a decreasing float64 table of alpha_bar; time is its index.

    zero_terminal_snr: shift and scale sqrt(alpha_bar) so that the last is 0 and the first stays (Lin et al.,
                       Alg. 1).
    """
    if zero_terminal_snr:
        root = alpha_bar.sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        alpha_bar = root**2
        alpha_bar[-1] = 1 / (1 + SIGMA_CAP**2)
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()
    table = sigmas.log()
    last = len(table) - 1

    def to_sigma(time: Tensor) -> Tensor:
        logs = table.to(time)
        low = time.floor().clamp(0, last - 1)
        below, above = logs[low.long()], logs[low.long() + 1]
        return (below + (time - low) * (above - below)).exp()

    def to_time(sigma: Tensor) -> Tensor:
        logs, wanted = table.to(sigma), sigma.log()
        low = torch.searchsorted(logs, wanted).sub(1).clamp(0, last - 1)
        below, above = logs[low], logs[low + 1]
        return low + ((wanted - below) / (above - below)).clamp(0, 1)

    low, high = sigmas[0].item(), sigmas[-1].item()
    return Schedule(kind, low, high, 0.0, float(last), last + 1, zero_terminal_snr, to_sigma, to_time)


def _cosine(kind: str, shift: float = 0.0, u_min: float = 0.001, u_max: float = 0.999) -> Schedule:
    """logSNR(u) = -2 ln tan(pi u / 2) + shift; shift = 2 ln(64 / d) for d x d pictures.

    Ref: Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17; Hoogeboom et al. 2023, arXiv 2301.11093, eq. 4.
    """
    _require(0 < u_min < u_max < 1, kind, f"0 < u_min < u_max < 1, not {u_min} and {u_max}")
    scale = math.exp(-shift / 2)

    def to_sigma(time: Tensor) -> Tensor:
        return (time * (math.pi / 2000)).tan() * scale

    def to_time(sigma: Tensor) -> Tensor:
        return (sigma / scale).atan() * (2000 / math.pi)

    low, high = 1000 * u_min, 1000 * u_max
    return Schedule(
        kind,
        to_sigma(_double(low)).item(),
        to_sigma(_double(high)).item(),
        low,
        high,
        None,
        False,
        to_sigma,
        to_time,
    )


def _flow(kind: str) -> Schedule:
    """x_t = (1 - t) x0 + t eps: sigma = t / (1 - t), time = 1000 t, t from 1/1000.

    Ref: Lipman et al. 2022, arXiv 2210.02747.
    """

    def to_sigma(time: Tensor) -> Tensor:
        return time / (1000 - time)

    def to_time(sigma: Tensor) -> Tensor:
        return 1000 * sigma / (1 + sigma)

    highest = to_time(_double(SIGMA_CAP)).item()
    return Schedule(kind, 1 / 999, SIGMA_CAP, 1.0, highest, None, True, to_sigma, to_time)


def _edm(kind: str, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
    """time = 0.25 ln sigma (Karras et al. 2022, arXiv 2206.00364, table 1)."""
    _require(0 < sigma_min < sigma_max, kind, f"0 < sigma_min < sigma_max, not {sigma_min} and {sigma_max}")

    def to_sigma(time: Tensor) -> Tensor:
        return (4 * time).exp()

    def to_time(sigma: Tensor) -> Tensor:
        return 0.25 * sigma.log()

    low, high = 0.25 * math.log(sigma_min), 0.25 * math.log(sigma_max)
    return Schedule(kind, sigma_min, sigma_max, low, high, None, False, to_sigma, to_time)


def _require(holds: bool, kind: str, wanted: str) -> None:
    if not holds:
        raise ModelError(f"schedule '{kind}' needs {wanted}")


KINDS: dict[str, tuple[Callable[..., Schedule], tuple[str, ...]]] = {
    "scaled_linear": (_scaled_linear, ("beta_start", "beta_end", "steps", "zero_terminal_snr")),
    "linear": (_linear, ("beta_start", "beta_end", "steps", "zero_terminal_snr")),
    "cosine": (_cosine, ("shift", "u_min", "u_max")),
    "flow": (_flow, ()),
    "edm": (_edm, ("sigma_min", "sigma_max")),
}
ALIASES = {"cosine_logsnr": "cosine"}
