"""Where inference steps: a decreasing grid of sigmas made from a schedule, usually ending in 0.

    name          levels above the end (n steps; N trained times t = 0 .. N-1; i = 0 .. n-1)
    karras        (a + i/(n-1) (b - a))^rho, a = sigma_max^(1/rho), b = sigma_min^(1/rho)        [1, eq. 5]
    exponential   uniform in log sigma
    linspace      t uniform from N-1 to 0 (also called uniform, normal)                          [2, table 2]
    sgm_uniform   the same with n+1 times, the last left out
    leading       t = offset + (n-1-i) (N // n)                                                  [2, table 2]
    trailing      t = round(N - i N/n) - 1                                                       [2, table 2]
    beta          t at the quantiles 1 - i/n of Beta(0.6, 0.6)                                   [3]
    ays, ays_sdxl Align Your Steps: ten tabulated steps, log-linear for other n                  [4]
    lcm           n of the 50 times that consistency distillation trained                        [5]

On a continuous schedule time runs over [time_min, time_max] and "leading" / "trailing" leave out the highest
/ the lowest of n+1 uniform times. Torch-free: the schedule does the tensor work.

Ref: [1] Karras et al. 2022, arXiv 2206.00364; [2] Lin et al. 2023, arXiv 2305.08891; [3] Lee et al. 2024,
arXiv 2407.12173; [4] Sabour et al. 2024, arXiv 2404.14507; [5] Luo et al. 2023, arXiv 2310.04378.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ddgen.errors import UsageError, choose

if TYPE_CHECKING:
    from ddgen.diffusion.schedule import Schedule


# Times that consistency distillation trained (Luo et al. 2023).
LCM_TIMES = 50


@dataclass(frozen=True)
class Grid:
    """Where a run steps and how it starts.

    sigmas:        (steps + 1) strictly decreasing levels; only the last may be 0.
    initial_scale: x = initial_scale * (standard normals) is the state at sigmas[0].
    """

    sigmas: tuple[float, ...]
    initial_scale: float

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


def make_grid(sigmas: Sequence[float]) -> Grid:
    """Return a grid of levels given one by one.

    The starting scale is sqrt(1 + sigma^2): the network then sees unit variance, whatever the first level.

    Raises:
        UsageError: fewer than two levels, or levels that are not finite, positive (but the last) and strictly
        decreasing.
    """
    levels = tuple(float(sigma) for sigma in sigmas)
    if len(levels) < 2:
        raise UsageError(
            f"a grid of sigmas needs at least two levels, not {len(levels)}", "end it with 0: 14.6,7.0,2.5,0"
        )
    finite = all(math.isfinite(sigma) for sigma in levels)
    if not finite or levels[-1] < 0 or any(a <= b for a, b in zip(levels, levels[1:], strict=False)):
        raise UsageError(
            "sigmas must be finite, strictly decreasing and not below 0", "for example 14.6,7.0,2.5,0"
        )
    return Grid(levels, math.hypot(1.0, levels[0]))


def make_spacing(
    name: str, schedule: Schedule, steps: int, *, end: str = "zero", discard: bool = False, **options: float
) -> Grid:
    """Return the grid of a named spacing; `steps` network calls for a first-order sampler.

    end:     the last level: "zero", or "sigma_min" as DDIM and PNDM of Stable Diffusion have it (the level at
             time 0, where not already reached).
    discard: make one step more and leave out the level before the end, which is a long step in log sigma that
             some samplers extrapolate badly over (SamplerInfo.discard); where the spacing has no step to
             spare, nothing is left out.
    options: karras: rho, sigma_min, sigma_max. exponential: sigma_min, sigma_max. leading: offset (1 for
    Stable Diffusion). `beta` may return fewer steps than asked for (quantiles that round to the same trained
    time are one).

    Raises:
        UsageError: unknown name, steps < 1, or steps or a schedule that the spacing cannot serve.
    """
    name = spacing_name(name)
    if steps < 1:
        raise UsageError(f"steps must be at least 1, not {steps}", "--steps 20")
    most = LCM_TIMES if name == "lcm" else schedule.steps
    spare = discard and steps > 1 and (most is None or steps < most)
    levels = SPACINGS[name](schedule, steps + spare, **options)
    levels = levels[:-1] if spare else levels
    if any(a <= b for a, b in zip(levels, levels[1:], strict=False)):
        raise UsageError(
            f"spacing '{name}' cannot give {steps} different steps on this model", "--spacing linspace"
        )
    if end == "sigma_min":
        last = (
            [] if len(levels) > 1 and levels[-1] <= schedule.sigma_min * (1 + 1e-9) else [schedule.sigma_min]
        )
        return make_grid([*levels, *last])
    return make_grid([*levels, 0.0])


def _karras(
    schedule: Schedule,
    steps: int,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> list[float]:
    low = schedule.sigma_min if sigma_min is None else sigma_min
    high = schedule.sigma_max if sigma_max is None else sigma_max
    return [
        (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho for ramp in _ramp(steps)
    ]


def _exponential(
    schedule: Schedule, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> list[float]:
    low = math.log(schedule.sigma_min if sigma_min is None else sigma_min)
    high = math.log(schedule.sigma_max if sigma_max is None else sigma_max)
    return [math.exp(high + ramp * (low - high)) for ramp in _ramp(steps)]


def _linspace(schedule: Schedule, steps: int) -> list[float]:
    return _at(schedule, _ramp(steps))


def _sgm_uniform(schedule: Schedule, steps: int) -> list[float]:
    return _at(schedule, [i / steps for i in range(steps)])


def _leading(schedule: Schedule, steps: int, *, offset: float = 1) -> list[float]:
    if steps == 1:
        raise UsageError(
            "spacing 'leading' with 1 step would start at the lowest noise level", "--spacing trailing"
        )
    if schedule.steps is None:
        return _at(schedule, [(i + 1) / steps for i in range(steps)])
    stride = _stride("leading", schedule.steps, steps)
    # 1000 steps leave no room for an offset.
    first = min(offset, schedule.steps - 1 - (steps - 1) * stride)
    return [schedule.sigma(first + i * stride) for i in reversed(range(steps))]


def _trailing(schedule: Schedule, steps: int) -> list[float]:
    if schedule.steps is None:
        return _sgm_uniform(schedule, steps)
    _stride("trailing", schedule.steps, steps)
    return [schedule.sigma(round(schedule.steps * (steps - i) / steps) - 1.0) for i in range(steps)]


def _beta(schedule: Schedule, steps: int, *, alpha: float = 0.6, beta: float = 0.6) -> list[float]:
    quantiles = [beta_quantile(1 - i / steps, alpha, beta) for i in range(steps)]
    if schedule.steps is None:
        return _at(schedule, [1 - q for q in quantiles])
    times = dict.fromkeys(float(round(q * (schedule.steps - 1))) for q in quantiles)
    return [schedule.sigma(time) for time in times]


def _lcm(schedule: Schedule, steps: int, *, trained: int = LCM_TIMES) -> list[float]:
    if steps > trained:
        raise UsageError(f"spacing 'lcm' has at most {trained} steps, not {steps}", f"--steps {trained}")
    kept = [math.floor(i * trained / steps) for i in range(steps)]
    if schedule.steps is None:
        return _at(schedule, [k / trained for k in kept])
    stride = schedule.steps // trained
    return [schedule.sigma((trained - k) * stride - 1.0) for k in kept]


def _ays(schedule: Schedule, steps: int, *, table: str) -> list[float]:
    levels = AYS_TABLES[table]
    if abs(schedule.sigma_max / levels[0] - 1) > 0.01 or abs(schedule.sigma_min / levels[-1] - 1) > 0.01:
        raise UsageError(
            f"spacing 'ays' is a table for noise levels {levels[0]:.4g} to {levels[-1]:.2g}; "
            f"this model was trained on {schedule.sigma_max:.4g} to {schedule.sigma_min:.2g}",
            "--spacing karras",
        )
    # n + 1 points over the table, of which the last gives way to the end of the grid.
    places = [i * (len(levels) - 1) / steps for i in range(steps)]
    return [_between(levels, place) for place in places]


def _between(levels: Sequence[float], place: float) -> float:
    low = min(int(place), len(levels) - 2)
    below, above = math.log(levels[low]), math.log(levels[low + 1])
    return math.exp(below + (place - low) * (above - below))


def _at(schedule: Schedule, ramp: Sequence[float]) -> list[float]:
    """Return the levels at fractions of the time range, 0 = time_max."""
    return [schedule.sigma(schedule.time_max + r * (schedule.time_min - schedule.time_max)) for r in ramp]


def _ramp(steps: int) -> list[float]:
    """Return 0 .. 1 in `steps` values; a single one is 0, the highest noise."""
    return [i / max(steps - 1, 1) for i in range(steps)]


def _stride(name: str, trained: int, steps: int) -> int:
    if steps > trained:
        raise UsageError(
            f"spacing '{name}' has at most the {trained} trained steps, not {steps}", f"--steps {trained}"
        )
    return trained // steps


def beta_quantile(p: float, alpha: float, beta: float) -> float:
    """Return x with I_x(alpha, beta) = p, by bisection to float precision."""
    if p <= 0 or p >= 1:
        return float(p >= 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if beta_cdf(middle, alpha, beta) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def beta_cdf(x: float, alpha: float, beta: float) -> float:
    """Return the regularised incomplete beta function I_x(alpha, beta) for 0 < x < 1.

    Ref: NIST DLMF 8.17.22 (continued fraction), evaluated upwards by Lentz's method.
    """
    if x > (alpha + 1) / (alpha + beta + 2):
        return 1 - beta_cdf(1 - x, beta, alpha)
    log_beta = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    front = math.exp(alpha * math.log(x) + beta * math.log1p(-x) - log_beta) / alpha
    c, d = 1.0, 1 / (1 - (alpha + beta) * x / (alpha + 1))
    fraction = d
    for m in range(1, 200):
        even = m * (beta - m) * x / ((alpha + 2 * m - 1) * (alpha + 2 * m))
        odd = -(alpha + m) * (alpha + beta + m) * x / ((alpha + 2 * m) * (alpha + 2 * m + 1))
        before = fraction
        for term in (even, odd):
            d, c = 1 / (1 + term * d), 1 + term / c
            fraction *= c * d
        if fraction == before:
            break
    return front * fraction


# Published to ten digits for the scaled_linear schedule of Stable Diffusion 1.5 and XL.
AYS_TABLES: dict[str, tuple[float, ...]] = {
    "sd15": (
        14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092,
        0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582,
    ),
    "sdxl": (
        14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141,
        0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582,
    ),
}  # fmt: skip

SPACINGS: dict[str, Callable[..., list[float]]] = {
    "karras": _karras,
    "exponential": _exponential,
    "linspace": _linspace,
    "sgm_uniform": _sgm_uniform,
    "leading": _leading,
    "trailing": _trailing,
    "beta": _beta,
    "ays": partial(_ays, table="sd15"),
    "ays_sdxl": partial(_ays, table="sdxl"),
    "lcm": _lcm,
}

# Names of the same grids elsewhere (A1111's "Schedule type", ComfyUI's "scheduler"), in lower case.
ALIASES = {
    "uniform": "linspace",
    "normal": "linspace",
    "sgm uniform": "sgm_uniform",
    "align your steps": "ays",
    "align_your_steps": "ays",
}


def spacing_name(word: str) -> str:
    """Return our name of a spacing given by any known name.

    Raises:
        UsageError: unknown spacing.
    """
    key = word.strip().lower()
    return key if key in SPACINGS else choose("spacing", ALIASES.get(key, word), SPACINGS)
