"""The shapes of the networks, as frozen dataclasses: all that is needed to build one, nothing about what it was trained for.

Torch-free, so that a registry can hold them without importing the networks. Constants for the published families are in weights/arch.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetConfig:
    """A cross-attention U-Net as Latent Diffusion builds it (Rombach et al. 2022, arXiv 2112.10752).

    Levels are counted from the finest (0). Depths say how many transformer blocks follow a ResBlock; 0 is none.

    in_channels:       channels of x_t (4; 9 inpainting; 8 InstructPix2Pix; 192 for 8 x 8 RGB patches), without position channels.
    model_channels:    width of level 0; level i has model_channels * channel_mult[i].
    num_res_blocks:    ResBlocks per level on the way down; one more on the way up.
    down_depth:        per level, per ResBlock on the way down: (num_res_blocks,) each.
    up_depth:          per level (same order as down_depth, finest first), per ResBlock on the way up in order of execution: (num_res_blocks + 1,) each.
    mid_depth:         transformer blocks of the middle; 0 = a single ResBlock (SSD-1B, Vega); None = no middle block at all (tiny-sd).
    heads:             attention heads per level.
    linear_projection: proj_in / proj_out are Linear (SD2, SDXL) instead of 1 x 1 convolutions.
    vector_dim:        width of the pooled vector that enters through `label_emb` (0: none).
    guidance_dim:      width of the guidance-scale sinusoid of LCM networks (0: none).
    position_channels: constant coordinate channels that the network appends to its input (0 or 16).
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    down_depth: tuple[tuple[int, ...], ...] = ((1, 1), (1, 1), (1, 1), (0, 0))
    up_depth: tuple[tuple[int, ...], ...] = ((1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0))
    mid_depth: int | None = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    context_dim: int = 768
    linear_projection: bool = False
    vector_dim: int = 0
    guidance_dim: int = 0
    position_channels: int = 0

    @property
    def divisor(self) -> int:
        """Latent sides must be a multiple of this, or the up path meets skips of another size."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class KLConfig:
    """The KL-regularised autoencoder of Latent Diffusion (8 x smaller latents with 4 levels).

    patch:         patch x patch pixels become channels before the finest level and pixels again behind it (1: as published).
    scale_factor:  latents = (mean - shift) * scale_factor; Playground gives per-channel mean and std instead.
    force_upcast:  decoding in float16 overflows (SDXL): decode in float32.
    """

    in_channels: int = 3
    latent_channels: int = 4
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    scale_factor: float = 0.18215
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = False
    patch: int = 1

    @property
    def factor(self) -> int:
        return self.patch * 2 ** (len(self.channel_mult) - 1)

    @property
    def channels(self) -> int:
        return self.latent_channels


@dataclass(frozen=True)
class PatchConfig:
    """A lossless first stage for networks that work on pixels: factor x factor patches become channels."""

    factor: int = 8
    in_channels: int = 3

    @property
    def channels(self) -> int:
        return self.in_channels * self.factor**2


@dataclass(frozen=True)
class TinyConfig:
    """The tiny autoencoder TAESD (64 channels wide, latents as the network sees them)."""

    latent_channels: int = 4
    width: int = 64

    @property
    def factor(self) -> int:
        return 8

    @property
    def channels(self) -> int:
        return self.latent_channels


FirstStageConfig = KLConfig | PatchConfig | TinyConfig

HEAD = 64  # channels of a resampler's head


@dataclass(frozen=True)
class TokensConfig:
    """What makes tokens of a picture for a U-Net (nets/image_tokens.py). kind: "plain", "plus" or "full".

    seen: width of what the tower gives. width: of a token, as the U-Net reads it. tokens: how many (0: as
    many as states). inner, heads, depth: of the resampler; feed: width inside its MLPs.
    """

    kind: str
    seen: int
    width: int
    tokens: int = 4
    inner: int = 0
    heads: int = 0
    depth: int = 0
    feed: int = 0
