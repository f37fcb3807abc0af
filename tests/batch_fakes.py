"""A pipeline that draws a colour from the job in no time, and ways to watch it.

Files are real, made by the real encoder.
"""

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ddgen.app.batch import Batch, Group, OnStep, Runner, local
from ddgen.app.identity import model_key
from ddgen.app.ledger import FailedList, Ledger, Shard
from ddgen.app.naming import Target
from ddgen.app.outcome import Made, Missed, Outcome
from ddgen.app.tasks import Planner
from ddgen.errors import NumericsError
from ddgen.io import images, metadata
from ddgen.io.lines import PromptLine
from ddgen.request import Job
from ddgen.weights.arch import FAMILIES
from ddgen.weights.spec import Defaults, Spec

SPEC = Spec("fake", FAMILIES["SD15"], defaults=Defaults(width=64, height=64, steps=3))
DIGESTS = {"model": "ab" * 32}
ORIGIN = metadata.Origin(digests=DIGESTS, sampler="Euler")


def pixels_of(job: Job, size: int = 64) -> np.ndarray:
    """A picture that depends on the whole job, and does not compress away."""
    digest = hashlib.sha256(repr(job).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big")).integers(
        0, 256, (size, size, 3), dtype=np.uint8
    )


class FakeRender:
    """Makes groups; `calls` lists them, "bad" in a prompt fails, `delay` seconds a step."""

    def __init__(self, delay: float = 0.0, size: int = 64) -> None:
        self.calls: list[list[str]] = []
        self.delay = delay
        self.size = size

    def __call__(self, group: Group, on_step: OnStep) -> Iterator[Outcome]:
        self.calls.append([task.job.prompt for task in group])
        for step in range(group[0].job.steps):
            if self.delay:
                time.sleep(self.delay)
            on_step(step + 1, group[0].job.steps, len(group))
        for task in group:
            if "bad" in task.job.prompt:
                yield Missed(task, NumericsError("non-finite values", "run with --dtype float32"))
            else:
                texts = metadata.describe(task.job, ORIGIN, "full", task.id)
                yield Made(task, images.encode(pixels_of(task.job, self.size), "png", 92, texts), 0.001)


def planner(root: Path, **options: object) -> Planner:
    return Planner(SPEC, model_key(SPEC, DIGESTS), Target("directory", root, "", "png"), **options)  # type: ignore[arg-type]


def lines(*prompts: str, **settings: tuple) -> list[PromptLine]:
    return [
        PromptLine("prompt file 'p'", number, prompt, settings) for number, prompt in enumerate(prompts, 1)
    ]


class ListSource:
    """Tasks of given lines; `holes` are moments at which nothing is there yet."""

    def __init__(self, planner: Planner, given: Iterable[object]) -> None:
        self._items = self._all(planner, given)

    @staticmethod
    def _all(planner: Planner, given: Iterable[object]) -> Iterator[object]:
        for item in given:
            if isinstance(item, PromptLine):
                yield from planner.tasks(item)
            else:
                yield item

    def next(self, wait: bool) -> object:
        return next(self._items)


def make_batch(root: Path, shard: Shard | None = None, **options: object) -> Batch:
    root.mkdir(parents=True, exist_ok=True)
    suffix = shard.suffix if shard is not None else ""
    ledger, failures = Ledger(root / f"ledger{suffix}.jsonl"), FailedList(root / f"failed{suffix}.jsonl")
    return Batch(ledger, failures, **options)  # type: ignore[arg-type]


def runner(render: FakeRender, stop: object = None) -> Runner:
    return local(lambda: render, lambda step, steps, images: None)


def pictures(root: Path) -> dict[str, str]:
    """Every finished picture's name and the digest of its bytes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.glob("*.png"))}


def torch_is_loaded() -> bool:
    return "torch" in sys.modules
