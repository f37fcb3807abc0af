"""Twenty steps of every sampler that diffusers also has, on the same noise, in float64: the whole road of
schedule, spacing, start and steps.

REFEREES is the statement of which diffusers configuration each of our samplers equals. diffusers keeps its
tables, timesteps and some states in float32; for these tests each scheduler's module sees a `torch` and a
`numpy` whose float32 is float64. The spacings are those that fall on trained times in both (diffusers
interpolates sigma where we interpolate log sigma, and DPMSolver and UniPC round the times).

dpmpp_2s_ancestral has no counterpart there; test_samplers.py checks its order and its variance.
"""

import importlib
import math
import sys
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from ddgen.diffusion.denoiser import Denoiser
from ddgen.diffusion.guidance import guided
from ddgen.diffusion.noise import SeededNoise
from ddgen.diffusion.samplers import SAMPLERS
from ddgen.diffusion.schedule import make_schedule
from ddgen.diffusion.spacing import make_spacing
from fakes import no_text

pytest.importorskip("diffusers")
# diffusers hands torch tensors to numpy; torch has yet to follow numpy 2 there.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SHAPE = (2, 5, 7)
SEEDS = (3, 11)
TOLERANCE = 1e-7


@dataclass(frozen=True)
class Referee:
    """One row: our sampler, the scheduler that equals it with its configuration, and how the two correspond.

    space: what the scheduler's state is: "ve" x0 + sigma eps, "vp" the same over sqrt(1 + sigma^2), "flow"
           over 1 + sigma.
    end:   the last level of the grid.
    step:  options of the scheduler's step(). given: hand the scheduler our levels.
    """

    sampler: str
    scheduler: str
    config: dict
    spacing: str = "leading"
    space: str = "ve"
    end: str = "zero"
    prediction: str = "eps"
    steps: int = 20
    options: dict = field(default_factory=dict)
    offset: int | None = None
    step: dict = field(default_factory=dict)
    kind: str = "scaled_linear"
    given: bool = False


LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
KARRAS = {"timestep_spacing": "linspace", "use_karras_sigmas": True}
EXPONENTIAL = {"timestep_spacing": "linspace", "use_exponential_sigmas": True}
DDPM = {"timestep_spacing": "leading", "clip_sample": False, "variance_type": "fixed_small"}
DDIM = {**LEADING, "clip_sample": False, "set_alpha_to_one": False}
PNDM = {**LEADING, "skip_prk_steps": True, "set_alpha_to_one": False}
DPM = {
    **TRAILING,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "solver_order": 2,
    "final_sigmas_type": "zero",
}
DPM_SDE = {**DPM, "algorithm_type": "sde-dpmsolver++"}
DPM_3M = {**DPM_SDE, "solver_order": 3, "final_sigmas_type": "sigma_min"}
BH1 = {**TRAILING, "solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}
BH2 = {**TRAILING, "solver_order": 3, "solver_type": "bh2", "final_sigmas_type": "zero"}
EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}

EULER = "euler_discrete.EulerDiscreteScheduler"
EULER_A = "euler_ancestral_discrete.EulerAncestralDiscreteScheduler"
HEUN = "heun_discrete.HeunDiscreteScheduler"
MULTISTEP = "dpmsolver_multistep.DPMSolverMultistepScheduler"
UNIPC = "unipc_multistep.UniPCMultistepScheduler"

