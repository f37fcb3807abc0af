"""Low-rank changes of frozen layers, for training: y = W x + s B (A x), s = alpha / rank.

Of a k x k convolution A is one of k x k too, with the layer's stride and padding, and B one of 1 x 1 ("LoCon").

A layer keeps its class, its names and its weights: a change is attached to it and taken off again, so that what
reads the network's state sees the base alone. A starts random and B at zero: training begins at the base model.
Ref: Hu et al. 2021, arXiv 2106.09685, section 4.1.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "mlp.fc1", "mlp.fc2")
BLOCKS = ("in_layers.2", "out_layers.3", "emb_layers.1", "skip_connection", "op", "conv")
TARGETS = {
    "attention": ATTENTION,
    "transformer": ATTENTION + FEED_FORWARD,
    "all": ATTENTION + FEED_FORWARD + BLOCKS,
}
"""Which layers are changed, by the ends of their names."""


@dataclass(frozen=True)
class Factors:
    """down: A (rank, in) or (rank, in, k, k). up: B (out, rank) or (out, rank, 1, 1). scale: s."""

    down: Tensor
    up: Tensor
    scale: float


class LowRanks(nn.Module):
    """The factors for many layers, by any names; their parameters are "NAME.down" and "NAME.up" with "/" for
    the dots of NAME.
    """

    def __init__(self, layers: Mapping[str, nn.Module], rank: int, alpha: float) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        self.names = tuple(layers)
        for name, layer in layers.items():
            weight = layer.weight
            assert isinstance(weight, Tensor)
            ends = weight.shape[2:]
            made = nn.Module()
            made.down = nn.Parameter(weight.new_empty(rank, weight.shape[1], *ends, dtype=torch.float32))
            made.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank, *[1] * len(ends), dtype=torch.float32))
            nn.init.kaiming_uniform_(made.down, a=math.sqrt(5))
            self.add_module(name.replace(".", "/"), made)

    def factors(self, state: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, Factors]]:
        """Yield every layer's name with its factors: the parameters, or those of another state of them."""
        held = dict(self.named_parameters()) if state is None else state
        for name in self.names:
            key = name.replace(".", "/")
            yield name, Factors(held[f"{key}.down"], held[f"{key}.up"], self.alpha / self.rank)


def targets(network: nn.Module, ends: tuple[str, ...]) -> dict[str, nn.Module]:
    """Return the linear layers and convolutions whose names end so, in order."""
    return {
        name: module
        for name, module in network.named_modules()
        if name.endswith(tuple(f".{end}" for end in ends)) and isinstance(module, nn.Linear | nn.Conv2d)
    }


def attach(layer: nn.Module, factors: Factors) -> None:
    """Let a layer add its low-rank change to what it gives."""
    kind = _convolution if isinstance(layer, nn.Conv2d) else _linear
    layer.forward = partial(kind, layer, factors)  # type: ignore[method-assign]


def detach(layer: nn.Module) -> None:
    """Take the change of a layer off."""
    layer.__dict__.pop("forward", None)


def shared(module: nn.Module) -> nn.Module:
    """Return a module alike that shares all tensors, to carry other changes."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def _linear(layer: nn.Linear, factors: Factors, x: Tensor) -> Tensor:
    base = type(layer).forward(layer, x)
    inner = F.linear(x, factors.down)
    if base.dtype != inner.dtype or torch.is_autocast_enabled(x.device.type):
        return base + factors.scale * F.linear(inner, factors.up)
    # One product that adds as it goes: no tensor for the change, none for the scaled one.
    flat = torch.addmm(
        base.flatten(0, -2), inner.flatten(0, -2), factors.up.T, alpha=factors.scale
    )
    return flat.unflatten(0, base.shape[:-1])


def _convolution(layer: nn.Conv2d, factors: Factors, x: Tensor) -> Tensor:
    inner = F.conv2d(x, factors.down, None, layer.stride, layer.padding, layer.dilation)
    return type(layer).forward(layer, x) + factors.scale * F.conv2d(inner, factors.up)
