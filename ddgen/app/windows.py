"""Pictures through a first stage window by window: of the whole picture there are only its bytes and its latents.

    encode   bytes of a window -> [-1, 1] -> latents, blended
    decode   latents of a window -> [-1, 1], blended in a row of windows -> bytes

The whole first stage runs in each window, so its middle, which looks everywhere, sees the window alone; group
norms too. What that changes fades over the overlap (nets/tiling.py); its windows are never smaller than LEAST,
below which the seams can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddgen.io import images
from ddgen.nets.tiling import Tiling, in_bands, larger, part
from ddgen.request import Job
from ddgen.weights.arch import Arch

if TYPE_CHECKING:
    from ddgen.app.pipeline import FirstStage
    from ddgen.io.images import Pixels


LEAST = 256  # pixels


@dataclass
class View:
    """What the network looks at now: rows and columns of the picture in pixels, which may go round its ends; None =
    all of it."""

    rows: slice | None = None
    columns: slice | None = None


def tiling_of(job: Job, arch: Arch, *, least: int = 0) -> Tiling | None:
    """Return the windows of a job, of at least so many pixels; None where all is seen at once. Where the picture's
    ends are to meet, windows go round."""
    if job.edit is None or not job.edit.window:
        return None
    cells = max(job.edit.window, least) // arch.first_stage.factor
    return Tiling(cells, cells // 4, job.tile)


def seamless_axes(job: Job, arch: Arch, *, least: int = 0) -> str:
    """Return the axes along which convolutions run round: those of the job, but for the ones along which its windows
    do."""
    tiling = tiling_of(job, arch, least=least)
    if tiling is None:
        return job.tile
    factor = arch.first_stage.factor
    windows = tiling.round_axes(job.height // factor, job.width // factor)
    return "".join(axis for axis in job.tile if axis not in windows)


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
        seen = images.to_unit(cut(picture, larger(rows, factor), larger(columns, factor)))
        return stage.encode(torch.from_numpy(seen).to(device, dtype))

    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    bands = sorted(in_bands(compute, height, width, tiling), key=lambda found: found[0])
    return torch.cat([band for _, band in bands], dim=2)


def cut(picture: Pixels, rows: slice, columns: slice) -> Pixels:
    """Return a part of a picture; what it reaches for beyond the end is the beginning."""
    height, width = picture.shape[:2]
    if rows.stop <= height and columns.stop <= width:
        return picture[rows, columns]
    down, across = np.arange(rows.start, rows.stop) % height, np.arange(columns.start, columns.stop) % width
    return picture[down[:, None], across]


def decode(stage: FirstStage, latents: Tensor, factor: int, tiling: Tiling) -> Pixels | None:
    """Return the picture (H, W, 3) of latents (1, C, h, w); None if a value is not finite."""
    height, width = latents.shape[-2:]
    picture = np.empty((height * factor, width * factor, 3), np.uint8)
    bands = in_bands(
        lambda rows, columns: stage.decode(part(latents, rows, columns)), height, width, tiling, cell_out=factor
    )
    for top, (band,) in bands:
        if not band.isfinite().all():
            return None
        picture[top : top + band.shape[-2]] = images.to_uint8(band)
    return picture
