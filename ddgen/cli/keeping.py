"""`--keep-alive`: what a call leaves behind for the next. Asked for while it works, done when it has ended.

The first call runs by itself and starts the worker when its pictures are told, so it waits for nothing; a call
that a worker runs only tells it how long to go on, and which weights it had to load.
"""

import json
import os
import sys

from ddgen.app import kept
from ddgen.cli import standin
from ddgen.errors import UsageError

START = "import sys; sys.path[:] = sys.argv[1:]; from ddgen.cli.worker import main; main()"

_seconds = 0


def ask(seconds: object) -> None:
    """Have a worker stay for this long after the last call; 0: nobody asked.

    Raises:
        UsageError: this system has no worker.
    """
    global _seconds
    _seconds = int(seconds) if isinstance(seconds, int) else 0
    if _seconds and not standin.possible():
        raise UsageError("--keep-alive needs Linux 5.3 or later", "leave it out", id="usage.keep-alive")


def report() -> bytes:
    """Return what the worker must know of a call that has ended."""
    return json.dumps({"keep": _seconds, "loaded": kept.noted}).encode()


def finish(code: int) -> None:
    """Start a worker, if one is wanted and the call went well."""
    if _seconds and code == 0:
        start(report())


def start(begin: bytes) -> None:
    """Start a worker in the background. One that is there already stays, and this one ends at once."""
    import subprocess

    from ddgen.cli import console

    folder = standin.directory()
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        console.warn(f"no worker stays: '{folder}': {(error.strerror or '').lower()}")
        return
    if not standin.is_private(folder):
        console.warn(f"no worker stays: '{folder}' is not yours alone; remove it")
        return
    running = subprocess.Popen(
        [sys.executable, "-P", "-c", START, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=standin.environment(),
        start_new_session=True,
    )
    assert running.stdin is not None
    try:
        running.stdin.write(begin)
        running.stdin.close()
    except OSError:
        pass  # it ended at once: another one is there
