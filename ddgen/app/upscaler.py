"""ESRGAN-type networks that make a picture larger, run by spandrel, which knows some forty architectures by their
weights.

The file is read as every other is (weights/unpickle.py: nothing in it is run); spandrel is only given tensors.
The picture goes through in tiles. Ref: Wang et al. 2018 (ESRGAN), arXiv 1809.00219.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ddgen.app import canvas
from ddgen.errors import ModelError
from ddgen.nets.tiling import Tiling, in_bands
from ddgen.weights.checkpoint import read_tensors
from ddgen.weights.control import stored
from ddgen.weights.unpickle import read_weights_header

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

WRAPPINGS = ("params_ema.", "params.", "state_dict.", "model_state_dict.")
"""What trainers put around the weights, the one to prefer first."""

TILES = Tiling(256, 32)
MAX_PASSES = 4
ROUND = 16  # pixels of the other end that the network sees where ends meet


@dataclass(frozen=True)
class Upscaler:
    """A network that makes pictures `scale` times as wide and high. model: (1, 3, H, W) in [0, 1] -> the same,
    larger."""

    model: Any
    scale: int
    device: torch.device


def load(path: Path, device: torch.device) -> Upscaler:
    """Load an upscaler.

    Raises:
        ModelError: damaged or no weights, or those of no architecture that is known, or of one
            that does not enlarge.
    """
    import spandrel

    header = read_weights_header(path)
    names = header.tensors
    prefix = next((found for found in WRAPPINGS if any(name.startswith(found) for name in names)), "")
    part = {name.removeprefix(prefix): stored(header, name) for name in names if name.startswith(prefix)}
    state = dict(read_tensors(part, dtype=torch.float32))
    try:
        model = spandrel.ModelLoader(device=device).load_from_state_dict(state)
    except Exception as error:  # spandrel's own, and whatever a network says that gets the wrong tensors
        raise ModelError(
            f"upscaler '{path.name}' is of no architecture that spandrel knows",
            "choose an ESRGAN-type model",
            id="model.upscaler",
        ) from error
    if getattr(model, "scale", 1) < 2 or (model.input_channels, model.output_channels) != (3, 3):
        raise ModelError(
            f"upscaler '{path.name}' does not enlarge colour pictures",
            "choose an ESRGAN-type model",
            id="model.upscaler",
        )
    return Upscaler(model.eval(), model.scale, device)


@torch.inference_mode()
def enlarged(upscaler: Upscaler, picture: Pixels, width: int, height: int, ring: str = "") -> Pixels:
    """Return the picture at a size: run through the network until it is large enough, then brought to it. ring: the
    axes along which its ends meet."""
    down, across = (ROUND if axis in ring else 0 for axis in "yx")
    for _ in range(MAX_PASSES):
        if picture.shape[1] >= width and picture.shape[0] >= height:
            break
        high, wide = (side * upscaler.scale for side in picture.shape[:2])
        top, left = down * upscaler.scale, across * upscaler.scale
        made = _once(upscaler, canvas.around(picture, down, across))
        picture = np.ascontiguousarray(made[top : top + high, left : left + wide])
    return canvas.resize(picture, width, height, ring)


def _once(upscaler: Upscaler, picture: Pixels) -> Pixels:
    """Return the picture run through the network, tile by tile; only its bytes are ever whole."""

    def compute(rows: slice, columns: slice) -> torch.Tensor:
        return upscaler.model(torch.tensor(picture[rows, columns]).permute(2, 0, 1)[None].to(upscaler.device) / 255)

    high, wide = picture.shape[:2]
    bands = in_bands(compute, high, wide, TILES, cell_out=upscaler.scale)
    return np.concatenate(
        [(band.clamp(0, 1)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy() for _, band in bands]
    )
