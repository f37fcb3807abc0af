"""A T2I-Adapter: a small network that reads a control picture once, whose features are added to a U-Net on its
way down, one a level.

    f_0 = stage_0(conv_in(unshuffle(picture)));  f_i = stage_i(pool(f_(i-1)))

It sees neither noise nor time nor text, so it costs nothing at the steps. "full" adapters pool before every
stage but the first, those for SDXL before the third alone; "light" ones are narrower inside. Names are those
of the published files. Ref: Mou et al. 2023, arXiv 2302.08453.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

XL_FACTOR = 16


@dataclass(frozen=True)
class AdapterConfig:
    """The shape of an adapter.

    colours: channels of the picture, 3 or 1. factor: how many times smaller than the picture the first
    feature is. channels: of each feature. blocks: ResBlocks a stage. light: narrow inside.
    """

    colours: int = 3
    factor: int = 8
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    light: bool = False

    def pools(self, stage: int) -> bool:
        """Tell whether a stage begins with pooling."""
        return stage == 2 if self.factor == XL_FACTOR else stage > 0


class Block(nn.Module):
    """h + conv(relu(conv(h))), behind a projection where the width changes."""

    def __init__(self, channels: int, out_channels: int, kernel: int = 1) -> None:
        super().__init__()
        self.in_conv = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None
        self.block1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.block2 = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.in_conv is None else self.in_conv(x)
        return x + self.block2(F.relu(self.block1(x)))


class LightStage(nn.Module):
    """Blocks a quarter as wide as what comes out."""

    def __init__(self, channels: int, out_channels: int, blocks: int) -> None:
        super().__init__()
        width = out_channels // 4
        self.in_conv = nn.Conv2d(channels, width, 1)
        self.body = nn.Sequential(*(Block(width, width, 3) for _ in range(blocks)))
        self.out_conv = nn.Conv2d(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_conv(self.body(self.in_conv(x)))


class T2IAdapter(nn.Module):
    """The network. Build it on the `meta` device and load weights."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        first = config.colours * config.factor**2
        widths = [first if config.light else config.channels[0], *config.channels]
        if not config.light:
            self.conv_in = nn.Conv2d(first, config.channels[0], 3, padding=1)
        parts: list[nn.Module] = []
        for before, width in zip(widths, config.channels, strict=False):
            if config.light:
                parts.append(LightStage(before, width, config.blocks))
            else:
                parts += [Block(width if i else before, width) for i in range(config.blocks)]
        self.body = nn.ModuleList(parts)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """picture: (B, 3, H, W) in [0, 1]. Returns one feature a stage, (B, channels[i], h_i, w_i)."""
        if self.config.colours == 1:
            grey = picture.new_tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
            picture = (picture * grey).sum(1, keepdim=True)
        x = F.pixel_unshuffle(picture, self.config.factor)
        x = x if self.config.light else self.conv_in(x)
        each = 1 if self.config.light else self.config.blocks
        features = []
        for stage in range(len(self.config.channels)):
            if self.config.pools(stage):
                x = F.avg_pool2d(x, 2, ceil_mode=True)
            for block in self.body[stage * each : (stage + 1) * each]:
                x = block(x)
            features.append(x)
        return features