REFEREES = {
    "ddpm": Referee("ddpm", "ddpm.DDPMScheduler", DDPM, space="vp", offset=0),
    "ddpm trailing": Referee("ddpm", "ddpm.DDPMScheduler", {**DDPM, **TRAILING}, "trailing", "vp"),
    "ddpm, all 1000 steps": Referee("ddpm", "ddpm.DDPMScheduler", DDPM, space="vp", steps=1000),
    "ddim": Referee("ddim", "ddim.DDIMScheduler", DDIM, space="vp", end="sigma_min"),
    "ddim, v": Referee("ddim", "ddim.DDIMScheduler", DDIM, space="vp", end="sigma_min", prediction="v"),
    "ddim, x0": Referee("ddim", "ddim.DDIMScheduler", DDIM, space="vp", end="sigma_min", prediction="x0"),
    "ddim trailing, eta 0.7": Referee(
        "ddim",
        "ddim.DDIMScheduler",
        {**TRAILING, "clip_sample": False},
        "trailing",
        "vp",
        options={"eta": 0.7},
        step={"eta": 0.7},
    ),
    "plms": Referee("plms", "pndm.PNDMScheduler", PNDM, space="vp", end="sigma_min"),
    "euler": Referee("euler", EULER, LEADING),
    "euler, v": Referee("euler", EULER, LEADING, prediction="v"),
    "euler trailing": Referee("euler", EULER, TRAILING, "trailing"),
    "euler karras": Referee("euler", EULER, KARRAS, "karras"),
    "euler exponential": Referee("euler", EULER, EXPONENTIAL, "exponential"),
    "euler edm": Referee("euler", "edm_euler.EDMEulerScheduler", EDM, "karras", prediction="edm", kind="edm"),
    "euler flow": Referee(
        "euler",
        "flow_match_euler_discrete.FlowMatchEulerDiscreteScheduler",
        {},
        "linspace",
        "flow",
        prediction="flow",
        kind="flow",
        given=True,
    ),
    "euler_ancestral": Referee("euler_ancestral", EULER_A, LEADING),
    "euler_ancestral trailing": Referee("euler_ancestral", EULER_A, TRAILING, "trailing"),
    "heun": Referee("heun", HEUN, LEADING),
    "heun karras": Referee("heun", HEUN, KARRAS, "karras"),
    "dpm2": Referee("dpm2", "k_dpm_2_discrete.KDPM2DiscreteScheduler", LEADING),
    "dpm2_ancestral": Referee(
        "dpm2_ancestral", "k_dpm_2_ancestral_discrete.KDPM2AncestralDiscreteScheduler", LEADING
    ),
    "lms": Referee("lms", "lms_discrete.LMSDiscreteScheduler", LEADING),
    "dpmpp_2m": Referee("dpmpp_2m", MULTISTEP, DPM, "trailing", "vp"),
    "dpmpp_2m, v": Referee("dpmpp_2m", MULTISTEP, DPM, "trailing", "vp", prediction="v"),
    "dpmpp_2m edm": Referee(
        "dpmpp_2m",
        "edm_dpmsolver_multistep.EDMDPMSolverMultistepScheduler",
        {**EDM, "euler_at_final": True},
        "karras",
        prediction="edm",
        kind="edm",
    ),
    "dpmpp_sde": Referee("dpmpp_sde", "dpmsolver_sde.DPMSolverSDEScheduler", LEADING),
    "dpmpp_2m_sde": Referee("dpmpp_2m_sde", MULTISTEP, DPM_SDE, "trailing", "vp"),
    "dpmpp_2m_sde_heun": Referee(
        "dpmpp_2m_sde_heun", MULTISTEP, {**DPM_SDE, "solver_type": "heun"}, "trailing", "vp"
    ),
    # The third-order term there has the other sign (it does not vanish as h -> 0); on an estimate linear in
    # log sigma it is zero in both.
    "dpmpp_3m_sde, linear": Referee(
        "dpmpp_3m_sde", MULTISTEP, DPM_3M, "trailing", "vp", end="sigma_min", prediction="x0"
    ),
    # bh1 into sigma = 0 is NaN there.
    "unipc": Referee("unipc", UNIPC, BH1, "trailing", "vp", end="sigma_min"),
    "unipc, order 2": Referee(
        "unipc", UNIPC, {**BH1, "solver_order": 2}, "trailing", "vp", end="sigma_min", options={"order": 2}
    ),
    "unipc_bh2": Referee("unipc_bh2", UNIPC, BH2, "trailing", "vp"),
    "unipc_bh2, order 2": Referee(
        "unipc_bh2", UNIPC, {**BH2, "solver_order": 2}, "trailing", "vp", options={"order": 2}
    ),
    # The boundary scaling (below 1e-5 above time 20) is put out of the way.
    "lcm": Referee("lcm", "lcm.LCMScheduler", {"timestep_scaling": 1e6}, "lcm", "vp"),
}

# Small changes of ours that the comparison must notice: name of the row, changed fields.
MUTATIONS = {
    "eta": ("ddpm", {"sampler": "ddim", "options": {"eta": 0.99}}),
    "last level": ("ddim", {"end": "zero"}),
    "offset": ("euler", {"offset": 0}),
    "spacing": ("lms", {"spacing": "trailing"}),
    "order of lms": ("lms", {"options": {"order": 3}}),
    "order of unipc": ("unipc", {"options": {"order": 2}}),
    "variant of unipc": ("unipc_bh2", {"sampler": "unipc"}),
    "solver of the SDE": ("dpmpp_2m_sde", {"sampler": "dpmpp_2m_sde_heun"}),
    "prediction": ("euler", {"prediction": "v"}),
}


