"""The cross-attention U-Net of Latent Diffusion: F(x_t, time, text), shaped as the published checkpoints.

    x_t -> input_blocks (keep every output as a skip) -> middle_block -> output_blocks (join the skips) -> out

It knows nothing of noise levels, predictions or guidance: those are the Denoiser's (diffusion/denoiser.py).
Ref: Rombach et al. 2022, arXiv 2112.10752; Podell et al. 2023 (SDXL), arXiv 2307.01952. Names are the
checkpoints' keys.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddgen.nets.attention import SpatialTransformer
from ddgen.nets.config import UNetConfig
from ddgen.nets.layers import (
    GROUPS,
    Downsample,
    Linear,
    ResBlock,
    Upsample,
    for_rows,
    guidance_embedding,
    position_channels,
    timestep_embedding,
    zeroed,
)


class UNet(nn.Module):
    """The network F. Build it on the `meta` device and load weights into it, or train it from scratch.

    one_for_many: it takes n texts for one x_t, and computes once what lies before the first text is read (for
    SD1.5 at 512 x 512 a twentieth of a branch).
    """

    one_for_many = True

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        base, embedding = config.model_channels, 4 * config.model_channels

        self.time_embed = _mlp(base, embedding)
        if config.vector_dim:
            self.label_emb = nn.Sequential(_mlp(config.vector_dim, embedding))
        if config.guidance_dim:
            self.guidance_proj = Linear(config.guidance_dim, base, bias=False)

        def block(channels: int, out_channels: int, level: int, depth: int) -> nn.ModuleList:
            """One ResBlock, and a transformer behind it where the configuration has one."""
            parts: list[nn.Module] = [ResBlock(channels, embedding, out_channels)]
            if depth:
                heads = config.heads[level]
                linear = config.linear_projection
                parts.append(SpatialTransformer(out_channels, config.context_dim, heads, depth, linear))
            return nn.ModuleList(parts)

        widths = [base * m for m in config.channel_mult]
        last = len(widths) - 1
        channels = base
        skips = [base]
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(config.in_channels + config.position_channels, base, 3, padding=1)])]
        )
        for level, width in enumerate(widths):
            for depth in config.down_depth[level]:
                self.input_blocks.append(block(channels, width, level, depth))
                channels = width
                skips.append(channels)
            if level != last:
                self.input_blocks.append(nn.ModuleList([Downsample(channels)]))
                skips.append(channels)

        self.middle_block = nn.ModuleList()
        if config.mid_depth is not None:
            self.middle_block.extend(block(channels, channels, last, config.mid_depth))
            if config.mid_depth:
                self.middle_block.append(ResBlock(channels, embedding, channels))

        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for i, depth in enumerate(config.up_depth[level]):
                parts = block(channels + skips.pop(), widths[level], level, depth)
                channels = widths[level]
                if level and i == len(config.up_depth[level]) - 1:
                    parts.append(Upsample(channels))
                self.output_blocks.append(parts)

        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, channels),
            nn.SiLU(),
            zeroed(nn.Conv2d(channels, config.out_channels, 3, padding=1)),
        )

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        context: Tensor,
        vector: Tensor | None = None,
        guidance: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
        features: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return F(x_t, time, context), shaped like x_t with out_channels.

        x: (B, in_channels, h, w) x_t. time: (B,) float. context: (B, M, context_dim) states of the text, or
        n B of them: for each row of x the first B, then for each the next B, ...; n B rows are returned.
        vector: as many rows as context, (.., vector_dim), for networks that take one.
        guidance: (B,) scale w, for networks distilled with it.
        control: what is added to the skips, in order, and last to the middle.
        features: what is added on the way down, one a level (nets/t2i_adapter.py), and then to the middle.
        """
        rows = len(context)
        if vector is not None:  # it enters before any text does
            x, time = for_rows(x, rows), for_rows(time, rows)
        embedding = self._embed(time, vector, guidance, x.dtype)
        if self.config.position_channels:
            grid = position_channels(*x.shape[-2:], device=x.device, dtype=x.dtype)
            x = torch.cat([x, grid.expand(x.shape[0], -1, -1, -1)], dim=1)

        added = {} if features is None else dict(zip(self.feature_places, features, strict=False))
        skips = []
        for index, parts in enumerate(self.input_blocks):
            x = run_parts(parts, x, embedding, context)
            x = x + added[index] if index in added else x
            skips.append(x)
        x = run_parts(self.middle_block, x, embedding, context)
        x = x + added[-1] if -1 in added else x
        if control is not None:
            skips = [skip + added for skip, added in zip(skips, control[:-1], strict=True)]
            x = x + control[-1]
        for parts in self.output_blocks:
            x = for_rows(x, rows)
            x = torch.cat([x, for_rows(skips.pop(), rows)], dim=1)
            x = run_parts(parts, x, embedding, context, size=skips[-1].shape[-2:] if skips else None)
        return self.out(x)

    @property
    def feature_places(self) -> list[int]:
        """Return the input blocks behind which features are added: a level's last with attention; where it has
        none, the level's last of all. -1 is the middle."""
        places, index = [], 0
        levels = self.config.down_depth
        for level, depths in enumerate(levels):
            index += len(depths)
            ends = level < len(levels) - 1  # a level but the last ends with a Downsample
            places.append(index + 1 if ends and not any(depths) else index)
            index += ends
        return [*places, -1]

    def _embed(
        self, time: Tensor, vector: Tensor | None, guidance: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Return the (B, 4 model_channels) embedding of time, pooled text and guidance scale."""
        sinusoid = timestep_embedding(time, self.config.model_channels).to(dtype)
        if guidance is not None:
            scale = guidance_embedding(guidance, self.config.guidance_dim).to(dtype)
            sinusoid = sinusoid + self.guidance_proj(scale)
        embedding = self.time_embed(sinusoid)
        return embedding if vector is None else embedding + self.label_emb(vector)


def _mlp(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(Linear(width, out), nn.SiLU(), Linear(out, out))


def run_parts(
    parts: nn.ModuleList, x: Tensor, embedding: Tensor, context: Tensor, size: tuple[int, int] | None = None
) -> Tensor:
    """Run the modules of one block in order, each with the arguments that its kind takes."""
    for part in parts:
        if isinstance(part, ResBlock):
            x = part(x, for_rows(embedding, len(x)))
        elif isinstance(part, SpatialTransformer):
            x = part(x, context)
        elif isinstance(part, Upsample):
            x = part(x, size)
        else:
            x = part(x)
    return x
