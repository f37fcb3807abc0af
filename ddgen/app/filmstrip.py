"""The reverse process, watched while a picture is made: x_t above the estimate of x0 at a few steps.

    x_t = c_in x     D(x; sigma) = the network's estimate of x0 from that x_t

It looks on through the callbacks of app/pipeline.run, makes no network call and changes nothing. Only small
8-bit pictures are kept, of chosen steps, so that 1000 steps need no more memory than 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddgen.errors import UsageError
from ddgen.io import figures, images

if TYPE_CHECKING:
    from torch import Tensor

    from ddgen.app.pipeline import Pipeline
    from ddgen.diffusion.samplers import Step
    from ddgen.diffusion.spacing import Grid
    from ddgen.io.images import Pixels
    from ddgen.request import Job

COLUMNS, FRAMES = 8, 60
SIDE = 256  # pixels: the longer side of what is kept
ABOVE, BELOW = "x_t, what the network sees", "its estimate of x0"


def chosen(steps: int, asked: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Return the numbers of the steps to show, from 1, rising: those asked for, or `count` spread evenly with
    both ends.

    Raises:
        UsageError: a step that the run does not have, or too many of them.
    """
    if asked is not None:
        for step in asked:
            if not 1 <= step <= steps:
                raise UsageError(
                    f"--filmstrip-steps {step} is out of range of a run of {steps} steps",
                    f"use 1 to {steps}",
                    id="usage.range",
                )
        if len(set(asked)) > 4 * FRAMES:
            raise UsageError(
                f"--filmstrip-steps lists {len(set(asked))} steps",
                f"use at most {4 * FRAMES}",
                id="usage.filmstrip",
            )
        return tuple(sorted(set(asked)))
    count = min(count, steps)
    return tuple(sorted({1 + round(i * (steps - 1) / max(1, count - 1)) for i in range(count)}))


@dataclass(frozen=True)
class Moment:
    """One step: its number, the level it starts from, x_t there and the estimate of x0 made from it."""

    step: int
    sigma: float
    seen: Pixels
    estimate: Pixels


class Filmstrip:
    """Keeps the chosen steps of one picture. `start` and `step` are callbacks of app/pipeline.run."""

    def __init__(self, pipeline: Pipeline, job: Job, steps: Sequence[int]) -> None:
        self.pipeline, self.job, self.steps = pipeline, job, frozenset(steps)
        self.moments: list[Moment] = []
        self._x: Tensor | None = None
        self._sigma, self._total = 0.0, 0

    def start(self, x: Tensor, grid: Grid) -> None:
        """Take the state that the run starts from."""
        self._x, self._sigma, self._total = x, grid.sigmas[0], grid.steps

    def step(self, step: Step, steps: int) -> None:
        """Take a step: the state before it, and the estimate that it made."""
        number = step.index + 1
        if number in self.steps and self._x is not None:
            c_in = self.pipeline.denoiser.coefficients(self._sigma)[2]
            self.moments.append(
                Moment(number, self._sigma, self._picture(c_in * self._x), self._picture(step.denoised))
            )
        self._x, self._sigma = step.x, step.sigma

    def finish(self, result: Pixels) -> None:
        """Take the finished picture."""
        kept = figures.small(result, SIDE)
        self.moments.append(Moment(0, 0.0, kept, kept))

    def strip(self) -> Pixels:
        """Return all moments side by side, ten to a row of pairs."""
        blocks = []
        for at in range(0, len(self.moments), 10):
            part = self.moments[at : at + 10]
            seen = [figures.Cell(moment.seen) for moment in part]
            estimates = [figures.Cell(moment.estimate, self._label(moment)) for moment in part]
            blocks.append(figures.Block([seen, estimates], beside=(ABOVE, BELOW)))
        return figures.table(blocks, self._title())

    def frames(self) -> list[Pixels]:
        """Return one frame a moment, all of one size."""
        cells = (
            [figures.Cell(m.seen, (*self._label(m), "", "")[:3]), figures.Cell(m.estimate)]
            for m in self.moments
        )
        above = ("x_t", "estimate of x0")
        return [figures.table([figures.Block([pair], above=above)], self._title()) for pair in cells]

    def _label(self, moment: Moment) -> tuple[str, ...]:
        if not moment.step:
            return ("finished",)
        return (f"step {moment.step} of {self._total}", *figures.level(moment.sigma)[:2])

    def _title(self) -> str:
        job = self.job
        return f"{job.prompt}: {job.sampler}, {self._total} steps, guidance {job.guidance:g}, seed {job.seed}"

    def _picture(self, latents: Tensor) -> Pixels:
        return figures.small(images.to_uint8(self.pipeline.first_stage.decode(latents)[0]), SIDE)
