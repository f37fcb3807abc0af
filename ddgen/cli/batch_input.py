"""What `ddgen batch` reads: prompt files that are checked whole before anything is made, or a stream whose
tasks are looked at as they come.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ddgen.app import estimate, sources
from ddgen.app import plan as planning
from ddgen.app.batch import Source, clash, look
from ddgen.app.tasks import Planner, Task
from ddgen.cli import console, picking
from ddgen.cli.batch_talk import Talk
from ddgen.errors import InputError
from ddgen.io import metadata
from ddgen.io.lines import Faults
from ddgen.io.prompts import PromptFile, shown_name
from ddgen.request import Job


@dataclass(frozen=True)
class Reading:
    """How the input is read. files: ("-",) is the stream; format: "" is told by the names; scorer: as
    picking.Choice has it."""

    files: tuple[str, ...]
    input_format: str
    encoding: str
    strict_tokens: bool
    scorer: str = ""


def open_source(reading: Reading, values: dict[str, Any], planner: Planner, talk: Talk) -> Source:
    """Return the source of tasks: files are checked whole here, and the pictures counted.

    Raises:
        InputError: a bad file. OutputError: a name held by another picture.
    """
    long: list[int] = []
    checks = Checks(reading.strict_tokens, planner.target.format, values["metadata"], long.append)
    if reading.files == ("-",):
        stdin = os.fdopen(os.dup(0), "rb")
        checks.on_long = tell_once()
        return sources.StreamSource(
            stdin, planner, shown_name("-"), reading.input_format, reading.encoding, checks
        )
    opened = [PromptFile(path, reading.input_format, reading.encoding) for path in reading.files]
    marked = values["metadata"] != "none"
    slow = estimate.heavy(planner.spec)
    contests: set[str] = set()

    def visit(task: Task) -> None:
        talk.total += 1
        if task.contest is not None:
            talk.dropped += task.contest.keep <= [place.id for place in task.contest.places].index(task.id)
            contests.add(task.contest.key)
        if slow and not task.path.exists():
            talk.ahead[replace(task.job, prompt="", negative="", seed=0)] += 1
        try:
            checks(task)
        except InputError as error:
            place = f"{task.source} line {task.line}: "
            raise InputError(place + error.message, error.hint, id=error.id) from None
        if task.path.exists() and look(task, marked=marked) == "other":
            raise clash(task.path)

    check_files(opened, planner, visit)
    if long:
        many = "1 prompt is" if len(long) == 1 else f"{len(long)} prompts are"
        chunks = f"read in chunks of {planning.TOKENS_PER_CHUNK}"
        console.warn(f"{many} long, the longest has {max(long)} tokens; {chunks}")
    if contests:
        picking.remark(reading.scorer, planner.spec)
    return sources.FileSource(opened, fresh(planner))


@dataclass
class Checks:
    """What is asked of a task before it is made: its prompt's length, and that its format holds its metadata.

    on_long: told the tokens of a prompt that is longer than one chunk.
    """

    strict: bool
    format: str
    metadata: str
    on_long: Callable[[int], None]

    def __call__(self, task: Task) -> None:
        """Look at a task.

        Raises:
            InputError: the prompt is long, and none may be. OutputError: JPEG, and it has much to say.
        """
        count = tokens_beyond(task.job)
        if count and self.strict:
            what = f"prompt has {count} tokens, over {planning.TOKENS_PER_CHUNK}"
            raise InputError(what, "shorten it, or drop --strict-tokens", id="prompts.tokens")
        if count:
            self.on_long(count)
        if self.format == "jpeg":
            metadata.check_fits(metadata.describe(task.job, metadata.Origin(), self.metadata, task.id), "jpeg")


def tell_once() -> Callable[[int], None]:
    """Return what warns of the first long prompt of a stream, and is silent at the others."""
    told: list[int] = []

    def tell(count: int) -> None:
        if not told:
            console.warn(f"a prompt has {count} tokens; read in chunks of {planning.TOKENS_PER_CHUNK}")
        told.append(count)

    return tell


def tokens_beyond(job: Job) -> int:
    """Return a prompt's tokens if they are more than one chunk, else 0; short ones are not counted."""
    if len(job.prompt.encode()) <= planning.TOKENS_PER_CHUNK:
        return 0
    count = planning.token_count(job.prompt, job.prompt_syntax, job.steps)
    return count if count > planning.TOKENS_PER_CHUNK else 0


def check_files(opened: list[PromptFile], planner: Planner, visit: Callable[[Task], None]) -> None:
    """Check prompt files whole; several faults are told one a line, the last by the exit.

    Raises:
        InputError: the first fault.
    """
    try:
        sources.check(opened, fresh(planner), visit)
    except Faults as faults:
        if not faults.others:
            raise
        console.fail(faults)
        for line in faults.others[:-1]:
            console.fail(line.error())
        more = f" (+{faults.more} more)" if faults.more else ""
        last = faults.others[-1].error()
        raise InputError(last.message, last.hint + more, id=last.id) from None


def fresh(planner: Planner) -> Planner:
    """Return a planner that has seen no line yet."""
    return Planner(
        planner.spec,
        planner.model,
        planner.target,
        planner.base,
        planner.run_seed,
        planner.expand,
        planner.styles,
        planner.shard,
        planner.folder,
        planner.networks,
    )
