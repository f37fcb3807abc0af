"""`--control TYPE:IMAGE[:WEIGHT[:START:END]]` with `--control-model FILE`: read and checked before a model
is loaded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ddgen.app import steering
from ddgen.app.verbs import ControlFile
from ddgen.cli import editing
from ddgen.request import Job


def prepare(
    typed: Sequence[str], models: Sequence[str], jobs: Sequence[Job]
) -> tuple[list[Job], list[ControlFile]]:
    """Return the jobs with a record of their controls, and the controls.

    Raises:
        UsageError: what cannot be read, or does not fit together. InputError: a picture. ModelError: a
        network's file.
    """
    steering.pair(len(typed), len(models))
    found = []
    for text, model in zip(typed, models, strict=True):
        wanted = steering.parse(text)
        pixels = editing.read_picture(wanted.path).pixels
        found.append(steering.steer(wanted, pixels, Path(model), jobs[0].width, jobs[0].height))
    steers = tuple(record for record, _ in found)
    return [replace(job, controls=steers) for job in jobs], [file for _, file in found]
