"""Noise as other programs draw it, so that their pictures can be made again; a run that does not ask for them
uses noise.SeededNoise.

    name       one generator per         draws                              x starts at
    ddgen      image and draw            numpy Philox, noise.py             the grid's own scale
    diffusers  image                     torch's CPU generator              sigma, or sqrt(1 + sigma^2) by
    class and spacing
    a1111      image                     CUDA's Philox, emulated ("NV")     sigma (DDIM, PLMS, UniPC: sqrt(1 +
    sigma^2))
    comfy      tensor batch              torch's CPU generator              sqrt(1 + sigma^2) from the highest
    level, else sigma

Later draws (ancestral steps) go on as those programs go on; comfy's have a generator of their own, seeded one
higher. Brownian trees (the SDE samplers of a1111 and comfy) are not drawn again. torch's CPU generator may
differ between instruction sets. Torch-free at import.
Ref: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddgen.errors import choose

if TYPE_CHECKING:
    import torch

    from ddgen.diffusion.noise import NoiseSource
    from ddgen.diffusion.spacing import Grid

RNGS = {
    "ddgen": "the same noise for an image on every machine, alone or in a batch",
    "diffusers": "as diffusers with a CPU generator per image",
    "a1111": "as AUTOMATIC1111 with its GPU or NV generator",
    "comfy": "as ComfyUI: one generator for the whole batch",
}

# Samplers that diffusers and a1111 run on variance-preserving states, which start at plain normals.
_PRESERVING = {
    "diffusers": (
        "ddpm", "ddim", "plms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "dpmpp_sde",
        "unipc", "unipc_bh2", "lcm",
    ),
    "a1111": ("ddpm", "ddim", "plms", "unipc", "unipc_bh2"),
}  # fmt: skip


def make_noise(
    name: str,
    seeds: Sequence[int],
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> NoiseSource:
    """Return a noise source by name. seeds: one per image; shape: (C, h, w) of one image; dtype: float32
    unless given.

    Raises:
        UsageError: unknown name.
    """
    import torch

    from ddgen.diffusion.draws import BatchNoise, GeneratorNoise, PhiloxNoise
    from ddgen.diffusion.noise import SeededNoise

    choose("rng", name, RNGS)
    kinds = {"ddgen": SeededNoise, "diffusers": GeneratorNoise, "a1111": PhiloxNoise, "comfy": BatchNoise}
    return kinds[name](seeds, shape, device, torch.float32 if dtype is None else dtype)


def initial_scale(name: str, grid: Grid, *, sampler: str, spacing: str, sigma_max: float) -> float:
    """Return what the first normals are multiplied by to be the state at the grid's first level."""
    first = grid.sigmas[0]
    if name == "comfy":
        return math.hypot(1.0, first) if first > sigma_max * (1 - 1e-5) else first
    if name == "ddgen":
        return grid.initial_scale
    if sampler in _PRESERVING[name]:
        return math.hypot(1.0, first)
    return first if name == "a1111" or spacing in ("linspace", "trailing") else math.hypot(1.0, first)
