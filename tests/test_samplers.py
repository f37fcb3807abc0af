"""Samplers against exact solutions: orders of convergence, variances, and what every sampler promises the
caller.

The data is N(0, STD^2). Its ideal denoiser is linear, so the result of a stochastic sampler is a linear form
in the start and the draws; giving each of them a coordinate of its own measures all coefficients in one run,
and the variance of the result exactly.
"""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from ddgen.diffusion.denoiser import Denoiser
from ddgen.diffusion.guidance import guided
from ddgen.diffusion.noise import SeededNoise
from ddgen.diffusion.prediction import PREDICTIONS
from ddgen.diffusion.samplers import ALIASES, SAMPLERS, parse_sampler
from ddgen.diffusion.solver import Step, split
from ddgen.diffusion.solvers_dpm import dpmpp_2s_ancestral
from ddgen.diffusion.solvers_euler import Churn, lagrange_integrals
from ddgen.diffusion.solvers_unipc import solve
from ddgen.diffusion.spacing import SPACINGS, make_spacing
from ddgen.errors import UsageError
from fakes import SCHEDULE_OF, GaussianNetwork, gaussian, gaussian_end, no_text, schedule

STD = 0.7
HIGH, LOW = 6.0, 0.2


def no_noise(sigma: float, sigma_next: float):
    raise AssertionError("a deterministic sampler asked for noise")


def karras(steps: int, high: float = HIGH, low: float = LOW) -> list[float]:
    """An uneven grid (rho 3) that stays above 0."""
    return [(high ** (1 / 3) + i / steps * (low ** (1 / 3) - high ** (1 / 3))) ** 3 for i in range(steps + 1)]


def uneven(steps: int, high: float = HIGH, low: float = LOW) -> list[float]:
    """Steps of 1 and 3 parts in log sigma by turns: a multistep weight blind to the ratio loses its order."""
    parts = [0]
    for i in range(steps):
        parts.append(parts[-1] + (1 if i % 2 else 3))
    return [high * (low / high) ** (part / parts[-1]) for part in parts]


def even(steps: int, high: float = HIGH, low: float = LOW) -> list[float]:
    return [high + i / steps * (low - high) for i in range(steps + 1)]


def last(steps) -> Step:
    return list(steps)[-1]


# Deterministic form, order, grid. PLMS has constant coefficients: four where steps are even in sigma, else
# two.
ORDERS = {
    "ddim": (SAMPLERS["ddim"].fn, 1, uneven),
    "euler": (SAMPLERS["euler"].fn, 1, uneven),
    "euler_ancestral": (partial(SAMPLERS["euler_ancestral"].fn, eta=0.0), 1, uneven),
    "heun": (SAMPLERS["heun"].fn, 2, uneven),
    "dpm2": (SAMPLERS["dpm2"].fn, 2, uneven),
    "plms": (SAMPLERS["plms"].fn, 2, karras),
    "plms, even": (SAMPLERS["plms"].fn, 4, even),
    "lms 1": (partial(SAMPLERS["lms"].fn, order=1), 1, uneven),
    "lms 2": (partial(SAMPLERS["lms"].fn, order=2), 2, uneven),
    "dpmpp_2s": (partial(dpmpp_2s_ancestral, eta=0.0), 2, uneven),
    "dpmpp_2m": (SAMPLERS["dpmpp_2m"].fn, 2, uneven),
    "dpmpp_sde": (partial(SAMPLERS["dpmpp_sde"].fn, eta=0.0), 2, uneven),
    "dpmpp_2m_sde": (partial(SAMPLERS["dpmpp_2m_sde"].fn, eta=0.0), 2, uneven),
    "dpmpp_2m_sde_heun": (partial(SAMPLERS["dpmpp_2m_sde_heun"].fn, eta=0.0), 2, uneven),
    "dpmpp_3m_sde": (partial(SAMPLERS["dpmpp_3m_sde"].fn, eta=0.0), 2, uneven),
}


def mixture(x: Tensor, sigma: float) -> Tensor:
    """The ideal denoiser of N(-1, STD^2) and N(1, STD^2) in equal parts: not linear in x."""
    total = STD**2 + sigma**2
    weight = torch.tanh(x / total)
    return (STD**2 * x + sigma**2 * weight) / total


