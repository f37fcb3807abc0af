"""The forward process on a picture: x_t at a few times, under any schedule, in pixels or in a model's
latents.

    x = x0 + sigma eps,   x_t = c_in x     (c_in = 1 / sqrt(1 + sigma^2); flow: 1 / (1 + sigma))

One eps for all times, as training has it: the strip is one path from the picture to noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddgen.diffusion.noise import normals
from ddgen.diffusion.prediction import PREDICTIONS
from ddgen.diffusion.schedule import Schedule
from ddgen.errors import UsageError
from ddgen.io import figures, images

if TYPE_CHECKING:
    from ddgen.app.pipeline import Pipeline
    from ddgen.io.images import Pixels

COLUMNS, FRAMES = 8, 48
MAX_TIMES = 200
NOTES = (
    "x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps; SNR = alpha_bar / (1 - alpha_bar) = 1 / sigma^2",
)
FLOW_NOTES = (
    "x_t = (1 - t) x0 + t eps with t = time / 1000; sigma = t / (1 - t), SNR = 1 / sigma^2",
)
SIDE = 256  # pixels: noise is added to the picture at this size, or it would not be seen


def spread(schedule: Schedule, count: int) -> list[float]:
    """Return times over the trained range, both ends among them; whole ones where the schedule is a table."""
    low, high = schedule.time_min, schedule.time_max
    times = [low + (high - low) * i / (count - 1) for i in range(count)]
    return [float(round(time)) for time in times] if schedule.steps is not None else times


def check_times(schedule: Schedule, times: Sequence[float]) -> None:
    """Refuse times that the schedule was never trained on.

    Raises:
        UsageError: a time out of range, none, or too many.
    """
    low, high = schedule.time_min, schedule.time_max
    for time in times:
        if not low <= time <= high:
            raise UsageError(
                f"--times {time:g} is out of range of schedule '{schedule.kind}'",
                f"use {low:g} to {high:g}",
                id="usage.times",
            )
    if not 1 <= len(times) <= MAX_TIMES:
        raise UsageError(f"--times lists {len(times)} times", f"use 1 to {MAX_TIMES}", id="usage.times")


@torch.inference_mode()
def noised(
    pixels: Pixels, schedule: Schedule, times: Sequence[float], seed: int, pipeline: Pipeline | None = None
) -> Iterator[figures.Cell]:
    """Yield the picture at each time with its label; pipeline: work in its latents, and show them decoded."""
    image = torch.from_numpy(images.to_unit(pixels))
    x0 = image if pipeline is None else pipeline.first_stage.encode(image.to(pipeline.device)).float()
    eps = torch.from_numpy(normals(seed, 0, tuple(x0.shape[1:])))[None].to(x0)
    for time in times:
        sigma = schedule.sigma(time)
        x_t = shown(schedule, x0 + sigma * eps, sigma)
        picture = (x_t if pipeline is None else pipeline.first_stage.decode(x_t))[0]
        yield figures.Cell(images.to_uint8(picture), (f"time {figures.number(time)}", *figures.level(sigma)))


def shown(schedule: Schedule, x: Tensor, sigma: float) -> Tensor:
    """Return x_t as training on this schedule shows it to the network."""
    prediction = "flow" if schedule.kind == "flow" else "eps"
    return x * PREDICTIONS[prediction](sigma, 1.0)[2]


def strip(cells: Sequence[figures.Cell], title: str, schedule: Schedule) -> Pixels:
    """Return the times side by side, in rows of at most ten."""
    rows = [cells[at : at + 10] for at in range(0, len(cells), 10)]
    return figures.table([figures.Block(rows)], title, FLOW_NOTES if schedule.kind == "flow" else NOTES)


def frames(cells: Sequence[figures.Cell], title: str) -> list[Pixels]:
    """Return the times one after the other, as the frames of an animation."""
    return [figures.table([figures.Block([[cell]])], title) for cell in cells]
