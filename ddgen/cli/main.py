"""The entry point. It puts signals and streams in order before anything slow, Typer included, is imported."""

import gc
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the console script, or `python -m ddgen`."""
    gc.disable()  # a start makes no garbage; a command that works for long turns it on again
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback for a Ctrl-C during the imports

    from ddgen.cli import process

    process.take_over()

    from ddgen.cli.program import run

    process.leave(run(sys.argv[1:]))
