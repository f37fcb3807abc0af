"""Pictures whose ends meet: while it lasts, convolutions see the opposite side where they saw zeros.

    with seamless([unet, decoder], "x"):  ...   the left neighbour of column 0 is the last column

Networks without positions become equivariant to rolling the picture along that axis; attention always was. A
network with position channels still knows where its canvas begins. Within another, the inner one decides.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from ddgen.nets.layers import EndPadded


@contextmanager
def seamless(networks: Iterable[object], axes: str) -> Iterator[None]:
    """Have the padded convolutions of some modules, which may be named twice, wrap around along "x", "y" or both, and
    along no other axis."""
    before = {
        layer: vars(layer).get("forward")
        for network in networks
        if isinstance(network, nn.Module)
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d) and any(_sides(layer))
    }
    for layer, forward in before.items():
        if axes:
            layer.forward = partial(_wrapped, layer, axes)  # type: ignore[method-assign]
        elif isinstance(forward, partial) and forward.func is _wrapped:
            del layer.forward
    try:
        yield
    finally:
        for layer, forward in before.items():
            vars(layer).pop("forward", None)
            if forward is not None:
                layer.forward = forward  # type: ignore[method-assign]


def _sides(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return how far a convolution reaches over the left, right, upper and lower end."""
    if isinstance(layer, EndPadded):
        return layer.ends
    down, across = layer.padding
    return int(across), int(across), int(down), int(down)


def _wrapped(layer: nn.Conv2d, axes: str, x: Tensor) -> Tensor:
    left, right, above, below = _sides(layer)
    for axis, sides in (("x", (left, right, 0, 0)), ("y", (0, 0, above, below))):
        x = pad(x, sides, mode="circular") if axis in axes else pad(x, sides)
    return conv2d(x, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
