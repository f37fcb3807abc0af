"""One picture under many settings: every combination of lists of values, laid out as a table. Torch-free; the
caller makes the pictures.

    --guidance 1,3,7  --steps 4,10,25  --sampler euler,ddim
    rows              columns          blocks

A cell is an ordinary Job, planned as `sample` plans it: its command makes the same picture.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from ddgen.errors import UsageError
from ddgen.io import figures, foreign, metadata
from ddgen.request import Job

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

MAX_CELLS = 256
AXES = ("guidance", "steps", "sampler", "spacing", "seed", "eta", "guidance_rescale", "rng")


@dataclass(frozen=True)
class Axis:
    """One setting and the values that it takes, as typed."""

    name: str
    values: tuple[str, ...]

    def label(self, at: int) -> str:
        """Return the words for one value."""
        return (
            self.values[at] if self.name == "prompt" else f"{self.name.replace('_', ' ')} {self.values[at]}"
        )


def check(axes: Sequence[Axis]) -> None:
    """Refuse a table that nobody can read.

    Raises:
        UsageError: no list, more than three, a value twice, or too many cells.
    """
    mend = 'as in: ddgen compare "a red apple" --guidance 1,3,7 --steps 4,10,25'
    if not axes:
        raise UsageError("nothing to compare, no setting has several values", mend, id="usage.compare")
    if len(axes) > 3:
        names = ", ".join(axis.name for axis in axes)
        raise UsageError(
            f"a table has at most three settings with lists, not {len(axes)} ({names})",
            "drop one",
            id="usage.compare",
        )
    for axis in axes:
        twice = next((value for value in axis.values if axis.values.count(value) > 1), None)
        if twice is not None:
            raise UsageError(
                f"--{axis.name.replace('_', '-')} lists '{twice}' twice", "name it once", id="usage.compare"
            )
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_CELLS:
        shape = " x ".join(str(len(axis.values)) for axis in axes)
        raise UsageError(
            f"{shape} = {count} cells are over the limit of {MAX_CELLS}",
            "use shorter lists",
            id="usage.compare",
        )


def places(axes: Sequence[Axis]) -> Iterator[tuple[int, ...]]:
    """Yield the place of every cell, one number an axis, the last running fastest."""
    return product(*(range(len(axis.values)) for axis in axes))


def groups(jobs: Sequence[Job], size: int | None) -> list[list[int]]:
    """Return which cells go through the network together: those of one grid, and apart those without
    guidance, which cost half.

    size: pictures per network call; None chooses by their area.
    """
    from ddgen.app.plan import batches

    alike: dict[Job, list[int]] = {}
    for index, job in enumerate(jobs):
        key = replace(job, prompt="", negative="", seed=0, guidance=float(job.guidance != 1))
        alike.setdefault(key, []).append(index)
    found = []
    for members in alike.values():
        lengths = (len(batch) for batch in batches((jobs[i] for i in members), size))
        at = 0
        for length in lengths:
            found.append(members[at : at + length])
            at += length
    return found


def figure(axes: Sequence[Axis], pictures: Sequence[Pixels], title: str) -> Pixels:
    """Return the table: one axis is a row, two are rows and columns, a third makes blocks."""
    cells = [figures.Cell(picture) for picture in pictures]
    if len(axes) == 1:
        across = axes[0]
        # Up to eight beside each other, each with its own label.
        labelled = [figures.Cell(cell.pixels, (across.label(i),)) for i, cell in enumerate(cells)]
        return figures.table(
            [figures.Block([labelled[at : at + 8] for at in range(0, len(labelled), 8)])], title
        )
    down, across = axes[0], axes[1]
    rows, columns = len(down.values), len(across.values)
    above = [across.label(i) for i in range(columns)]
    beside = [down.label(i) for i in range(rows)]
    blocks = []
    for k in range(len(axes[2].values) if len(axes) == 3 else 1):
        step = len(axes[2].values) if len(axes) == 3 else 1
        part = [cells[(r * columns + c) * step + k] for r in range(rows) for c in range(columns)]
        name = axes[2].label(k) if len(axes) == 3 else ""
        blocks.append(
            figures.Block(
                [part[at : at + columns] for at in range(0, rows * columns, columns)], name, above, beside
            )
        )
    return figures.table(blocks, title)


def command(job: Job, origin: metadata.Origin, running: Sequence[str]) -> str:
    """Return the command line that makes the picture of one cell, quoted for a shell.

    running: words that are no settings of the job, as ["--device", "cuda"].
    """
    from ddgen.app.gallery import command as spelled

    found = foreign.interpret({"ddgen": metadata.describe(job, origin).settings})
    assert found is not None
    head = "ddgen sample"
    return " ".join([head, *map(shlex.quote, running)]) + spelled(found).removeprefix(head)


def record(
    axes: Sequence[Axis], jobs: Sequence[Job], origin: metadata.Origin, running: Sequence[str]
) -> list[dict[str, object]]:
    """Return what the figure says of each cell: its values and its command."""
    return [
        {
            "values": {axis.name: axis.values[at] for axis, at in zip(axes, place, strict=True)},
            "command": command(job, origin, running),
        }
        for place, job in zip(places(axes), jobs, strict=True)
    ]


def title(axes: Sequence[Axis], job: Job) -> str:
    """Return what all cells share, in words."""
    compared = {axis.name for axis in axes}
    shared = {
        "sampler": job.sampler,
        "steps": f"{job.steps} steps",
        "guidance": f"guidance {job.guidance:g}",
        "seed": f"seed {job.seed}",
    }
    words = ", ".join(text for name, text in shared.items() if name not in compared)
    return words if "prompt" in compared else f"{job.prompt}: {words}" if words else job.prompt
