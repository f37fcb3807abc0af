"""The small parts that U-Net and autoencoder share: sinusoids, coordinates, residual blocks, resampling.

Parameter names are those of the published Latent Diffusion checkpoints (`in_layers.2`, `emb_layers.1`, `op`),
so that a single file loads by stripping a prefix; the empty positions in the Sequentials keep those indices.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddgen.nets.winograd import Conv3x3

GROUPS = 32


def timestep_embedding(time: Tensor, dim: int, *, max_period: float = 10000.0) -> Tensor:
    """Return cos and sin of `time` at `dim / 2` geometric frequencies: [cos, sin].

    time: (B,) float, the network's time (0..999 for Stable Diffusion). Returns (B, dim) float32 whatever the
    input, as every published network was trained. Ref: Vaswani et al. 2017, arXiv 1706.03762, section 3.5.
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=time.device)
    frequencies = torch.exp(-math.log(max_period) * index / half)
    angles = time.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def guidance_embedding(guidance: Tensor, dim: int) -> Tensor:
    """Return sin and cos of 1000 (w - 1), the guidance scale w as LCM networks read it: [sin, cos].

    guidance: (B,). Returns (B, dim) float32. Ref: Luo et al. 2023, arXiv 2310.04378, section 4.3.
    """
    half = dim // 2
    step = math.log(10000.0) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=guidance.device) * -step)
    angles = (guidance.float()[:, None] - 1.0) * 1000.0 * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def position_channels(
    height: int, width: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return 16 constant channels that tell a convolution where it is: (16, height, width).

    With cell centres x (to the right) and y (down) in [-1, 1]: x, y, xy, x^2 + y^2, then for k = 1, 2, 3
    sin(pi k x), cos(pi k x), sin(pi k y), cos(pi k y). Cf. Liu et al. 2018 (CoordConv), arXiv 1807.03247.
    """
    # Never less than float32: sin(3 pi x) in bfloat16 is noise.
    precision = torch.float64 if dtype == torch.float64 else torch.float32

    def centres(n: int) -> Tensor:
        return (torch.arange(n, device=device, dtype=precision) + 0.5) / n * 2.0 - 1.0

    y, x = torch.meshgrid(centres(height), centres(width), indexing="ij")
    channels = [x, y, x * y, x.square() + y.square()]
    for k in (1, 2, 3):
        channels += [f(math.pi * k * axis) for axis in (x, y) for f in (torch.sin, torch.cos)]
    return torch.stack(channels).to(dtype)


def for_rows(x: Tensor, rows: int) -> Tensor:
    """Return x (B, ...) as so many rows, a multiple of B: x itself, or x over and over (x, x, ...)."""
    return x if len(x) == rows else x.repeat(rows // len(x), *[1] * (x.ndim - 1))


def zeroed(module: nn.Module) -> nn.Module:
    """Zero a module's parameters: a residual branch that starts as the identity trains more steadily."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
)


class Linear(nn.Linear):
    """nn.Linear, which in float32 on a CPU with AVX-512 goes through oneDNN while its weight is not trained, as the
    convolutions do.

    PyTorch itself gives the product to MKL, which reaches about half of an AMD core with AVX-512, and adds the
    bias in a pass of its own. With AVX2 alone MKL is the quicker one: an EPYC core took 0.56 to 1.00 of oneDNN's
    time in 25 of 26 shapes of this package's networks.
    """

    def forward(self, x: Tensor) -> Tensor:
        if ONEDNN and x.is_cpu and x.dtype == self.weight.dtype == torch.float32:
            if not torch.is_grad_enabled():
                return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            if not self.weight.requires_grad and not torch.is_autocast_enabled("cpu"):
                return FrozenLinear.apply(x, self.weight, self.bias)
        return super().forward(x)


class FrozenLinear(torch.autograd.Function):
    """x W^T + b through oneDNN, with the gradient of x alone: g W.

    That product is left to MKL: oneDNN would turn W around in memory each time, and was slower at most sizes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return gradient @ weight, None, None


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions with the time embedding added between them, around a skip connection.

    Ref: Ho et al. 2020, arXiv 2006.11239, appendix B; names as in Latent Diffusion.
    """

    def __init__(self, channels: int, embedding: int, out_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels), nn.SiLU(), Conv3x3(channels, out_channels)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(embedding, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, out_channels),
            nn.SiLU(),
            nn.Identity(),  # dropout in the published code: keeps the convolution at index 3
            zeroed(Conv3x3(out_channels, out_channels)),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: (B, C, H, W); embedding: (B, E). Returns (B, out_channels, H, W)."""
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class EndPadded(nn.Conv2d):
    """A convolution that sees zeros to the right and below, nowhere else."""

    ends = (0, 1, 0, 1)  # left, right, above, below

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.ends))


class Downsample(nn.Module):
    """Halve both sides with a strided 3 x 3 convolution, padded on all sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Enlarge to `size` (nearest), then a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """x: (B, C, h, w); size: (H, W), twice (h, w) or the odd size that the skip connection has."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
