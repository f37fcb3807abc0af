"""`--control TYPE:IMAGE[:WEIGHT[:START:END]]` with `--control-model FILE`: read and checked before a model
is loaded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ddgen.app import canvas, maps
from ddgen.app.verbs import ControlFile
from ddgen.cli import editing
from ddgen.errors import UsageError, choose
from ddgen.request import Job, Steer
from ddgen.weights.control import control_part
from ddgen.weights.digest import digest


def prepare(
    typed: Sequence[str], models: Sequence[str], jobs: Sequence[Job]
) -> tuple[list[Job], list[ControlFile]]:
    """Return the jobs with a record of their controls, and the controls.

    Raises:
        UsageError: what cannot be read, or does not fit together. InputError: a picture. ModelError: a
        ControlNet's file.
    """
    if len(typed) != len(models):
        raise UsageError(
            f"{len(typed)} --control and {len(models)} --control-model are given",
            "give one --control-model FILE for each --control, in the same order",
            id="usage.control",
        )
    found = [read(text, Path(model), jobs[0]) for text, model in zip(typed, models, strict=True)]
    steers = tuple(steer for steer, _ in found)
    return [replace(job, controls=steers) for job in jobs], [file for _, file in found]


def read(text: str, model: Path, job: Job) -> tuple[Steer, ControlFile]:
    """Read one --control.

    Raises:
        UsageError, InputError, ModelError: as prepare.
    """
    kind, _, rest = text.partition(":")
    choose("control type", kind, maps.KINDS)
    parts = rest.split(":")
    numbers: list[float] = []
    while len(parts) > 1 and len(numbers) < 3 and _number(parts[-1]) is not None:
        numbers.insert(0, float(parts.pop()))
    path = ":".join(parts)
    if not path or len(numbers) == 2:
        mend = "use TYPE:IMAGE, TYPE:IMAGE:0.8 or TYPE:IMAGE:0.8:0:0.5"
        raise UsageError(f"--control '{text}' cannot be read", mend, id="usage.control")
    weight, start, end = (*numbers, 0.0, 1.0)[:3] if len(numbers) == 1 else (numbers or [1.0, 0.0, 1.0])
    if not (0 <= weight <= 2 and 0 <= start < end <= 1):
        mend = "use a weight of 0 to 2, and a part of the steps as 0:0.5"
        raise UsageError(f"--control '{text}' is out of range", mend, id="usage.control")
    control_part(model)
    picture = editing.read_picture(path)
    shown = maps.control_map(canvas.fit(picture.pixels, job.width, job.height, "crop"), kind)
    steer = Steer(kind, canvas.digest(shown), digest(model), weight, start, end)
    return steer, ControlFile(model, shown, weight, start, end)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
