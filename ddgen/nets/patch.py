"""The lossless first stage of networks that work on pixels: patches of pixels become channels.

    latents[c f^2 + i f + j, y, x] = images[c, f y + i, f x + j],   f = factor

It has no weights and rounds nothing; it offers the interface of the autoencoders, so that nobody has to ask
which one is there.
"""

from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ddgen.nets.config import PatchConfig


class PatchStage(nn.Module):
    """Images in [-1, 1] <-> the same numbers with patches as channels."""

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.config = config
        self.factor = config.factor
        self.channels = config.channels

    def encode(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W) as latents (B, 3 f^2, H/f, W/f)."""
        return pixel_unshuffle(images, self.factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Return latents (B, 3 f^2, h, w) as images (B, 3, f h, f w)."""
        return pixel_shuffle(latents, self.factor)
