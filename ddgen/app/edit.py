"""What an existing picture adds to the one road from noise to pixels: a later start, a wrapper of denoise,
extra channels.

    image to image   sigmas[k:], x = x0 + sigma_k eps, with int(strength steps) steps left, at least one
    inpainting       D' = D where the mask is, x0 elsewhere
    9 channels       [x_t, mask, x0 of the picture without what is masked]: the network keeps to the rest
    8 channels       [x_t, x0 of the picture]: instructions (InstructPix2Pix)
    windows          D computed in overlapping windows: memory depends on the window, not on the picture

How a mask is blended. Programs differ: diffusers replaces x outside after each step by x0 + sigma eps with
the first eps; ComfyUI does so before each call and replaces D by x0 after it; AUTOMATIC1111 replaces D
alone. We replace D alone: outside the mask x0 is known, so D(x; sigma) = x0 is the exact denoiser there, and
any sampler, ancestral, multistep or of second order, keeps that part on its own path from x0 + sigma eps to
x0. With deterministic samplers and masks on the latent grid all three are one and the same (tested against
diffusers). Networks of 9 channels are not blended: they were trained to see the picture.

A latent cell is made anew if any pixel of it is masked; what is too much is put back in pixels
(app/canvas.py). The picture enters by the encoder's mode, without its noise: equal inputs give equal results.

Ref: Meng et al. 2021 (SDEdit), arXiv 2108.01073; Lugmayr et al. 2022 (RePaint), arXiv 2201.09865, eq. 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from ddgen.app import windows
from ddgen.app.verbs import Source, kept_steps, reads
from ddgen.diffusion.denoiser import Denoise
from ddgen.diffusion.spacing import Grid
from ddgen.errors import UsageError
from ddgen.io import images
from ddgen.nets.config import PatchConfig
from ddgen.nets.tiling import Tiling, gathered, larger, part
from ddgen.request import Edit, Job
from ddgen.weights.arch import Arch

if TYPE_CHECKING:
    from ddgen.app.pipeline import FirstStage, Pipeline


@dataclass(frozen=True)
class Begun:
    """A Source as the network's world has it.

    x0:      (1, C, h, w) latents. anew: (1, C or 1, h, w) bool, or None.
    beside:  (1, K, h, w) channels that the network reads behind x_t, or None.
    blended: D is x0 outside the mask.
    """

    x0: Tensor
    anew: Tensor | None
    beside: Tensor | None
    blended: bool


def later(grid: Grid, edit: Edit | None) -> Grid:
    """Return the part of the grid that is run."""
    if edit is None or edit.strength is None:
        return grid
    kept = kept_steps(grid.steps, edit.strength)
    return Grid(grid.sigmas[grid.steps - kept :], grid.initial_scale)


@torch.inference_mode()
def begin(pipeline: Pipeline, source: Source | None, job: Job) -> Begun | None:
    """Encode the picture of a run, window by window where the job says so; a network that reads a mask is told that there is none where there is
    none.

    Raises:
        UsageError: a network that works on a picture, and none is given.
    """
    arch, stage = pipeline.spec.arch, pipeline.first_stage
    kind, width, height = reads(arch), job.width, job.height
    if source is None:
        if kind == "image":
            mend = 'give it one: ddgen edit IMAGE "make it red"'
            raise UsageError(
                f"model '{pipeline.spec.name}' follows instructions about a picture",
                mend,
                id="usage.image",
            )
        if not kind:
            return None
        nothing = torch.zeros(1, 3, height, width, device=pipeline.device, dtype=dtype_of(stage))
        beside = mask_channels(arch, stage, nothing, None)
        return Begun(beside[:, 1:], None, beside, blended=False)
    tiling = windows.tiling_of(job, arch, least=windows.LEAST)
    if tiling is not None:
        factor = arch.first_stage.factor
        x0 = windows.encode(stage, source.image, factor, tiling, pipeline.device, dtype_of(stage))
        return Begun(x0, None, None, blended=True)
    pixels = torch.from_numpy(images.to_unit(source.image)).to(pipeline.device, dtype_of(stage))
    x0 = stage.encode(pixels)
    mask = None
    if source.mask is not None:
        mask = torch.from_numpy(source.mask[None, None]).to(pipeline.device)
    anew = None if mask is None else latent_mask(arch, stage, mask)
    beside = None
    if kind == "mask":
        beside = mask_channels(arch, stage, pixels, mask)
    elif kind == "image":
        # These networks were trained on the picture's latents without the factor that x0 has.
        beside = x0 / float(getattr(arch.first_stage, "scale_factor", 1.0))
    return Begun(x0, anew, beside, blended=kind != "mask")


def dtype_of(stage: FirstStage) -> torch.dtype:
    """Return what a first stage computes in."""
    weight = next(stage.parameters(), None) if isinstance(stage, nn.Module) else None
    return torch.float32 if weight is None else weight.dtype


def mask_channels(arch: Arch, stage: FirstStage, pixels: Tensor, mask: Tensor | None) -> Tensor:
    """Return the (1, 1 + C, h, w) channels of an inpainting network: the mask, the latents of the rest of
    the picture.

    pixels: (1, 3, H, W) in [-1, 1]; mask: (1, 1, H, W) bool, None = everything is made anew.
    """
    whole = torch.ones_like(pixels[:, :1], dtype=torch.bool) if mask is None else mask
    cells = max_pool2d(whole.to(pixels), arch.first_stage.factor)
    rest = stage.encode(pixels.masked_fill(whole, 0.0))
    return torch.cat([cells.to(rest), rest], dim=1)


def latent_mask(arch: Arch, stage: FirstStage, mask: Tensor) -> Tensor:
    """Return which latents are made anew: pixel by pixel where the first stage keeps pixels, else cell by
    cell."""
    if isinstance(arch.first_stage, PatchConfig):
        return stage.encode(mask.float().expand(-1, arch.first_stage.in_channels, -1, -1)) > 0.5
    return max_pool2d(mask.float(), arch.first_stage.factor) > 0


def start(begun: Begun, edit: Edit, grid: Grid, eps: Tensor, pure: Tensor) -> Tensor:
    """Return the state that sampling starts from.

    eps: the first standard normals; pure: the same as the state of a run that starts from noise alone.
    """
    noised = begun.x0 + grid.sigmas[0] * eps
    if edit.strength is not None:
        return noised
    return pure if begun.anew is None or not begun.blended else torch.where(begun.anew, pure, noised)


def known_outside(denoise: Denoise, x0: Tensor, anew: Tensor) -> Denoise:
    """Return denoise whose estimate outside the mask is what is known there."""

    def denoise_inside(x: Tensor, sigma: float) -> Tensor:
        return torch.where(anew, denoise(x, sigma), x0)

    return denoise_inside


def in_windows(denoise: Denoise, tiling: Tiling, view: windows.View | None = None, factor: int = 1) -> Denoise:
    """Return denoise computed window by window and blended. view: is told the place of each, at `factor` pixels a
    latent cell. Ref: Bar-Tal et al. 2023 (MultiDiffusion), arXiv 2302.08113."""
    place = windows.View() if view is None else view

    def denoise_windows(x: Tensor, sigma: float) -> Tensor:
        def look(rows: slice, columns: slice) -> Tensor:
            place.rows, place.columns = larger(rows, factor), larger(columns, factor)
            return denoise(part(x, rows, columns), sigma)

        return gathered(look, *x.shape[-2:], tiling)

    return denoise_windows


def wrap(
    begun: Begun | None, jobs: Sequence[Job], denoise: Denoise, arch: Arch, view: windows.View | None = None
) -> Denoise:
    """Return the denoise of a run with what its edit adds to it. view: is told what the network looks at."""
    tiling = windows.tiling_of(jobs[0], arch)
    if tiling is not None:
        denoise = in_windows(denoise, tiling, view, arch.first_stage.factor)
    if begun is not None and begun.anew is not None and begun.blended:
        denoise = known_outside(denoise, begun.x0, begun.anew)
    return denoise