def error(fn, sigmas: list[float], denoise, truth: Tensor, x: Tensor) -> float:
    return (last(fn(denoise, x, sigmas, no_noise)).x - truth).abs().max().item()


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence_to_the_exact_end(name):
    fn, order, grid = ORDERS[name]
    x = torch.linspace(-8, 8, 9, dtype=torch.float64)
    truth = gaussian_end(x, HIGH, LOW, STD)
    coarse, fine = (error(fn, grid(n), gaussian(STD), truth, x) for n in (320, 640))
    assert fine < coarse < 0.05
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.fixture(scope="module")
def mixture_end() -> tuple[Tensor, Tensor]:
    """A start at HIGH and its end at LOW under the mixture's ODE (Runge-Kutta in log sigma)."""
    start = torch.linspace(-7, 7, 15, dtype=torch.float64)
    x, steps = start, 4000
    h = math.log(LOW / HIGH) / steps

    def slope(x: Tensor, place: float) -> Tensor:
        return x - mixture(x, HIGH * math.exp(place * h))

    for i in range(steps):
        a = slope(x, i)
        b = slope(x + h / 2 * a, i + 0.5)
        c = slope(x + h / 2 * b, i + 0.5)
        x = x + h / 6 * (a + 2 * b + 2 * c + slope(x + h * c, i + 1))
    return start, x


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence_on_a_mixture(name, mixture_end):
    start, truth = mixture_end
    fn, order, grid = ORDERS[name]
    coarse, fine = (error(fn, grid(n), mixture, truth, start) for n in (160, 320))
    assert fine < coarse < 0.05
    assert math.log2(coarse / fine) > order - 0.25


# UniPC is one order above its predictor, but for the first and last steps, which are lower: started where D
# hardly moves, and read before the end.
INSIDE = {
    "lms": (SAMPLERS["lms"].fn, 4),
    "lms 3": (partial(SAMPLERS["lms"].fn, order=3), 3),
    "unipc": (SAMPLERS["unipc"].fn, 4),
    "unipc 2": (partial(SAMPLERS["unipc"].fn, order=2), 3),
    "unipc_bh2": (SAMPLERS["unipc_bh2"].fn, 4),
}


