"""The entry point. It puts signals and streams in order before anything slow, Typer included, is imported."""

import gc
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def main() -> NoReturn:
    """Run the console script, or `python -m ddgen`: in a warm worker if there is one, else here."""
    gc.disable()  # a start makes no garbage; a command that works for long turns it on again
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback for a Ctrl-C during the imports

    from ddgen.cli import handover

    handover.offer(sys.argv[1:])
    work(leave_worker)


def work(last: Callable[[int], None]) -> NoReturn:
    """Run the program in this process to its end; `last` gets the exit code before it ends."""
    from ddgen.cli import process

    process.take_over()

    from ddgen.cli.program import run

    code = run(sys.argv[1:])
    last(code)
    process.leave(code)


def leave_worker(code: int) -> None:
    """Start a warm worker for the calls after this one, if it was asked for."""
    keeping = sys.modules.get("ddgen.cli.keeping")
    if keeping is not None:
        keeping.finish(code)
