"""A ControlNet: the way down and the middle of a U-Net once more, reading a picture, whose outputs are added
to the U-Net's own before its way up.

    h = input_blocks[0](x_t) + hint(picture);  control_i = zero_conv_i(output i of the way down);  the middle
    alike

Names are those of the published files below `control_model.`. It knows neither weights of a control nor when
one ends: see app/control.py. Ref: Zhang et al. 2023, arXiv 2302.05543.
"""

from torch import Tensor, nn

from ddgen.nets.config import UNetConfig
from ddgen.nets.layers import zeroed
from ddgen.nets.unet import UNet, run_parts

HINT_CHANNELS = (16, 16, 32, 32, 96, 96, 256)
HINT_STRIDES = (1, 1, 2, 1, 2, 1, 2)
HINT_FACTOR = 8


class ControlNet(UNet):
    """The network beside a U-Net of the same configuration. Build it on the `meta` device and load
    weights."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        del self.output_blocks, self.out
        base = config.model_channels
        hint: list[nn.Module] = []
        channels = 3
        for width, stride in zip(HINT_CHANNELS, HINT_STRIDES, strict=True):
            hint += [nn.Conv2d(channels, width, 3, padding=1, stride=stride), nn.SiLU()]
            channels = width
        self.input_hint_block = nn.Sequential(*hint, zeroed(nn.Conv2d(channels, base, 3, padding=1)))
        widths = [base]
        for level, multiple in enumerate(config.channel_mult):
            widths += [base * multiple] * len(config.down_depth[level])
            if level < len(config.channel_mult) - 1:
                widths.append(base * multiple)
        self.zero_convs = nn.ModuleList(nn.ModuleList([zeroed(nn.Conv2d(w, w, 1))]) for w in widths)
        self.middle_block_out = nn.ModuleList([zeroed(nn.Conv2d(widths[-1], widths[-1], 1))])

    def hint(self, images: Tensor) -> Tensor:
        """Return what the first block is given of a control picture: (B, 3, 8 h, 8 w) in [0, 1] -> (B, C, h,
        w)."""
        return self.input_hint_block(images)

    def forward(  # type: ignore[override]
        self, x: Tensor, time: Tensor, context: Tensor, vector: Tensor | None, hint: Tensor
    ) -> list[Tensor]:
        """Return what is added to each skip of the U-Net, and last to its middle. Arguments as of UNet;
        hint: above."""
        embedding = self._embed(time, vector, None, x.dtype)
        found = []
        for index, parts in enumerate(self.input_blocks):
            x = run_parts(parts, x, embedding, context)
            x = x + hint if index == 0 else x
            found.append(self.zero_convs[index][0](x))
        x = run_parts(self.middle_block, x, embedding, context)
        return [*found, self.middle_block_out[0](x)]
