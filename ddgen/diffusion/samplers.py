"""The samplers by name: what each is called here and elsewhere, its order, its cost, whether it adds noise.

`SAMPLERS[name].fn(denoise, x, sigmas, noise, **options)` yields a Step per interval of sigmas; see solver.py.
A new sampler is one function and one line here. Torch-free at import, so that the CLI can list the names.
Which diffusers scheduler each one equals, and its configuration, is the table REFEREES of
tests/test_samplers_diffusers.py (docs/samplers.md tells the same in words).
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
    order:      order of convergence on a smooth grid (of the deterministic form, eta = 0).
    calls:      network calls per step, the last step apart.
    stochastic: noise is added at the default settings.
    eta:        default share of noise put back, or None where there is no such option.
    discard:    wants a grid without its last level above 0 (make_spacing's `discard`), as A1111 and ComfyUI
                give it one.
    """

    fn: Sampler
    label: str
    doc: str
    order: int
    calls: int = 1
    stochastic: bool = False
    eta: float | None = None
    discard: bool = False


_noisy = partial(SamplerInfo, stochastic=True, eta=1.0)
_ddpm, _ddim = partial(ancestral, eta=1.0), partial(ancestral, eta=0.0)
_dpm2_ancestral = partial(dpm2, eta=1.0)
_2m_sde_heun = partial(dpmpp_2m_sde, solver="heun")
_unipc_bh2 = partial(unipc, variant="bh2")

SAMPLERS: dict[str, SamplerInfo] = {
    "ddpm": SamplerInfo(_ddpm, "DDPM", "the full reverse process; up to 1000 steps", 1, stochastic=True),
    "ddim": SamplerInfo(_ddim, "DDIM", "deterministic; eta 1 is ddpm", 1, eta=0.0),
    "plms": SamplerInfo(plms, "PLMS", "four-step multistep on the noise estimate", 2),
    "euler": SamplerInfo(euler, "Euler", "the plain first-order method", 1),
    "euler_ancestral": _noisy(ancestral, "Euler a", "Euler with fresh noise every step", 1),
    "heun": SamplerInfo(heun, "Heun", "second order, two calls a step", 2, calls=2),
    "dpm2": SamplerInfo(dpm2, "DPM2", "second order, two calls a step", 2, calls=2, discard=True),
    "dpm2_ancestral": _noisy(_dpm2_ancestral, "DPM2 a", "dpm2 with fresh noise", 2, calls=2, discard=True),
    "lms": SamplerInfo(lms, "LMS", "four-step multistep on the actual grid", 4),
    "dpmpp_2s_ancestral": _noisy(dpmpp_2s_ancestral, "DPM++ 2S a", "second order, fresh noise", 2, calls=2),
    "dpmpp_2m": SamplerInfo(dpmpp_2m, "DPM++ 2M", "second order multistep; good at 20 to 30 steps", 2),
    "dpmpp_sde": _noisy(dpmpp_sde, "DPM++ SDE", "stochastic, second order, two calls a step", 2, calls=2),
    "dpmpp_2m_sde": _noisy(dpmpp_2m_sde, "DPM++ 2M SDE", "stochastic second order multistep", 2),
    "dpmpp_2m_sde_heun": _noisy(_2m_sde_heun, "DPM++ 2M SDE Heun", "the same, Heun's term", 2, discard=True),
    "dpmpp_3m_sde": _noisy(dpmpp_3m_sde, "DPM++ 3M SDE", "stochastic three-step multistep", 2, discard=True),
    "unipc": SamplerInfo(unipc, "UniPC", "predictor-corrector (bh1) for few steps", 3, discard=True),
    "unipc_bh2": SamplerInfo(_unipc_bh2, "UniPC", "predictor-corrector (bh2) for few steps", 3, discard=True),
    "lcm": SamplerInfo(lcm, "LCM", "for consistency-distilled models, 1 to 8 steps", 1, stochastic=True),
}

# Names of the same samplers elsewhere, in lower case without "k_" in front or "_gpu" behind; A1111's labels
# are added below.
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
    """Return our name of a sampler given by any known name, and the spacing named with it ("DPM++ 2M
    Karras"), if any.

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
