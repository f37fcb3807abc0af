"""Curves of schedules and spacings: numbers first, then a figure through matplotlib, or lines of text for a
terminal.

schedule   sigma and SNR over the trained time, 0 = picture, 1 = noise
spacing    where the steps of a run fall between the highest and the lowest noise
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddgen.errors import ResourceError
from ddgen.io.figures import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ddgen.diffusion.schedule import Schedule
    from ddgen.diffusion.spacing import Grid

POINTS = 401
MARKS = "*o+x#%@=&$"
PANELS = (("sigma, noise to signal", 1), ("SNR = 1 / sigma^2, signal to noise", -2))


@dataclass(frozen=True)
class Curve:
    """sigma over fractions of the trained time."""

    name: str
    times: tuple[float, ...]
    sigmas: tuple[float, ...]


def curve(name: str, schedule: Schedule, points: int = POINTS) -> Curve:
    """Return sigma at evenly spread times of a schedule's trained range."""
    low, high = schedule.time_min, schedule.time_max
    fractions = tuple(i / (points - 1) for i in range(points))
    return Curve(
        name, fractions, tuple(schedule.sigma(low + (high - low) * fraction) for fraction in fractions)
    )


def schedule_text(curves: Sequence[Curve], width: int, height: int = 12) -> list[str]:
    """Return the panels as lines of ASCII: sigma, then SNR, both on logarithmic scales, a mark for each
    schedule."""
    lines = [f"  {MARKS[i % len(MARKS)]} {item.name}" for i, item in enumerate(curves)]
    for title, power in PANELS:
        logs = [[power * math.log10(sigma) for sigma in item.sigmas] for item in curves]
        low, high = min(map(min, logs)), max(map(max, logs))
        across = max(20, width - 10)
        canvas = [[" "] * across for _ in range(height)]
        for i, values in enumerate(logs):
            for column in range(across):
                value = values[round(column * (len(values) - 1) / (across - 1))]
                row = round((high - value) / max(high - low, 1e-12) * (height - 1))
                # Where curves lie on each other, their marks take turns.
                if canvas[row][column] == " " or (column // 3) % len(curves) == i:
                    canvas[row][column] = MARKS[i % len(MARKS)]
        lines += ["", title]
        for row, cells in enumerate(canvas):
            value = 10 ** (high - (high - low) * row / (height - 1))
            label = number(value) if row in (0, height // 2, height - 1) else ""
            lines.append(f"{label:>8} |{''.join(cells).rstrip()}")
        lines.append(" " * 9 + "+" + "-" * across)
        lines.append(" " * 10 + f"{'0, the picture':<{across - 8}}1, noise")
    lines.append(" " * 10 + "part of the trained time")
    return lines


def spacing_text(grids: Sequence[tuple[str, Grid]], schedule: Schedule, width: int) -> list[str]:
    """Return one line a spacing, an `o` where a step starts, over sigma on a logarithmic scale."""
    left = max(len(name) for name, _ in grids) + 2
    across = max(24, width - left - 2)
    high, low = _ends(grids, schedule)

    def place(sigma: float) -> int:
        return round((high - math.log10(sigma)) / max(high - low, 1e-12) * (across - 1))

    lines = []
    for name, grid in grids:
        cells = ["."] * across
        for sigma in grid.sigmas:
            if sigma > 0:
                cells[place(sigma)] = "o"
        lines.append(f"{name:<{left}}{''.join(cells)}")
    ruler, labels = [" "] * across, [" "] * (across + 8)
    for power in range(math.ceil(low), math.floor(high) + 1):
        at = place(10.0**power)
        ruler[at] = "|"
        text = number(10.0**power)
        if all(c == " " for c in labels[max(0, at - 1) : at + len(text) + 1]):
            labels[at : at + len(text)] = text
    lines.append(" " * left + "".join(ruler).rstrip())
    lines.append(f"{'sigma':<{left}}" + "".join(labels).rstrip())
    lines.append(" " * left + f"{'noise':<{across - 7}}picture")
    return lines


def schedule_figure(curves: Sequence[Curve], kind: str) -> bytes:
    """Return the panels as a file: "png" or "svg".

    Raises:
        ResourceError: matplotlib is not installed.
    """
    figure = _figure(10, 4.2)
    for panel, (title, power) in enumerate(PANELS, 1):
        axes = figure.add_subplot(1, 2, panel)
        for item in curves:
            axes.semilogy(item.times, [sigma**power for sigma in item.sigmas], label=item.name, linewidth=2)
        axes.set_title(title)
        axes.set_xlabel("part of the trained time: 0 the picture, 1 noise")
        axes.grid(True, alpha=0.3)
        axes.set_xlim(0, 1)
    figure.axes[0].legend()
    return _saved(figure, kind)


def spacing_figure(grids: Sequence[tuple[str, Grid]], schedule: Schedule, kind: str, title: str) -> bytes:
    """Return where the steps fall as a file: "png" or "svg".

    Raises:
        ResourceError: matplotlib is not installed.
    """
    figure = _figure(10, 1.6 + 0.42 * len(grids))
    axes = figure.add_subplot(1, 1, 1)
    high, low = _ends(grids, schedule)
    for row, (name, grid) in enumerate(grids):
        levels = [sigma for sigma in grid.sigmas if sigma > 0]
        axes.plot(levels, [row] * len(levels), "o-", label=name, markersize=7, linewidth=1, alpha=0.9)
    axes.set_xscale("log")
    room = (high - low) * 0.03
    axes.set_xlim(10 ** (high + room), 10 ** (low - room))
    axes.set_ylim(len(grids) - 0.4, -0.6)
    axes.set_yticks(range(len(grids)), [name for name, _ in grids])
    axes.set_xlabel("sigma: noise on the left, the picture on the right")
    axes.set_title(title)
    axes.grid(True, axis="x", alpha=0.3)
    return _saved(figure, kind)


def check_matplotlib() -> None:
    """Find matplotlib, without importing it.

    Raises:
        ResourceError: it is not installed.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ResourceError(
            "matplotlib, which draws pictures of curves, is not installed",
            "pip install 'ddgen[plot]', or leave out --output for curves in the terminal",
            id="resource.plot",
        )


def _ends(grids: Sequence[tuple[str, Grid]], schedule: Schedule) -> tuple[float, float]:
    """Return log10 of the highest and the lowest level to show."""
    levels = [sigma for _, grid in grids for sigma in grid.sigmas if sigma > 0]
    return math.log10(max(*levels, schedule.sigma_max)), math.log10(min(*levels, schedule.sigma_min))


def _figure(width: float, height: float) -> Figure:
    check_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _saved(figure: Figure, kind: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # No date and no random ids: equal calls give equal bytes.
    with matplotlib.rc_context({"svg.hashsalt": "ddgen"}):
        figure.savefig(
            buffer, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else {"Software": None}
        )
    return buffer.getvalue()