@pytest.mark.parametrize("name", INSIDE)
def test_order_of_convergence_inside_a_long_grid(name):
    fn, order = INSIDE[name]
    high = 60.0
    x = torch.linspace(-80, 80, 9, dtype=torch.float64)
    truth = gaussian_end(x, high, LOW, STD)
    errors = []
    for n in (160, 320):
        sigmas = [high * (LOW / high) ** (i / n) for i in range(n + 5)]
        errors.append((list(fn(gaussian(STD), x, sigmas, no_noise))[n - 1].x - truth).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_three_steps_of_3m_hold_the_curvature_as_published():
    """For D quadratic in lambda the step misses phi_3 h^2 D'' / 2: half of the third-order term."""
    sigmas = [4.0, 2.5, 1.2, 0.5]
    a, b, c = 0.3, -0.7, 0.4

    def denoise(x: Tensor, sigma: float) -> Tensor:
        lam = -math.log(sigma)
        return torch.full_like(x, a + b * lam + c * lam**2)

    steps = list(
        SAMPLERS["dpmpp_3m_sde"].fn(denoise, torch.ones(1, dtype=torch.float64), sigmas, no_noise, eta=0.0)
    )
    h, lam = math.log(1.2 / 0.5), -math.log(1.2)
    # e^-h x + integral of e^-(h - t) D(lam + t) over [0, h], with D = d0 + d1 t + c t^2.
    d0, d1 = a + b * lam + c * lam**2, b + 2 * c * lam
    one = 1 - math.exp(-h)
    exact = math.exp(-h) * steps[1].x.item() + d0 * one + d1 * (h - one) + c * (h**2 - 2 * (h - one))
    phi_3 = (1 - one / h) / h - 0.5
    assert steps[2].x.item() == pytest.approx(exact + phi_3 * h**2 * c, rel=1e-12)


class Coordinates:
    """Noise whose every draw is a coordinate of its own; the start is coordinate 0."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.drawn = 0

    def start(self) -> Tensor:
        return torch.eye(self.dimension, dtype=torch.float64)[0]

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        assert sigma > sigma_next > 0
        self.drawn += 1
        return torch.eye(self.dimension, dtype=torch.float64)[self.drawn]


def variance_error(name: str, steps: int, **options) -> float:
    """Return |variance of the result / (STD^2 + LOW^2) - 1|, exactly."""
    noise = Coordinates(2 * steps + 1)
    x = noise.start() * math.sqrt(STD**2 + HIGH**2)
    end = last(SAMPLERS[name].fn(gaussian(STD), x, uneven(steps), noise, **options)).x
    assert noise.drawn >= steps
    return abs(end.square().sum().item() / (STD**2 + LOW**2) - 1)


# The order of the variance of the result.
VARIANCES = {
    "ddpm": (1, {}),
    "ddim": (1, {"eta": 0.5}),
    "euler_ancestral": (1, {}),
    "dpm2_ancestral": (2, {}),
    "dpmpp_2s_ancestral": (2, {}),
    "dpmpp_sde": (2, {}),
    "dpmpp_2m_sde": (2, {}),
    "dpmpp_2m_sde_heun": (2, {}),
    "dpmpp_3m_sde": (2, {}),
}


@pytest.mark.parametrize("name", VARIANCES)
def test_variance_of_stochastic_samplers(name):
    order, options = VARIANCES[name]
    coarse, fine = (variance_error(name, n, **options) for n in (200, 400))
    assert fine < (0.02 if order == 1 else 0.0005)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_ddpm_of_a_thousand_steps_on_discrete_and_continuous_schedules():
    """The full reverse process, as a picture would take it: the spread of the data comes out."""
    for name in ("sd", "cosine"):
        grid = make_spacing("linspace", schedule(name), 1000)
        noise = SeededNoise([4], (1, 100, 200))
        steps = list(
            SAMPLERS["ddpm"].fn(gaussian(STD), noise.initial() * grid.initial_scale, grid.sigmas, noise)
        )
        assert len(steps) == 1000
        assert steps[-1].x.dtype == torch.float32
        assert steps[-1].x.std().item() == pytest.approx(STD, rel=0.02)


def test_lcm_puts_all_the_noise_back():
    noise = Coordinates(4)
    steps = list(SAMPLERS["lcm"].fn(gaussian(STD), noise.start() * 5, [4.0, 1.0, 0.0], noise))
    gain = [STD**2 / (STD**2 + sigma**2) for sigma in (4.0, 1.0)]
    assert steps[-1].x.tolist() == pytest.approx([5 * gain[0] * gain[1], gain[1], 0, 0])


def test_churn_raises_the_level_before_the_step():
    """EDM Alg. 2 by hand, one Euler step from 2 to 1 with gamma = 0.25."""
    noise = Coordinates(2)
    step = last(
        SAMPLERS["euler"].fn(
            gaussian(STD), noise.start() * 3, [2.0, 1.0], noise, churn=Churn(0.25, spread=1.1)
        )
    )
    gain = STD**2 / (STD**2 + 2.5**2)
    kept = 1 + (1 - gain) / 2.5 * (1.0 - 2.5)
    assert step.x.tolist() == pytest.approx([3 * kept, kept * 1.1 * math.sqrt(2.5**2 - 2.0**2)])
    with pytest.raises(AssertionError, match="asked for noise"):
        last(SAMPLERS["heun"].fn(gaussian(STD), torch.ones(1), [2.0, 1.0], no_noise, churn=Churn(1.0)))
    last(SAMPLERS["dpm2"].fn(gaussian(STD), torch.ones(1), [2.0, 1.0], no_noise, churn=Churn(1.0, low=3.0)))


@pytest.mark.parametrize("name", ["heun", "dpm2", "plms"])
def test_a_slope_from_far_below_is_left_out(name):
    """From sigma 1000 to 1, an estimate that changes by 1 must move x by about as much, not by 50."""
    far, near = ([1000.0, level, 0.5] for level in (1.0, 990.0))
    for sigmas, calls in ((far, 1), (near, 2)):
        levels = []

        def denoise(x: Tensor, sigma: float) -> Tensor:
            levels.append(sigma)
            return torch.full_like(x, 1.0 if sigma < 995 else 0.0)

        start = torch.full((1,), 1000.0, dtype=torch.float64)
        step = next(SAMPLERS[name].fn(denoise, start, sigmas, no_noise))
        assert len(levels) == calls
        assert abs(step.x.item() - step.sigma) < 1.5


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 5.0])
def test_split_keeps_the_level(eta):
    down, up = split(2.0, 1.5, eta)
    assert down**2 + up**2 == pytest.approx(1.5**2)
    if eta == 1.0:
        # DDPM's posterior variance in VE coordinates.
        assert up**2 == pytest.approx(1.5**2 * (2.0**2 - 1.5**2) / 2.0**2)
    assert split(2.0, 0.0, eta) == (0.0, 0.0)


def test_lagrange_integrals():
    """Three nodes integrate every quadratic, four every cubic."""
    for nodes in ([3.0], [3.0, 4.5], [3.0, 4.5, 5.0], [3.0, 4.5, 5.0, 9.0]):
        weights = lagrange_integrals(nodes, 1.0)
        for power in range(len(nodes)):
            expected = (1.0 ** (power + 1) - 3.0 ** (power + 1)) / (power + 1)
            assert sum(w * node**power for w, node in zip(weights, nodes, strict=True)) == pytest.approx(
                expected
            )


def test_solve_pivots():
    assert solve([[0.0, 2.0, 1.0], [1.0, 1.0, 0.0], [3.0, 0.0, 1.0]], [7.0, 3.0, 6.0]) == pytest.approx(
        [1.0, 2.0, 3.0]
    )


def run(name: str, sigmas, seeds: list[int], shape=(2, 4, 4), **options) -> list[Step]:
    noise = SeededNoise(seeds, shape)
    x = noise.initial() * math.hypot(1, float(sigmas[0]))
    return list(SAMPLERS[name].fn(mixture, x, sigmas, noise, **options))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_of_four_is_four_batches_of_one(name):
    sigmas = make_spacing("karras", schedule("sd"), 8).sigmas
    seeds = [3, 0, 99, 2**40]
    together = run(name, sigmas, seeds)[-1].x
    apart = torch.cat([run(name, sigmas, [seed])[-1].x for seed in seeds])
    assert torch.equal(together, apart)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_sampler_yields(name):
    """One step per interval, the levels it is at, float32; a tensor for a grid; arguments stay."""
    grid = make_spacing("karras", schedule("sd"), 6)
    steps = run(name, grid.sigmas, [1, 2])
    assert [step.index for step in steps] == list(range(6))
    assert [step.sigma for step in steps] == list(grid.sigmas[1:])
    assert all(step.x.dtype == step.denoised.dtype == torch.float32 for step in steps)
    assert all(step.x.shape == step.denoised.shape == (2, 2, 4, 4) for step in steps)
    from_tensor = run(name, torch.tensor(grid.sigmas, dtype=torch.float64), [1, 2])
    assert torch.equal(from_tensor[-1].x, steps[-1].x)
    start = torch.ones(1, 1, 2, 2)
    next(SAMPLERS[name].fn(mixture, start, grid.sigmas, SeededNoise([1], (1, 2, 2))))
    assert torch.equal(start, torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("name", SAMPLERS)
def test_part_of_a_grid(name):
    """As img2img runs it: the tail of a grid, from a noised picture; a perfect estimate is reached."""
    sigmas = make_spacing("karras", schedule("sd"), 10).sigmas[6:]
    picture = torch.linspace(-1, 1, 32).reshape(1, 2, 4, 4)
    noise = SeededNoise([1], (2, 4, 4))
    steps = list(
        SAMPLERS[name].fn(
            lambda x, sigma: picture.expand_as(x), picture + sigmas[0] * noise.initial(), sigmas, noise
        )
    )
    assert len(steps) == 4
    assert (steps[-1].x - picture).abs().max() < 2e-6


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_number_of_calls_is_as_stated(name):
    levels = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        assert isinstance(sigma, float)
        levels.append(sigma)
        return mixture(x, sigma)

    sigmas = make_spacing("karras", schedule("sd"), 10).sigmas
    noise = SeededNoise([1], (1, 2, 2))
    last(SAMPLERS[name].fn(denoise, noise.initial() * 14.6, sigmas, noise))
    first_step_of_plms = 1 if name == "plms" else 0
    assert len(levels) == SAMPLERS[name].calls * 9 + 1 + first_step_of_plms
    assert noise.drawn == (0 if not SAMPLERS[name].stochastic else 18 if name == "dpmpp_sde" else 9)
    assert min(levels) > 0


@pytest.mark.parametrize("name", [name for name, info in SAMPLERS.items() if info.eta is not None])
def test_eta_zero_draws_nothing(name):
    sigmas = make_spacing("karras", schedule("sd"), 5).sigmas
    last(SAMPLERS[name].fn(mixture, torch.ones(1, 1, 2, 2), sigmas, no_noise, eta=0.0))
    assert torch.equal(run(name, sigmas, [1], eta=SAMPLERS[name].eta)[-1].x, run(name, sigmas, [1])[-1].x)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_combination_is_finite_or_refused_by_name(prediction, name):
    """Every spacing, at 1, 2 and 20 steps, from the closed-form network in float32; only spacings refuse."""
    s = schedule(SCHEDULE_OF[prediction])
    denoise = guided(
        Denoiser(GaussianNetwork(prediction, s, STD, 0.5), prediction, s, sigma_data=0.5),
        no_text(2),
        None,
        scale=1,
    )
    ran = 0
    for spacing in SPACINGS:
        for steps in (1, 2, 20):
            try:
                grid = make_spacing(spacing, s, steps, discard=SAMPLERS[name].discard)
            except UsageError as refusal:
                assert f"spacing '{spacing.removesuffix('_sdxl')}'" in refusal.message
                continue
            noise = SeededNoise([1, 2], (1, 8, 8))
            end = last(SAMPLERS[name].fn(denoise, noise.initial() * grid.initial_scale, grid.sigmas, noise)).x
            assert torch.isfinite(end).all()
            # One or two steps over all levels are no picture; twenty have about the spread of the data.
            assert steps < 20 or STD / 3 < end.std() < 2.5 * STD
            ran += 1
    assert ran >= 23


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("dpmpp_2m", ("dpmpp_2m", None)),
        ("DPM++ 2M", ("dpmpp_2m", None)),
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", "exponential")),
        ("DPM++ 2M SDE Heun", ("dpmpp_2m_sde_heun", None)),
        ("DPM++ 2M SGM Uniform", ("dpmpp_2m", "sgm_uniform")),
        ("DPM++ 3M SDE", ("dpmpp_3m_sde", None)),
        ("DPM++ 2S a", ("dpmpp_2s_ancestral", None)),
        ("DPM++ SDE Karras", ("dpmpp_sde", "karras")),
        ("Euler a", ("euler_ancestral", None)),
        ("k_euler_a", ("euler_ancestral", None)),
        ("Euler", ("euler", None)),
        ("LMS Karras", ("lms", "karras")),
        ("DPM2 a", ("dpm2_ancestral", None)),
        ("DDIM", ("ddim", None)),
        ("PLMS", ("plms", None)),
        ("UniPC", ("unipc", None)),
        ("uni_pc_bh2", ("unipc_bh2", None)),
        ("dpmpp_2m_sde_gpu", ("dpmpp_2m_sde", None)),
        ("LCM", ("lcm", None)),
    ],
)
def test_names_of_elsewhere(word, expected):
    assert parse_sampler(word) == expected


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UsageError, match="unknown sampler 'eular'; did you mean 'euler'"):
        parse_sampler("eular")
    with pytest.raises(UsageError, match="one of: ddim, ddpm, dpm2"):
        parse_sampler("xyzzy")


def test_names_and_aliases_do_not_collide():
    assert set(ALIASES.values()) <= set(SAMPLERS)
    assert all(ALIASES.get(name, name) == name for name in SAMPLERS)
