"""Attention over the places of a feature map, and from them to the words of the prompt.

    attention(q, k, v) = softmax(q k^T / sqrt(d)) v        Vaswani et al. 2017, arXiv 1706.03762, eq. 1

A SpatialTransformer flattens a feature map to H W tokens and runs blocks of self-attention, cross-attention
to the text and a gated feed-forward. A text does not change from step to step: inside `remembering`, its keys
and values are computed once. Names are those of the published Latent Diffusion checkpoints.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ddgen.nets.layers import GROUPS, Linear, for_rows, zeroed

REMEMBERED = 2  # texts: that of a guided step, and that of an unguided one


class Attention(nn.Module):
    """Multi-head attention; queries from x, keys and values from `context` (or from x itself)."""

    def __init__(self, width: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(width, width, bias=False)
        self.to_k = Linear(context_dim, width, bias=False)
        self.to_v = Linear(context_dim, width, bias=False)
        self.to_out = nn.Sequential(Linear(width, width))
        self.memory: list[tuple[Tensor, Tensor, Tensor]] | None = None  # (context, k, v), the last one first

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, N, width); context: (B, M, context_dim), default x. Returns (B, N, width)."""
        q = self._split(self.to_q(x))
        k, v = self._read(x) if context is None else self._recall(context)
        out = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, width / heads)
        return self.to_out(out.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, context: Tensor) -> Tensor:
        """Return softmax(q k^T / sqrt(d)), mean over the heads: (B, N, M), how much of each state a place
        reads.

        For those who look on: `forward` never holds them.
        """
        q, k = self._split(self.to_q(x)), self._split(self.to_k(context))
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).float().softmax(-1).mean(1)

    def _read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def _recall(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a text; inside `remembering`, those of before if it is the same
        tensor."""
        if self.memory is None:
            return self._read(context)
        for seen, k, v in self.memory:
            if seen is context:
                return k, v
        k, v = self._read(context)
        self.memory = [(context, k, v), *self.memory[: REMEMBERED - 1]]
        return k, v

    def _split(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, width / heads)


class GEGLU(nn.Module):
    """h * gelu(g) with (h, g) two halves of one projection. Ref: Shazeer 2020, arXiv 2002.05202, eq. 6."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        h, gate = self.proj(x).chunk(2, dim=-1)
        return h * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated MLP, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(width, 4 * width),
            nn.Identity(),  # dropout in the published code: keeps the projection at index 2
            Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each behind a layer norm and around a residual."""

    def __init__(self, width: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.attn2 = Attention(width, context_dim, heads)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, N, width); context: (B, M, context_dim), or n B texts: the row of x is then read by each.

        Returns as many rows as context has.
        """
        x = for_rows(x + self.attn1(self.norm1(x)), len(context))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """`depth` transformer blocks over a feature map, with a residual around all of them.

    Ref: Rombach et al. 2022, arXiv 2112.10752, appendix E.2.1.
    """

    def __init__(
        self, channels: int, context_dim: int, heads: int, depth: int, linear_projection: bool
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        projection = Linear if linear_projection else lambda i, o: nn.Conv2d(i, o, 1)
        self.proj_in = projection(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, context_dim, heads) for _ in range(depth)
        )
        self.proj_out = zeroed(projection(channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, C, H, W); context: (B or n B, M, context_dim). Returns (B or n B, C, H, W)."""
        height, width = x.shape[-2:]
        h = self.norm(x)
        if self.linear_projection:
            h = self.proj_in(h.flatten(2).transpose(1, 2))  # (B, HW, C)
        else:
            h = self.proj_in(h).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h, context)
        x = for_rows(x, len(h))
        if self.linear_projection:
            return x + self.proj_out(h).transpose(1, 2).unflatten(2, (height, width))
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, (height, width)))


@contextmanager
def remembering(networks: Iterable[object]) -> Iterator[None]:
    """Have the cross-attention of networks keep the keys and values of the texts it last read, while inside.

    A text is known again by being the same tensor; it, and the weights, must not be changed meanwhile.
    """
    modules = [
        block.attn2
        for network in networks
        if isinstance(network, nn.Module)
        for block in network.modules()
        if isinstance(block, TransformerBlock)
    ]
    for module in modules:
        module.memory = []
    try:
        yield
    finally:
        for module in modules:
            module.memory = None


Take = Callable[[Tensor, tuple[int, int]], None]


@contextmanager
def watched(network: nn.Module, take: Take) -> Iterator[None]:
    """Show a network's cross-attention to `take` while inside.

    It is given (1, H W, M) weights of the batch's last row, and (H, W). By hooks, so that a network that
    nobody watches has nothing of it.
    """
    found = [module for module in network.modules() if isinstance(module, SpatialTransformer)]
    hooks = [hook for module in found for hook in _watch(module, take)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _watch(transformer: SpatialTransformer, take: Take) -> Iterator[RemovableHandle]:
    size = (0, 0)

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal size
        size = (inputs[0].shape[-2], inputs[0].shape[-1])

    def show(module: Attention, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        take(module.weights(inputs[0][-1:], inputs[1][-1:]), size)

    yield transformer.register_forward_pre_hook(note)
    for block in transformer.transformer_blocks:
        yield block.attn2.register_forward_hook(show)
