"""Pictures through a first stage window by window: of the whole picture there are only its bytes and its latents.

    encode   bytes of a window -> [-1, 1] -> latents, blended
    decode   latents of a window -> [-1, 1], blended in a row of windows -> bytes

The whole first stage runs in each window, so its middle, which looks everywhere, sees the window alone; group
norms too. What that changes fades over the overlap (nets/tiling.py); its windows are never smaller than LEAST,
below which the seams can be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddgen.io import images
from ddgen.nets.tiling import Tiling, in_bands, larger
from ddgen.request import Edit, Job
from ddgen.weights.arch import Arch

if TYPE_CHECKING:
    from ddgen.app.pipeline import FirstStage
    from ddgen.io.images import Pixels


LEAST = 256  # pixels


def tiling_of(edit: Edit | None, arch: Arch, *, least: int = 0) -> Tiling | None:
    """Return the windows of an edit, of at least so many pixels; None where all is seen at once."""
    if edit is None or not edit.window:
        return None
    cells = max(edit.window, least) // arch.first_stage.factor
    return Tiling(cells, cells // 4)


def seen(job: Job, *, least: int = 0) -> tuple[int, int]:
    """Return height and width in pixels of what is seen at once of a job's picture."""
    if job.edit is None or not job.edit.window:
        return job.height, job.width
    side = max(job.edit.window, least)
    return min(job.height, side), min(job.width, side)


def encode(
    stage: FirstStage, picture: Pixels, factor: int, tiling: Tiling, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return the latents (1, C, h, w) of a picture. factor: pixels a latent cell."""

    def compute(rows: slice, columns: slice) -> Tensor:
        part = images.to_unit(picture[larger(rows, factor), larger(columns, factor)])
        return stage.encode(torch.from_numpy(part).to(device, dtype))

    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    return torch.cat(list(in_bands(compute, height, width, tiling)), dim=2)


def decode(stage: FirstStage, latents: Tensor, factor: int, tiling: Tiling) -> Pixels | None:
    """Return the picture (H, W, 3) of latents (1, C, h, w); None if a value is not finite."""
    height, width = latents.shape[-2:]
    picture = np.empty((height * factor, width * factor, 3), np.uint8)
    top = 0
    bands = in_bands(
        lambda rows, columns: stage.decode(latents[..., rows, columns]), height, width, tiling, cell_out=factor
    )
    for (band,) in bands:
        if not band.isfinite().all():
            return None
        picture[top : top + band.shape[-2]] = images.to_uint8(band)
        top += band.shape[-2]
    return picture
