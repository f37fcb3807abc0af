"""What a guided step on the processor spends its time on, ours and diffusers' in turn: python -m bench.profile

Of each kind of operation its share of the step and its seconds, the five that cost the most first; the matrix
products hold what oneDNN and MKL do inside them, which is where weights and maps change their order in memory.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from bench import networks

TOP = 5
KINDS = {
    # bmm: the products of Winograd's convolutions; attention is one operation here.
    "convolution": ("mkldnn_convolution", "thnn_conv2d", "_slow_conv2d_forward", "_convolution_pointwise", "bmm"),
    "linear": ("addmm", "mm", "_linear_pointwise"),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu", "baddbmm", "_softmax"),
    "norm": ("native_group_norm", "native_layer_norm"),
    "activation": ("silu", "silu_", "gelu"),
    "copy": ("copy_", "cat", "repeat", "upsample_nearest2d", "upsample_nearest2d_out"),
    "add, multiply": ("add", "add_", "mul", "mul_", "sub", "div"),
}
_KIND = {operation: kind for kind, operations in KINDS.items() for operation in operations}


def by_kind(operations: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the seconds of each kind. operations: (name as the profiler has it, seconds of its own)."""
    found: dict[str, float] = {}
    for name, seconds in operations:
        kind = _KIND.get(name.split("::")[-1], "other")
        found[kind] = found.get(kind, 0.0) + seconds
    return found


def spent(call: Callable[[], object]) -> dict[str, float]:
    """Return the seconds that one call spends on each kind."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    return by_kind((event.key, event.self_cpu_time_total / 1e6) for event in profiler.key_averages())


def rows(ours: Mapping[str, float], peer: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Return kind, share and seconds of both, the costliest of ours first; below the top the rest as one, then
    the sum."""
    kinds = sorted({*ours, *peer} - {"other"}, key=lambda kind: -ours.get(kind, 0.0))

    def line(name: str, parts: Iterable[str]) -> tuple[str, ...]:
        parts = list(parts)
        cells = [name]
        for side in (ours, peer):
            seconds = sum(side.get(part, 0.0) for part in parts)
            cells += [f"{100 * seconds / sum(side.values()):.1f} %", f"{seconds:.3f} s"]
        return tuple(cells)

    return [
        *(line(kind, [kind]) for kind in kinds[:TOP]),
        line("the rest", [*kinds[TOP:], "other"]),
        line("all", [*kinds, "other"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--family", default="SD15", choices=("SD15", "SDXL"), help="whose shape (SD15)")
    parser.add_argument("--side", type=int, default=64, help="latent cells of a side (64: 512 pixels)")
    parser.add_argument("--repeats", type=int, default=3, help="profiled steps of each side (3)")
    arguments = parser.parse_args()
    given = (arguments.family, str(arguments.side), "1")
    samples: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    with torch.inference_mode():
        calls = [networks.step_ours(*given)[0], networks.step_diffusers(*given)[0]]
        for call in calls:
            call()
        for i in range(arguments.repeats):
            for side in (0, 1)[:: 1 if i % 2 == 0 else -1]:
                samples[side].append(spent(calls[side]))
    ours, peer = (
        {kind: median(sample.get(kind, 0.0) for sample in side) for kind in set().union(*side)} for side in samples
    )
    pixels = 8 * arguments.side
    shown = Table("kind", "ddgen", "", "diffusers", "", title=f"a guided step, {arguments.family}, {pixels} x {pixels}")
    for row in rows(ours, peer):
        shown.add_row(*row)
    Console().print(shown)


if __name__ == "__main__":
    main()
