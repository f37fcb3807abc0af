"""A warm pipeline that turns a group of tasks into the bytes of their files; the same for the local and the
Ray runner.

A group that is too large for memory is halved, and the size that fitted is kept. A group in which one picture
comes out non-finite is made again one by one, so that the others are not lost with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ddgen.app import inputs
from ddgen.app import pipeline as pipelines
from ddgen.app.batch import OnStep
from ddgen.app.outcome import Made, Missed, Outcome
from ddgen.app.produce import Saving
from ddgen.app.tasks import Task
from ddgen.diffusion.samplers import SAMPLERS, Step
from ddgen.errors import DdgenError, NumericsError, ResourceError
from ddgen.io import images, metadata
from ddgen.request import Job

if TYPE_CHECKING:
    from ddgen.app.pipeline import Pipeline
    from ddgen.app.scoring import Scores


@dataclass
class Renderer:
    """Makes groups of tasks. limit: the largest group that is known to fit into memory; scorer: a CLIP's folder for
    tasks of which the best are kept, "" = the embedded one, loaded when the first comes."""

    pipeline: Pipeline
    saving: Saving
    text_backend: str = "native"
    limit: int = 1 << 20
    scorer: str = ""
    _scores: "Scores | None" = field(default=None, repr=False)

    def __call__(self, tasks: Sequence[Task], on_step: OnStep) -> Iterator[Outcome]:
        """Yield the outcome of each task.

        Raises:
            ResourceError: not even one picture fits into memory.
        """
        waiting = [list(tasks)]
        while waiting:
            group = waiting.pop(0)
            if len(group) > self.limit:
                waiting[:0] = [group[: self.limit], group[self.limit :]]
                continue
            begun = time.monotonic()
            try:
                pixels = self._run(group, on_step)
            except (ResourceError, torch.OutOfMemoryError) as error:
                if len(group) == 1:
                    raise _out_of_memory(group[0].job, error) from error
                self.limit = len(group) // 2
                waiting.insert(0, group)
                continue
            except NumericsError as error:
                if len(group) == 1:
                    yield Missed(group[0], error)
                else:
                    waiting[:0] = [[task] for task in group]
                continue
            except DdgenError as error:
                yield from (Missed(task, error) for task in group)
                continue
            each = (time.monotonic() - begun) / len(group)
            for task, picture in zip(group, pixels, strict=True):
                score = None if task.contest is None else self._score(task.job, picture)
                yield Made(task, self._file(task, picture, score), each, score)

    def _run(self, group: Sequence[Task], on_step: OnStep) -> list[images.Pixels]:
        jobs, read = [task.job for task in group], group[0].inputs

        def tell(step: Step, steps: int) -> None:
            on_step(step.index + 1, steps, len(jobs))

        if read is None:
            return pipelines.run(self.pipeline, jobs, tell)
        return inputs.draw(read, jobs[0])(self.pipeline, jobs, tell)

    def _score(self, job: Job, picture: images.Pixels) -> float:
        if self._scores is None:
            from ddgen.app import scoring

            self._scores = scoring.Scores(scoring.load(self.scorer or None))
        (score,) = self._scores([job], [picture])
        return score

    def _file(self, task: Task, picture: images.Pixels, score: float | None) -> bytes:
        texts = metadata.describe(task.job, self.origin(task.job), self.saving.metadata, task.id, score)
        return images.encode(picture, self.saving.format, self.saving.quality, texts)

    def origin(self, job: Job) -> metadata.Origin:
        """Return what made the picture of a job, for its metadata."""
        return metadata.Origin(
            digests=self.pipeline.digests,
            sampler=SAMPLERS[job.sampler].label,
            device=self.pipeline.device.type,
            dtype=str(self.pipeline.denoiser.dtype or torch.float32).removeprefix("torch."),
            torch=".".join(torch.__version__.split(".")[:2]),
            text_backend=self.text_backend,
            changes=self.pipeline.spec.changes,
        )


def _out_of_memory(job: Job, error: BaseException) -> ResourceError:
    if isinstance(error, ResourceError):
        return error
    return ResourceError(
        f"out of memory at {job.width}x{job.height}",
        f"try --size {job.width // 2}x{job.height // 2}",
        id="resource.memory",
    )
