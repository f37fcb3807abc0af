"""The KL-regularised autoencoder of Latent Diffusion: images in [-1, 1] <-> latents of about unit variance.

    encode: latents = (mean(images) - m) scale_factor / s
    decode: images = D(latents s / scale_factor + m)

with m = 0, s = 1 but for checkpoints that give a mean and deviation per channel. Parameter names are those of
published files below `first_stage_model.`. It knows nothing of diffusion, nor of which precision is safe:
float16 overflows in some weights, the caller decides.

Ref: Rombach et al. 2022, arXiv 2112.10752, section 3.1 and appendix G.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, scaled_dot_product_attention, silu

from ddgen.nets.config import KLConfig
from ddgen.nets.layers import EndPadded
from ddgen.nets.seamless import seamless
from ddgen.nets.tiling import Tiling, in_tiles
from ddgen.nets.winograd import Conv3x3


def group_norm(channels: int) -> nn.GroupNorm:
    """The group norm of the autoencoder; its eps is 1e-6 everywhere, unlike the U-Net's."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two normalised convolutions around a skip; no time enters here."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = Conv3x3(channels, out_channels)
        self.norm2 = group_norm(out_channels)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.nin_shortcut = (
            nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x), inplace=True))
        h = self.conv2(silu(self.norm2(h), inplace=True))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Self-attention with one head over all places; projections are 1 x 1 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        h = scaled_dot_product_attention(q, k, v)  # (B, 1, HW, C)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(x.shape))


class Middle(nn.Module):
    """ResnetBlock, attention, ResnetBlock at the coarsest level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Halve both sides; padded at the right and at the bottom only, where the U-Net pads all sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = EndPadded(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Double both sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution; `downsample` or `upsample` lead to the next, if there is one."""

    def __init__(self, channels: int, out_channels: int, blocks: int) -> None:
        super().__init__()
        widths = [channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.upsample(self.downsample(x))


class Encoder(nn.Module):
    """Images -> mean and log variance.

    In two halves: `shrink` is local and holds nearly all the memory, `finish` looks everywhere.
    """

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        widths = [config.model_channels * m for m in config.channel_mult]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.in_channels * config.patch**2, config.model_channels, 3, padding=1)
        inputs = [config.model_channels, *widths[:-1]]
        self.down = nn.ModuleList(
            Level(a, b, config.num_res_blocks) for a, b in zip(inputs, widths, strict=True)
        )
        for level, width in zip(self.down[:-1], widths, strict=False):
            level.downsample = Downsample(width)
        self.mid = Middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def shrink(self, images: Tensor) -> Tensor:
        h = self.conv_in(pixel_unshuffle(images, self.patch))
        for level in self.down:
            h = level(h)
        return h

    def finish(self, h: Tensor) -> Tensor:
        return self.conv_out(silu(self.norm_out(self.mid(h)), inplace=True))


class Decoder(nn.Module):
    """Latents -> images.

    In two halves: `begin` looks everywhere, `grow` is local and holds nearly all the memory.
    """

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        widths = [config.model_channels * m for m in config.channel_mult]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        inputs = [*widths[1:], widths[-1]]
        # Level 0 is the finest, as in the encoder, and is run last.
        self.up = nn.ModuleList(
            Level(a, b, config.num_res_blocks + 1) for a, b in zip(inputs, widths, strict=True)
        )
        for level, width in zip(self.up[1:], widths[1:], strict=True):
            level.upsample = Upsample(width)
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.in_channels * config.patch**2, 3, padding=1)

    def begin(self, z: Tensor) -> Tensor:
        return self.mid(self.conv_in(z))

    def grow(self, h: Tensor) -> Tensor:
        for level in reversed(self.up):
            h = level(h)
        return pixel_shuffle(self.conv_out(silu(self.norm_out(h), inplace=True)), self.patch)


class AutoencoderKL(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] <-> latents (B, C, H/f, W/f).

    tiling:  when set, the fine levels run tile by tile; memory no longer grows with the picture, the result
             changes slightly. Its ring: the axes along which the convolutions run round (nets/seamless.py).
    slicing: run a batch image by image: less memory, the same result.
    """

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        self.config = config
        self.factor = config.factor
        self.channels = config.channels
        self.tiling: Tiling | None = None
        self.slicing = False
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latents before scaling, each (B, C, H/f, W/f)."""
        mean, logvar = self._sliced(self._moments, images).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return latents of images: the mode, or a sample when given standard normal noise of their shape."""
        mean, logvar = self.moments(images)
        z = mean if noise is None else mean + torch.exp(logvar / 2) * noise
        shift, scale = self._affine(z)
        return (z - shift) / scale

    def decode(self, latents: Tensor) -> Tensor:
        """Return images, about in [-1, 1], of latents."""
        shift, scale = self._affine(latents)
        return self._sliced(self._decode, latents * scale + shift)

    def _affine(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return m and s / scale_factor of the module's formula."""
        config = self.config
        if config.latents_mean is None or config.latents_std is None:
            return 0.0, 1 / config.scale_factor
        mean = like.new_tensor(config.latents_mean).view(1, -1, 1, 1)
        return mean, like.new_tensor(config.latents_std).view(1, -1, 1, 1) / config.scale_factor

    def _sliced(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.slicing and len(x) > 1:
            return torch.cat([function(one) for one in x.split(1)])
        return function(x)

    def _moments(self, images: Tensor) -> Tensor:
        h = self._tiled(self.encoder, self.encoder.shrink, images, cell_in=self.factor)
        return self.quant_conv(self.encoder.finish(h))

    def _decode(self, z: Tensor) -> Tensor:
        h = self.decoder.begin(self.post_quant_conv(z))
        return self._tiled(self.decoder, self.decoder.grow, h, cell_out=self.factor)

    def _tiled(
        self, of: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor, *, cell_in: int = 1, cell_out: int = 1
    ) -> Tensor:
        """Return the local function of a half; where its tiles go round, it does not run round in each of them."""
        tiling = self.tiling
        if tiling is None:
            return function(x)
        gone = tiling.round_axes(x.shape[-2] // cell_in, x.shape[-1] // cell_in)
        with seamless([of], "".join(axis for axis in tiling.ring if axis not in gone)):
            return in_tiles(function, x, tiling, cell_in=cell_in, cell_out=cell_out)
