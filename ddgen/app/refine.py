"""Handing a picture over from one model to another on the way: SDXL's base leaves the last fifth of the noise
to its refiner.

    sigmas    s_0 ... s_k | s_k ... s_n        k: the first level whose time is below 1000 (1 - start)
    model     base        | refiner            x goes over as it is; both know the same latents

Each model is bound to the same texts and steps; samplers with a memory begin anew at the hand-over. Ref:
Podell et al. 2023,
arXiv 2307.01952, section 2.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from ddgen.diffusion.denoiser import Denoise
from ddgen.diffusion.samplers import Step
from ddgen.diffusion.schedule import Schedule
from ddgen.diffusion.spacing import Grid

TIMES = 1000

Walk = Callable[[Denoise, Tensor, Grid], Iterator[Step]]


def cut(grid: Grid, schedule: Schedule, start: float) -> tuple[Grid, Grid]:
    """Return the part of a grid before the hand-over and the part from it on; they share a level.

    start: the fraction of the trained times that is passed before it; steps that start at or above that time
    are the first model's.
    """
    edge = round(TIMES * (1.0 - start))
    first = sum(schedule.time(sigma) >= edge - 1e-6 for sigma in grid.sigmas[:-1])
    return replace(grid, sigmas=grid.sigmas[: first + 1]), replace(grid, sigmas=grid.sigmas[first:])


def hand_over(
    walk: Walk, base: Denoise, refiner: Callable[[], Denoise], x: Tensor, parts: tuple[Grid, Grid]
) -> Iterator[Step]:
    """Yield the steps of both parts, counted on; `refiner` is bound when its turn comes."""
    first, second = parts
    taken = len(first.sigmas) - 1
    if taken:
        for step in walk(base, x, first):
            yield step
            x = step.x
    if len(second.sigmas) > 1:
        for step in walk(refiner(), x, second):
            yield replace(step, index=step.index + taken)