class Doubled:
    """A module seen from outside, but for its float32, which is its float64."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self.float32 = module.float64

    def __getattr__(self, name: str):
        return getattr(self._module, name)


class BrownianPath:
    """The noise of DPMSolverSDE (one path, asked for overlapping intervals) from draws for half steps."""

    def __init__(self, noise: SeededNoise) -> None:
        self.noise = noise
        self.half: Tensor | None = None

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        sigma, sigma_next = float(sigma), float(sigma_next)
        if self.half is None:
            self.start, self.middle, self.half = sigma, sigma_next, self.noise(sigma, sigma_next)
            return self.half
        assert sigma == pytest.approx(self.start)
        first, second = self.half * math.sqrt(self.start - self.middle), self.noise(self.middle, sigma_next)
        self.half = None
        return (first + second * math.sqrt(self.middle - sigma_next)) / math.sqrt(self.start - sigma_next)


def network(x: Tensor, time: Tensor, context: Tensor, vector: Tensor | None = None) -> Tensor:
    """A smooth function of everything a network sees, in no way linear."""
    return 0.8 * torch.sin(1.3 * x + time.reshape(-1, 1, 1, 1) / 300) + 0.3 * x.roll(1, 1)


def linear_network(x: Tensor, time: Tensor, context: Tensor, vector: Tensor | None = None) -> Tensor:
    """An estimate of x0 that is linear in log sigma."""
    return 0.5 + 0.4 * make_schedule({"kind": "scaled_linear"}).sigma(time).log().reshape(
        -1, 1, 1, 1
    ).expand_as(x)


def network_of(row: Referee):
    return linear_network if row.sampler == "dpmpp_3m_sde" else network


@pytest.fixture
def doubled(monkeypatch):
    """Return a function that imports a scheduler class, its module (and the default dtype) in float64."""

    def load(name: str, noise: SeededNoise):
        module_name, class_name = name.split(".")
        # Only its Brownian tree needs torchsde, and BrownianPath stands in for that.
        monkeypatch.setitem(sys.modules, "torchsde", SimpleNamespace())
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{module_name}")
        monkeypatch.setattr(module, "torch", Doubled(torch))
        if hasattr(module, "np"):
            monkeypatch.setattr(module, "np", Doubled(np))
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise(0.0, 0.0), raising=False)
        return getattr(module, class_name)

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield load
    torch.set_default_dtype(before)


SD = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAMES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample", "edm": "epsilon"}


def make_scheduler(row: Referee, load, noise: SeededNoise, sigmas: tuple[float, ...]):
    build = load(row.scheduler, noise)
    if row.kind == "flow":
        scheduler = build(**row.config)
    else:
        common = SD if row.kind == "scaled_linear" else {}
        scheduler = build(**common, prediction_type=NAMES[row.prediction], **row.config)
    if row.given:
        scheduler.set_timesteps(sigmas=[sigma / (1 + sigma) for sigma in sigmas[:-1]])
    else:
        scheduler.set_timesteps(row.steps)
    if row.sampler == "dpmpp_sde":
        scheduler.noise_sampler = BrownianPath(noise)
    return scheduler


def scale_of(row: Referee, sigma: float) -> float:
    """Return x (VE) over the scheduler's state."""
    return {"ve": 1.0, "vp": math.hypot(1, sigma), "flow": 1 + sigma}[row.space]


def run_referee(row: Referee, load, sigmas: tuple[float, ...], start: float) -> Tensor:
    """Return the scheduler's result as a VE state."""
    noise = SeededNoise(SEEDS, SHAPE, dtype=torch.float64)
    x = noise.initial() * (start / scale_of(row, sigmas[0]))
    scheduler = make_scheduler(row, load, noise, sigmas)
    for time in scheduler.timesteps:
        x_t = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        output = network_of(row)(x_t, time.double().expand(len(x)), torch.empty(0))
        x = scheduler.step(output, time, x, **row.step).prev_sample
    return x * scale_of(row, sigmas[-1])


def run_ours(row: Referee) -> tuple[Tensor, tuple[float, ...], float]:
    schedule = make_schedule({"kind": row.kind})
    spacing_options = {} if row.offset is None else {"offset": row.offset}
    grid = make_spacing(row.spacing, schedule, row.steps, end=row.end, **spacing_options)
    denoiser = Denoiser(network_of(row), row.prediction, schedule, sigma_data=0.5)
    noise = SeededNoise(SEEDS, SHAPE, dtype=torch.float64)
    x = noise.initial() * grid.initial_scale
    denoise = guided(denoiser, no_text(2), None, scale=1)
    steps = list(SAMPLERS[row.sampler].fn(denoise, x, grid.sigmas, noise, **row.options))
    assert len(steps) == row.steps
    return steps[-1].x, grid.sigmas, grid.initial_scale


def difference(row: Referee, load, changes: dict) -> float:
    _, sigmas, start = run_ours(row)
    theirs = run_referee(row, load, sigmas, start)
    assert torch.isfinite(theirs).all()
    assert theirs.std() > 0.02
    ours, *_ = run_ours(replace(row, **changes))
    return (ours - theirs).abs().max().item()


@pytest.mark.parametrize("name", REFEREES)
def test_equals_diffusers(name, doubled, record_property):
    found = difference(REFEREES[name], doubled, {})
    record_property("sampler, 20 steps, against diffusers", found)
    assert found < TOLERANCE


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_comparison_notices(name, doubled):
    row, changes = MUTATIONS[name]
    assert difference(REFEREES[row], doubled, changes) > 1000 * TOLERANCE


def test_every_sampler_has_a_referee_or_says_why():
    assert set(SAMPLERS) - {row.sampler for row in REFEREES.values()} == {"dpmpp_2s_ancestral"}
