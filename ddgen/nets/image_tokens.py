"""From what a CLIP vision tower sees in a picture to tokens that a U-Net can read beside its text; and how it
reads them.

    plain   (B, E) projected embedding -> Linear -> 4 tokens -> norm
    plus    (B, N, E) penultimate states -> resampler, 16 learnt queries -> norm
    full    (B, N, E) penultimate states -> MLP -> N tokens -> norm

    attention(q, K text, V text) + s attention(q, K' tokens, V' tokens), with the same q, before the output
    projection

Names are those of the published IP-Adapter files, below `image_proj.`; K' and V' are one pair of matrices for
each cross-attention. Ref: Ye et al. 2023 (IP-Adapter), arXiv 2308.06721, eq. 5; the resampler: Alayrac et al.
2022 (Flamingo), arXiv 2204.14198.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddgen.nets.attention import Attention
from ddgen.nets.config import HEAD, TokensConfig
from ddgen.nets.unet import UNet


class Plain(nn.Module):
    def __init__(self, config: TokensConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.proj = nn.Linear(config.seen, config.tokens * config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, seen: Tensor) -> Tensor:
        return self.norm(self.proj(seen).unflatten(-1, (self.tokens, -1)))


class Full(nn.Module):
    def __init__(self, config: TokensConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(config.seen, config.seen),
            nn.GELU(),
            nn.Linear(config.seen, config.width),
            nn.LayerNorm(config.width),
        )

    def forward(self, seen: Tensor) -> Tensor:
        return self.proj(seen)


class Perceiver(nn.Module):
    """Queries look at the states and at themselves."""

    def __init__(self, config: TokensConfig) -> None:
        super().__init__()
        self.heads, inside = config.heads, config.heads * HEAD
        self.norm1, self.norm2 = nn.LayerNorm(config.inner), nn.LayerNorm(config.inner)
        self.to_q = nn.Linear(config.inner, inside, bias=False)
        self.to_kv = nn.Linear(config.inner, 2 * inside, bias=False)
        self.to_out = nn.Linear(inside, config.inner, bias=False)

    def forward(self, states: Tensor, queries: Tensor) -> Tensor:
        states, queries = self.norm1(states), self.norm2(queries)
        k, v = self.to_kv(torch.cat([states, queries], dim=1)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(queries), k, v))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    def __init__(self, config: TokensConfig) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(1, config.tokens, config.inner))
        self.proj_in = nn.Linear(config.seen, config.inner)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Perceiver(config),
                    nn.Sequential(
                        nn.LayerNorm(config.inner),
                        nn.Linear(config.inner, config.feed, bias=False),
                        nn.GELU(),
                        nn.Linear(config.feed, config.inner, bias=False),
                    ),
                ]
            )
            for _ in range(config.depth)
        )
        self.proj_out = nn.Linear(config.inner, config.width)
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, seen: Tensor) -> Tensor:
        states, queries = self.proj_in(seen), self.latents.expand(len(seen), -1, -1)
        for look, feed in self.layers:  # type: ignore[misc]
            queries = queries + look(states, queries)
            queries = queries + feed(queries)
        return self.norm_out(self.proj_out(queries))


PROJECTIONS = {"plain": Plain, "plus": Resampler, "full": Full}


class ImageReader(nn.Module):
    """An image prompt's weights: `image_proj`, and one K' and V' for each cross-attention of a U-Net.

    widths: (of what is made, of a token) for each, in the order of the files: way down, way up, middle.
    """

    def __init__(self, config: TokensConfig, widths: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.image_proj = PROJECTIONS[config.kind](config)
        self.to_k = nn.ModuleList(nn.Linear(config.width, width, bias=False) for width in widths)
        self.to_v = nn.ModuleList(nn.Linear(config.width, width, bias=False) for width in widths)


def cross_attentions(network: UNet) -> list[Attention]:
    """Return the modules that read the text, in the order of the published files."""
    parts = (network.input_blocks, network.output_blocks, network.middle_block)
    return [
        module
        for part in parts
        for name, module in part.named_modules()
        if name.endswith("attn2") and isinstance(module, Attention)
    ]


@contextmanager
def reading(
    network: UNet, readers: Sequence[tuple[ImageReader, float]], tokens: Sequence[Tensor]
) -> Iterator[None]:
    """Let a network read tokens, (B, n, D) for each reader, beside its text while inside.

    By hooks, so that a network without image prompts has nothing of them: to_out(a + s b) is to_out(a) + s W b.
    """

    def hook_of(index: int):  # type: ignore[no-untyped-def]
        def hook(module: Attention, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            q = module._split(module.to_q(given[0]))
            total = torch.zeros_like(given[0])
            for (reader, weight), seen in zip(readers, tokens, strict=True):
                k, v = (module._split(to[index](seen.to(q))) for to in (reader.to_k, reader.to_v))
                found = F.scaled_dot_product_attention(q, k, v)
                total = total + weight * found.transpose(1, 2).flatten(2)
            return output + F.linear(total, module.to_out[0].weight)  # type: ignore[arg-type]

        return hook

    hooks = [
        module.register_forward_hook(hook_of(index)) for index, module in enumerate(cross_attentions(network))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
