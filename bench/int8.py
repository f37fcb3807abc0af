"""A network's linear layers with weights of 8 bits, scaled by output channel; x is rounded anew at every call.

    y = s_x s_w (q_x - z_x) q_w^T + b        cf. Jacob et al. 2018, arXiv 1712.05877, eq. 1

Through PyTorch's fbgemm kernels. x gets 7 bits, as in PyTorch's own dynamic layers: with 8, sums of two products
saturate 16 bits on processors without VNNI.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

HIGHEST = 127


def packed(weight: Tensor, bias: Tensor | None) -> Any:
    """Return a layer's weight (out, in) as the kernel takes it."""
    scales = (weight.abs().amax(1).double() / HIGHEST).clamp(min=torch.finfo(torch.float32).tiny)
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantize_per_channel")  # to be removed from PyTorch one day
        rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(rounded, bias)


def multiplied(pack: Any, x: Tensor) -> Tensor:
    return torch.ops.quantized.linear_dynamic(x, pack, reduce_range=True)


@contextmanager
def int8(network: nn.Module) -> Iterator[None]:
    """Have all linear layers of a float32 network on the processor compute in 8 bits while inside."""
    layers: list[Any] = [module for module in network.modules() if isinstance(module, nn.Linear)]
    packs: dict[tuple[int, int], Any] = {}  # layers that share a weight share what it is packed to
    for layer in layers:
        weight, bias = layer.weight, layer.bias
        key = id(weight), id(bias)
        if key not in packs:
            packs[key] = packed(weight.detach(), None if bias is None else bias.detach())
        layer.forward = partial(multiplied, packs[key])
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
