"""An image tower whose eye is fixed and whose mind is small: oriented edges and colours on grids, then a head.

    picture -> edge strength along ORIENTATIONS, per cell of two grids, each cell at length one
            -> mean colour (light, red - green, yellow - blue) per cell
            -> (x - mean) / deviation -> linear -> GELU -> linear -> (B, embed_dim)

The fixed part is what tells drawings apart whatever their style, and needs no training; the head needs minutes of
one core where a convolutional tower of open_clip needs hours. Ref: Dalal & Triggs 2005, "Histograms of oriented
gradients for human detection", sections 6.2-6.4.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ORIENTATIONS = 8
CELLS = (8, 16)  # pixels of a picture of 64; grids overlap by half a cell
SIDE = 64
SHARP = 0.8  # how much of the strength must lie along an orientation before it counts
FAINT = 0.03  # strength below which a cell is empty


@dataclass(frozen=True)
class ImageTowerConfig:
    """hidden: width of the head's inside; embed_dim: of the space of the text vectors."""

    hidden: int = 640
    embed_dim: int = 384


def look(x: Tensor) -> Tensor:
    """Return what is seen of pictures (B, 3, 64, 64) in [-1, 1]: (B, SEEN)."""
    x = (x + 1) / 2
    across = F.pad(x[..., :, 2:] - x[..., :, :-2], (1, 1, 0, 0))
    down = F.pad(x[..., 2:, :] - x[..., :-2, :], (0, 0, 1, 1))
    strength, channel = torch.hypot(across, down).max(1, keepdim=True)  # of the colour that changes most
    across, down = across.gather(1, channel), down.gather(1, channel)
    angles = torch.arange(ORIENTATIONS, device=x.device) * (math.pi / ORIENTATIONS)
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    edges = ((across * cos + down * sin).abs() - SHARP * strength).clamp(min=0) / (1 - SHARP)  # (B, 8, 64, 64)
    quarters = F.avg_pool2d(edges, 4)
    parts = []
    for cell in CELLS:
        cells = F.avg_pool2d(quarters, cell // 4, cell // 8).flatten(2)
        parts.append((cells / (cells.norm(dim=1, keepdim=True) + FAINT)).flatten(1))
    red, green, blue = x.unbind(1)
    colours = torch.stack([x.mean(1), red - green, (red + green) / 2 - blue], 1)
    parts.append(F.avg_pool2d(colours, 8).flatten(1))
    return torch.cat(parts, 1)


def seen() -> int:
    """Return how many numbers `look` gives."""
    return sum(ORIENTATIONS * (2 * SIDE // cell - 1) ** 2 for cell in CELLS) + 3 * (SIDE // 8) ** 2


class ImageTower(nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] to vectors (B, embed_dim), not normalised."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(seen()))
        self.register_buffer("deviation", torch.ones(seen()))
        self.fc1 = nn.Linear(seen(), config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(look(x))

    def head(self, features: Tensor) -> Tensor:
        """Return the vectors of what was seen, (B, SEEN)."""
        return self.fc2(F.gelu(self.fc1((features - self.mean) / self.deviation)))
