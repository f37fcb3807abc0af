"""`ddgen warm`: look at, or stop, the worker that `--keep-alive` leaves behind."""

import os
import signal
from typing import Any

import typer

from ddgen.cli import console, flags, standin

EXAMPLES = """Examples:
  ddgen sample "a red apple" --keep-alive 5m
  ddgen warm status
  ddgen warm stop
"""
PATIENCE = 20.0  # seconds: a worker that loads a model answers when it has it


def register(app: typer.Typer) -> None:
    """Declare the command and those below it."""
    below = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Show or stop the worker that --keep-alive leaves.",
        epilog=EXAMPLES,
    )
    below.command("status", epilog=EXAMPLES)(status)
    below.command("stop")(stop)
    app.add_typer(below, name="warm")


def status(json: flags.Json = False, debug: flags.Debug = False) -> None:
    """Show the workers of this user: how long they stay, and which models they hold."""
    found = [answer for path in sockets() if (answer := ask(path, "status")) is not None]
    for answer in found:
        if json:
            console.out_json({"type": "worker", **answer})
        else:
            models = ", ".join(answer["models"]) or "no model yet"
            console.out(
                f"pid {answer['pid']}: {models}; {answer['calls']} calls, {answer['running']} running; "
                f"stays {answer['left']:.0f} s of {answer['keep']} s"
            )
    if not found:
        console.say("ddgen: no worker is there; a call with --keep-alive 5m leaves one")


def stop(debug: flags.Debug = False) -> None:
    """Stop the workers of this user; calls that run go on to their end."""
    found = [answer["pid"] for path in sockets() if (answer := ask(path, "stop")) is not None]
    found += [pid for path in files(".lock") if (pid := end_starting(path)) is not None]
    for pid in found:
        console.say(f"ddgen: worker {pid} stopped")
    if not found:
        console.say("ddgen: no worker is there")


def sockets() -> list[str]:
    """Return the sockets in the user's directory."""
    return files(".sock")


def files(suffix: str) -> list[str]:
    """Return the files of workers in the user's directory, if it is his alone."""
    folder = standin.directory()
    if not standin.possible() or not standin.is_private(folder):
        return []
    return sorted(f"{folder}/{name}" for name in os.listdir(folder) if name.endswith(suffix))


def end_starting(lock: str) -> int | None:
    """End the worker that holds a lock but has no socket yet, and return its number; clear up after one that
    was killed."""
    import fcntl

    socket = lock.removesuffix(".lock") + ".sock"
    try:
        held = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in (socket, lock):
            if os.path.lexists(path):
                os.unlink(path)
        return None
    except BlockingIOError:
        pid = os.pread(held, 20, 0)
        if os.path.exists(socket) or not pid.isdigit():
            return None
        os.kill(int(pid), signal.SIGTERM)
        fcntl.flock(held, fcntl.LOCK_EX)  # it lets go when it has ended
        if os.path.lexists(lock):
            os.unlink(lock)
        return int(pid)
    finally:
        os.close(held)


def ask(path: str, what: str) -> dict[str, Any] | None:
    """Return a worker's answer, None where none answers."""
    from ddgen.cli import wire

    try:
        with wire.connect(path, PATIENCE) as line:
            wire.send(line, {"do": what})
            return wire.receive(line)[0]
    except OSError:
        return None
