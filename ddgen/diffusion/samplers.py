"""The samplers by name: what each is called here and elsewhere, its order, whether it adds noise, what it costs.

`SAMPLERS[name].fn(denoise, x, sigmas, noise, **options)` yields a Step per interval of sigmas; see solver.py. A new sampler is one function
and one line here. Torch-free at import, so that the command line can list the names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from ddgen.diffusion.solver import Sampler, Step
from ddgen.diffusion.solvers_dpm import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s_ancestral, dpmpp_3m_sde, dpmpp_sde
from ddgen.diffusion.solvers_euler import ancestral, dpm2, euler, heun, lcm, lms, plms
from ddgen.diffusion.solvers_unipc import unipc
from ddgen.diffusion.spacing import ALIASES as SPACING_ALIASES
from ddgen.diffusion.spacing import SPACINGS, spacing_name
from ddgen.errors import choose

__all__ = ["ALIASES", "SAMPLERS", "SamplerInfo", "Step", "parse_sampler"]


@dataclass(frozen=True)
class SamplerInfo:
    """One sampler.

    fn:         the generator function.
    label:      A1111's name, for metadata.
    doc:        one line for `--help`.
    order:      order of convergence (of the deterministic form, eta = 0).
    calls:      network calls per step, the last step apart.
    stochastic: noise is added at the default settings.
    eta:        default share of noise put back, or None where there is no such option.
    """

    fn: Sampler
    label: str
    doc: str
    order: int
    calls: int = 1
    stochastic: bool = False
    eta: float | None = None


SAMPLERS: dict[str, SamplerInfo] = {
    "ddpm": SamplerInfo(partial(ancestral, eta=1.0), "DDPM", "the full reverse process; for many steps, up to 1000", 1, stochastic=True),
    "ddim": SamplerInfo(partial(ancestral, eta=0.0), "DDIM", "deterministic; eta 1 is ddpm", 1, eta=0.0),
    "plms": SamplerInfo(plms, "PLMS", "four-step multistep on the noise estimate", 2),
    "euler": SamplerInfo(euler, "Euler", "the plain first-order method", 1),
    "euler_ancestral": SamplerInfo(ancestral, "Euler a", "Euler with fresh noise every step", 1, stochastic=True, eta=1.0),
    "heun": SamplerInfo(heun, "Heun", "second order, two calls a step", 2, calls=2),
    "dpm2": SamplerInfo(dpm2, "DPM2", "second order, two calls a step", 2, calls=2),
    "dpm2_ancestral": SamplerInfo(partial(dpm2, eta=1.0), "DPM2 a", "dpm2 with fresh noise every step", 2, calls=2, stochastic=True, eta=1.0),
    "lms": SamplerInfo(lms, "LMS", "four-step multistep on the actual grid", 4),
    "dpmpp_2s_ancestral": SamplerInfo(
        dpmpp_2s_ancestral, "DPM++ 2S a", "second order with fresh noise, two calls a step", 2, calls=2, stochastic=True, eta=1.0
    ),
    "dpmpp_2m": SamplerInfo(dpmpp_2m, "DPM++ 2M", "second order multistep; a good default for 20 to 30 steps", 2),
    "dpmpp_sde": SamplerInfo(dpmpp_sde, "DPM++ SDE", "stochastic, second order, two calls a step", 2, calls=2, stochastic=True, eta=1.0),
    "dpmpp_2m_sde": SamplerInfo(dpmpp_2m_sde, "DPM++ 2M SDE", "stochastic second order multistep", 2, stochastic=True, eta=1.0),
    "dpmpp_2m_sde_heun": SamplerInfo(
        partial(dpmpp_2m_sde, solver="heun"), "DPM++ 2M SDE Heun", "the same with the other second-order term", 2, stochastic=True, eta=1.0
    ),
    "dpmpp_3m_sde": SamplerInfo(dpmpp_3m_sde, "DPM++ 3M SDE", "stochastic third order multistep", 3, stochastic=True, eta=1.0),
    "unipc": SamplerInfo(unipc, "UniPC", "predictor-corrector of order 3, for few steps (bh1)", 3),
    "unipc_bh2": SamplerInfo(partial(unipc, variant="bh2"), "UniPC", "the same with the other step function", 3),
    "lcm": SamplerInfo(lcm, "LCM", "for consistency-distilled models, 1 to 8 steps", 1, stochastic=True),
}

# Names of the same samplers elsewhere, in lower case without "k_" in front or "_gpu" behind; A1111's labels are added below.
ALIASES: dict[str, str] = {
    "euler_a": "euler_ancestral",
    "dpm_2": "dpm2",
    "dpm_2_a": "dpm2_ancestral",
    "dpm_2_ancestral": "dpm2_ancestral",
    "dpmpp_2s_a": "dpmpp_2s_ancestral",
    "pndm": "plms",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc_bh2",
}
ALIASES |= {info.label.lower(): name for name, info in reversed(SAMPLERS.items())}


def parse_sampler(word: str) -> tuple[str, str | None]:
    """Return our name of a sampler given by any known name, and the spacing named with it ("DPM++ 2M Karras"), if any.

    Raises:
        UsageError: unknown sampler.
    """
    key = re.sub(r"^k_|_gpu$", "", word.strip().lower())
    if key in SAMPLERS or key in ALIASES:
        return ALIASES.get(key, key), None
    for spacing in sorted((*SPACINGS, *SPACING_ALIASES), key=len, reverse=True):
        head = key.removesuffix(" " + spacing)
        if head != key and (head in SAMPLERS or head in ALIASES):
            return ALIASES.get(head, head), spacing_name(spacing)
    return choose("sampler", word, SAMPLERS), None
