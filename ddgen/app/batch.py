"""Ten thousand pictures, and nothing lost: tasks in, files out, resumable by running again. Torch-free; the
runner brings the pipeline.

    tasks -> skip what is there -> groups of equal shape -> runner -> publish -> ledger -> announce

The state is on disk: a finished picture is whole under its name and carries its job's id. Nothing is
announced before it is safe. Tasks of equal size and grid, whatever their prompts, seeds and guidance, share
network calls; a stream is never kept waiting to fill a group.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Protocol

from ddgen.app import plan
from ddgen.app.contests import Contests
from ddgen.app.ledger import FailedList, Ledger
from ddgen.app.outcome import Made, Missed, Outcome
from ddgen.app.tasks import Place, Task, replayable
from ddgen.errors import BusyError, DdgenError, InputError, OutputError, ResourceError
from ddgen.io import files
from ddgen.io.lines import BadLine
from ddgen.io.whole import Torn, embedded_id
from ddgen.request import Job

WINDOW = 512
"""Tasks that are looked at together to find some of equal shape."""

FATAL = (OutputError, ResourceError, BusyError)


class Interrupted(Exception):
    """The user wants no more; raised between two steps of a sampler and between two groups."""


class Source(Protocol):
    """Where tasks come from. `next` returns None when there is nothing now and `wait` is false.

    Raises:
        StopIteration: there will be no more.
    """

    def next(self, wait: bool) -> Task | BadLine | Missed | InputError | None: ...


Group = list[Task]
OnStep = Callable[[int, int, int], None]
"""(step, steps, images in the group); it may raise Interrupted to drop the group."""
Render = Callable[[Group, OnStep], Iterator[Outcome]]
Runner = Callable[[Iterator[Group]], Iterator[Outcome]]


@dataclass
class Tally:
    """How a run went. first_error: of the first item that failed."""

    saved: int = 0
    skipped: int = 0
    failed: int = 0
    first_error: DdgenError | None = None

    @property
    def exit_code(self) -> int:
        if self.first_error is None:
            return 0
        return 3 if self.saved + self.skipped else self.first_error.exit_code


@dataclass(frozen=True)
class Event:
    """Something to tell. kind: "skip", "start", "image", "drop" (not among the best), "failed"."""

    kind: str
    task: Task | None = None
    error: DdgenError | None = None
    seconds: float = 0.0
    data: bytes | None = None
    score: float | None = None
    line: BadLine | None = None


@dataclass
class Batch:
    """One run over an output directory that is locked already.

    thorough: compare every checksum of what is there.
    stop:     tells whether the user wants no more.
    emit:     told of every event, after what it tells is safe.
    """

    ledger: Ledger
    failures: FailedList
    emit: Callable[[Event], None] = lambda event: None
    stop: Callable[[], bool] = lambda: False
    thorough: bool = False
    marked: bool = True
    fail_fast: bool = False
    batch_size: int | None = None
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.contests = Contests(lambda place: look(place, thorough=self.thorough, marked=self.marked))

    def run(self, source: Source, runner: Runner) -> Tally:
        """Make what is missing.

        Raises:
            Interrupted: `stop` said so; what was finished is kept.
            DdgenError: what ends a batch: the output, the memory, a file that is somebody else's.
        """
        try:
            for outcome in runner(self.groups(source)):
                if isinstance(outcome, Missed):
                    self._miss(outcome)
                if outcome.task.contest is not None:
                    self._settle(outcome)
                elif isinstance(outcome, Made):
                    self._keep(outcome)
        finally:
            self.failures.finish()
        return self.tally

    def groups(self, source: Source) -> Iterator[Group]:
        """Yield tasks of equal shape together, the longest waiting first, taking only what is there."""
        waiting: dict[tuple[object, ...], Group] = {}
        count, more = 0, True
        while more or count:
            while more and count < WINDOW:
                if self.stop():
                    raise Interrupted
                try:
                    item = source.next(wait=count == 0)
                except StopIteration:
                    more = False
                    break
                if item is None:
                    if count:
                        break
                    continue
                if isinstance(item, Task):
                    if self._to_do(item):
                        waiting.setdefault(shape(item), []).append(item)
                        count += 1
                elif isinstance(item, Missed):
                    self._miss(item)
                else:
                    self._refuse(item)
            if not count:
                continue
            if self.stop():
                raise Interrupted
            key = next(iter(waiting))
            group = waiting.pop(key)
            size = self.batch_size if self.batch_size is not None else auto_size(group[0])
            if len(group) > size:
                waiting = {key: group[size:], **waiting}
                group = group[:size]
            count -= len(group)
            self.emit(Event("start", group[0]))
            yield group

    def _to_do(self, task: Task) -> bool:
        state = look(task, thorough=self.thorough, marked=self.marked)
        if task.contest is not None and state != "other":
            if not self.contests.closed(task.contest):
                return True
            if state == "missing":
                self.emit(Event("skip", task))
                return False
        if state == "missing":
            return True
        if state == "other":
            raise clash(task.path)
        if task.id not in self.ledger:
            self.ledger.append(task.id, task.path.name, found=True)
        self.tally.skipped += 1
        self.emit(Event("skip", task))
        return False

    def _settle(self, outcome: Outcome) -> None:
        """Take an outcome of a contest; publish the winners when it was the last."""
        winners, losers = self.contests.gather(outcome)
        for made in winners:
            self._keep(made)
        for made in losers:
            self.ledger.drop(made.task.id, made.score or 0.0)
            self.emit(Event("drop", made.task, seconds=made.seconds))

    def _keep(self, made: Made) -> None:
        task = made.task
        if made.data is not None:
            try:
                files.publish(task.path, made.data)
            except FileExistsError:
                if look(task, marked=self.marked) != "done":
                    raise clash(task.path) from None
        self.ledger.append(
            task.id,
            os.path.relpath(task.path, self.ledger.path.parent),
            seconds=round(made.seconds, 3),
            time=round(time.time()),
            seed=task.job.seed,
            **({} if made.score is None else {"score": made.score}),
        )
        self.tally.saved += 1
        self.emit(Event("image", task, seconds=made.seconds, data=made.data, score=made.score))

    def _miss(self, missed: Missed) -> None:
        place = f"{missed.task.source} line {missed.task.line}: " if missed.task.line else ""
        self.failures.add(replayable(missed.task, f"{place}exit {missed.error.exit_code}: {missed.error}"))
        self._count_failure(missed.error)
        self.emit(Event("failed", missed.task, missed.error))
        if self.fail_fast:
            raise missed.error

    def _refuse(self, item: BadLine | InputError) -> None:
        error = item.error() if isinstance(item, BadLine) else item
        text = f": {item.text}" if isinstance(item, BadLine) and item.text else ""
        self.failures.add_comment(f"{error}{text}")
        self._count_failure(error)
        self.emit(Event("failed", error=error, line=item if isinstance(item, BadLine) else None))
        if self.fail_fast:
            raise error

    def _count_failure(self, error: DdgenError) -> None:
        self.tally.failed += 1
        if self.tally.first_error is None:
            self.tally.first_error = error


def local(load: Callable[[], Render], on_step: OnStep) -> Runner:
    """Return the runner of this process; the pipeline is loaded when the first group comes."""

    def runner(groups: Iterator[Group]) -> Iterator[Outcome]:
        render: Render | None = None
        for group in groups:
            render = load() if render is None else render
            yield from render(group, on_step)

    return runner


_OWN = ("prompt", "negative", "seed", "guidance", "variation", "variation_seed", "model")
"""What the pictures of one tensor batch may differ in."""

_SHARED = tuple(field.name for field in fields(Job) if field.name not in _OWN)


def shape(task: Task) -> tuple[object, ...]:
    """Return what tasks must agree in to share a tensor batch."""
    job = task.job
    texts = (job.guidance == 1.0, job.prompt.count("AND"), max(chunks(job.prompt), chunks(job.negative)))
    return (*(getattr(job, name) for name in _SHARED), *texts)


def chunks(prompt: str) -> int:
    """Return how many chunks of 75 tokens a prompt takes, counting only where it could be more than one."""
    if len(prompt.encode()) <= plan.TOKENS_PER_CHUNK and "BREAK" not in prompt:
        return 1
    parts = prompt.split("BREAK")
    return sum(max(1, -(-plan.token_count(part) // plan.TOKENS_PER_CHUNK)) for part in parts)


def auto_size(task: Task) -> int:
    """Return how many pictures of a task's size go into one network call."""
    return max(1, min(16, plan.AUTO_BATCH_PIXELS // (task.job.width * task.job.height)))


def look(task: Task | Place, *, thorough: bool = False, marked: bool = True) -> str:
    """Tell whether a task's picture is "done", "missing", or its name is held by something "other".

    marked: files carry ids; without (--metadata none) a whole file of the name counts.
    """
    try:
        found = embedded_id(task.path, thorough=thorough)
    except FileNotFoundError:
        return "missing"
    except (Torn, OSError):
        return "other"
    if found == task.id or (found is None and not marked):
        return "done"
    return "other"


def clash(path: Path) -> OutputError:
    """Return the error for a name that something else holds."""
    return OutputError(
        f"'{path}' exists and is another picture",
        "move it away or choose another directory with --output",
        id="output.exists",
    )
