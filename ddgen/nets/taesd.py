"""TAESD, a tiny autoencoder that imitates the big one in a fraction of its time and memory.

    decode(z) = 2 D(3 tanh(z / 3)) - 1,    encode(x) = E((x + 1) / 2)

Latents are those the U-Net sees, already scaled: no scale factor here. Parameter names are those of the
published `taesd_encoder` and `taesd_decoder` files under `encoder.` and `decoder.`; index 0 of the decoder is
the squashing, which has no weights.

Ref: Ollin Boer Bohan 2023, github.com/madebyollin/taesd.
"""

import torch
from torch import Tensor, nn

from ddgen.nets.config import TinyConfig


class Block(nn.Module):
    """Three convolutions around a skip: relu(conv(x) + x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + x).relu_()


class Squash(nn.Module):
    """Soft clamp of latents to (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def encoder(latent_channels: int, width: int) -> nn.Sequential:
    """Images in [0, 1] -> latents: three strided stages of three blocks."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), Block(width)]
    for _ in range(3):
        layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
        layers.extend(Block(width) for _ in range(3))
    return nn.Sequential(*layers, nn.Conv2d(width, latent_channels, 3, padding=1))


def decoder(latent_channels: int, width: int) -> nn.Sequential:
    """Latents -> images in [0, 1]: three stages of three blocks, each followed by nearest upsampling."""
    layers: list[nn.Module] = [
        Squash(),
        nn.Conv2d(latent_channels, width, 3, padding=1),
        nn.ReLU(inplace=True),
    ]
    for _ in range(3):
        layers.extend(Block(width) for _ in range(3))
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, Block(width), nn.Conv2d(width, 3, 3, padding=1))


class TinyAutoencoder(nn.Module):
    """Images in [-1, 1] <-> scaled latents of a Stable Diffusion family."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.factor = config.factor
        self.channels = config.channels
        self.encoder = encoder(config.latent_channels, config.width)
        self.decoder = decoder(config.latent_channels, config.width)

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents (B, C, H/8, W/8) of images (B, 3, H, W) in [-1, 1]."""
        return self.encoder((images + 1) / 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, 8h, 8w), about in [-1, 1], from latents (B, C, h, w)."""
        return self.decoder(latents) * 2 - 1
