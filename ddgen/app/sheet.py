"""A sheet of pictures: prompts down, seeds across, nothing picked."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ddgen.app import plan
from ddgen.app.pipeline import Pipeline, run
from ddgen.io import images
from ddgen.request import Request

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

BATCH = 8


def draw(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    on_batch: Callable[[int], None] | None = None,
) -> "list[Pixels]":
    """Return the pictures of every prompt with every seed, prompt by prompt.

    Raises:
        NumericsError: a picture came out non-finite.
    """
    found = []
    jobs = plan.plan(Request(tuple(prompts), seed=tuple(seeds)), pipeline.spec)
    for batch in plan.batches(jobs, BATCH):
        found += run(pipeline, batch)
        if on_batch is not None:
            on_batch(len(batch))
    return found


def sheet(pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int]) -> bytes:
    """Return the sheet as a PNG."""
    pictures = draw(pipeline, prompts, seeds)
    labels = [str(seed) for seed in seeds] * len(prompts)
    return images.encode(images.contact_sheet(pictures, list(prompts), labels))
