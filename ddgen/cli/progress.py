"""How far the work is: a bar on a terminal, elsewhere one line every ten seconds, JSON events, or nothing.

with make_progress("auto", total=50, unit="steps") as progress:
    progress.advance(1, "a red apple")
"""

import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ddgen.cli import console, process

if TYPE_CHECKING:
    import rich.progress

MODES = ("auto", "bar", "log", "json", "none")
LOG_EVERY = 10.0  # seconds
EVENT_EVERY = 0.1  # seconds


class Progress:
    """Counts and shows nothing; the base of the three that do."""

    def __init__(self, total: int, unit: str) -> None:
        self.total = total
        self.unit = unit
        self.done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units as done; `note` says of what."""
        self.done += count


class LogProgress(Progress):
    """A line every ten seconds, for logs: `ddgen: 120/500 steps, 2.1/s, 3 min left`."""

    def __init__(self, total: int, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(total, unit)
        self._clock = clock
        self._begun = self._shown = clock()

    def advance(self, count: int = 1, note: str = "") -> None:
        super().advance(count, note)
        now = self._clock()
        if now - self._shown >= LOG_EVERY:
            self._shown = now
            rate = self.done / (now - self._begun)
            if self.total:
                left = duration((self.total - self.done) / rate)
                console.say(f"ddgen: {self.done}/{self.total} {self.unit}, {rate:.3g}/s, {left} left")
            else:  # a stream, whose end nobody knows
                console.say(f"ddgen: {self.done} {self.unit}, {rate:.3g}/s")


class EventProgress(Progress):
    """A JSON object a line on standard error, at most ten a second and always the last."""

    def __init__(self, total: int, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(total, unit)
        self._clock = clock
        self._shown = float("-inf")

    def advance(self, count: int = 1, note: str = "") -> None:
        super().advance(count, note)
        now = self._clock()
        if now - self._shown >= EVENT_EVERY or self.done >= self.total:
            self._shown = now
            event = {
                "schema": "ddgen/1",
                "type": "progress",
                "done": self.done,
                "total": self.total,
                "unit": self.unit,
            }
            process.write_error(json.dumps(event) + "\n")


class BarProgress(Progress):
    """A bar with count, rate and time left on a terminal; it goes away when the work is done."""

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        screen = Console(stderr=True, markup=False, highlight=False, no_color=not console.color_on())
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(self.unit, markup=False),
            TimeRemainingColumn(),
        )
        self._bar: rich.progress.Progress = Progress(*columns, console=screen, transient=True)
        self._task = self._bar.add_task("", total=self.total or None)
        process.at_end(lambda: "\r\x1b[2K\x1b[?25h")  # a signal leaves no half bar and no hidden cursor
        self.show()
        console.keep_live(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        console.keep_live(None)
        self.hide()

    def hide(self) -> None:
        """Leave the screen."""
        self._bar.stop()

    def show(self) -> None:
        """Come back."""
        self._bar.start()

    def advance(self, count: int = 1, note: str = "") -> None:
        super().advance(count, note)
        shown = console.safe(note).replace("\n", " ")
        self._bar.update(
            self._task, advance=count, description=shown if len(shown) <= 30 else shown[:27] + "..."
        )


def make_progress(mode: str, total: int, unit: str) -> Progress:
    """Return the progress that `--progress MODE` asks for; `-q` and `auto` choose by the terminal."""
    if console.manners.quiet:
        mode = "none"
    if mode == "auto":
        mode = "bar" if process.is_terminal(2) else "log"
    kinds: dict[str, type[Progress]] = {
        "bar": BarProgress,
        "log": LogProgress,
        "json": EventProgress,
        "none": Progress,
    }
    return kinds[mode](total, unit)


def duration(seconds: float) -> str:
    """Return a time for people: `8 s`, `3 min`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
