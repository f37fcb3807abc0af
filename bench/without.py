"""What each way of making a step quick is worth: the step with all of them, against the step without that one.

Beside each stands what it should gain, said before it was measured: counted on the networks' shapes where it saves
arithmetic, else reckoned as below.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from bench import networks
from bench.measure import Pair

SHAPE = ("SD15", 64, 1)
GIVEN = tuple(map(str, SHAPE))
PAGES = 3e9 / 4096  # that a step would touch anew
PAGE = 0.7e-6  # processor seconds for the kernel to find one, to clear it and to note it
STEP = 20.0  # processor seconds of a step on such cores
WEIGHTS, READING = 3.4e9, 10e9  # bytes; bytes a second


def _counted(*, keys: bool = True, prefix: bool = True) -> float:
    """Return the operations of a guided step. keys: those of the text are remembered. prefix: what lies before the
    first text is computed once."""
    from ddgen.nets.attention import remembering

    network, given, doubled = networks.described(*SHAPE)
    x = given["x"] if prefix else doubled

    def call() -> object:
        return network(x, x.new_zeros(len(x)), given["context"], given["vector"])

    if not keys:
        return networks.operations(call)
    with remembering([network]):
        call()
        return networks.operations(call)


def _spared() -> float:
    """Return the share of a step's operations that Winograd's convolutions save: three quarters of theirs."""
    from ddgen.nets.winograd import Conv3x3, pays

    network, given, x = networks.described(*SHAPE)
    saved = 0.0

    def note(layer: Conv3x3, given: tuple[torch.Tensor], result: torch.Tensor) -> None:
        nonlocal saved
        if pays(torch.empty(given[0].shape), layer.weight):
            saved += 0.75 * 2 * result.numel() * layer.weight[0].numel()

    for layer in network.modules():
        if isinstance(layer, Conv3x3):
            layer.register_forward_hook(note)
    total = networks.operations(lambda: network(x, x.new_zeros(len(x)), given["context"], given["vector"]))
    return saved / total


@dataclass(frozen=True)
class Way:
    """words: the step without it. predicted: the time with it over that without."""

    words: str
    predicted: Callable[[], float]


WAYS = {
    "keys": Way("keys and values of the text computed in every step", lambda: _counted() / _counted(keys=False)),
    "prefix": Way("both branches from the first layer on", lambda: _counted() / _counted(prefix=False)),
    "memory": Way("freed memory left to the C library", lambda: 1 - PAGES * PAGE / STEP),
    # A quarter of a step, in which with AVX2 MKL took 0.56 to 1.00 of oneDNN's time; with AVX-512 as much the other way.
    "linear": Way("linear layers through the other of MKL and oneDNN", lambda: 1 - 0.25 * (1 - 0.8)),
    "winograd": Way("all convolutions by the plain sum", lambda: 1 - _spared()),
    # The weights are read once, not twice; both cores wait for them.
    "batch": Way("the two branches one after the other", lambda: 1 - 2 * WEIGHTS / READING / STEP),
}


def row(name: str) -> Pair:
    from bench.rows import workers

    way = WAYS[name]
    step = networks.__name__ + ":step_ours"
    with torch.inference_mode():
        predicted = way.predicted()
    return workers(
        f"one guided step, SD1.5 shape, 512 x 512 (predicted: {predicted:.3f} x)",
        [step, *GIVEN],
        f"without: {way.words}",
        [step, *GIVEN, "cpu", name],
        repeats=2,
    )


ROWS: dict[str, Callable[[], Pair]] = {f"without-{name}": partial(row, name) for name in WAYS}
