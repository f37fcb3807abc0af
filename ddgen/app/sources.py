"""Where a batch's tasks come from: files that were checked whole, or a stream that is still being written.
Torch-free.

A file is read twice: once to check every line and count the tasks, once to make them. A stream is read by a
thread of its own, so that grouping can take what is there without waiting for more.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from ddgen.app.outcome import Missed
from ddgen.app.tasks import Planner, Task
from ddgen.errors import DdgenError, InputError
from ddgen.io.lines import BadLine, Faults, PromptLine, collect_faults
from ddgen.io.prompts import PromptFile, shown_name, stream

WAIT = 0.1
"""Seconds after which a waiting source looks up, so that a signal is heard."""


@dataclass
class FileSource:
    """The tasks of prompt files, in order."""

    files: Sequence[PromptFile]
    planner: Planner
    _tasks: Iterator[Task] | None = None

    def next(self, wait: bool) -> Task:
        if self._tasks is None:
            self._tasks = _planned(self.files, self.planner)
        return next(self._tasks)


def _planned(files: Sequence[PromptFile], planner: Planner) -> Iterator[Task]:
    for file in files:
        for line in file.lines():
            if isinstance(line, BadLine):
                raise line.error()
            yield from planner.tasks(line)


def check(files: Sequence[PromptFile], planner: Planner, visit: Callable[[Task], None]) -> None:
    """Read every line of every file and show every task to `visit`, before anything is made.

    Raises:
        Faults: bad lines; the first is the message.
        InputError: a file without prompts.
    """
    for file in files:
        found = 0

        def bad_lines(file: PromptFile = file) -> Iterator[BadLine]:
            nonlocal found
            for line in file.lines():
                found += 1
                wrong = line if isinstance(line, BadLine) else _try(line, planner, visit)
                if wrong is not None:
                    yield wrong

        faults: Faults | None = collect_faults(bad_lines())
        if faults is not None:
            raise faults
        if found == 0:
            raise InputError(
                f"{shown_name(file.path)} has no prompts", "write one per line", id="prompts.empty"
            )


def _try(line: PromptLine, planner: Planner, visit: Callable[[Task], None]) -> BadLine | None:
    try:
        for task in planner.tasks(line):
            visit(task)
    except InputError as error:
        return BadLine(
            line.source, line.number, error.message.partition(f" line {line.number}: ")[2], error.hint
        )
    return None


@dataclass
class StreamSource:
    """The tasks of a prompt stream, as they arrive. A line that cannot be used is handed on as what it is, a
    task that `visit` raises at as one that was missed."""

    file: BinaryIO
    planner: Planner
    source: str
    format: str = ""
    encoding: str = "utf-8"
    visit: Callable[[Task], None] = lambda task: None
    ahead: int = 1024
    _queue: queue.Queue[PromptLine | BadLine | DdgenError | None] = field(init=False)
    _tasks: Iterator[Task] = iter(())
    lines: int = 0
    _ended: bool = False

    def __post_init__(self) -> None:
        self._queue = queue.Queue(self.ahead)
        threading.Thread(target=self._read, daemon=True, name="prompts").start()

    def _read(self) -> None:
        try:
            for line in stream(self.file, self.source, self.format, self.encoding):
                self._queue.put(line)
        except DdgenError as error:
            self._queue.put(error)
        except (OSError, ValueError):
            pass  # the other end is gone, or the program is ending
        self._queue.put(None)

    def next(self, wait: bool) -> Task | BadLine | Missed | InputError | None:
        while True:
            try:
                task = next(self._tasks, None)
            except InputError as error:
                self._tasks = iter(())
                return error
            if task is not None:
                return self._visited(task)
            if self._ended:
                raise StopIteration
            try:
                line = self._queue.get(timeout=WAIT) if wait else self._queue.get_nowait()
            except queue.Empty:
                return None
            if line is None:
                self._ended = True
                raise StopIteration
            if isinstance(line, DdgenError):
                raise line
            self.lines += 1
            if isinstance(line, BadLine):
                return line
            self._tasks = self.planner.tasks(line)

    def _visited(self, task: Task) -> Task | Missed:
        try:
            self.visit(task)
        except DdgenError as error:
            return Missed(task, error)
        return task
