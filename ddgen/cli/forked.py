"""What a fork of the warm worker does first: become the process that the caller would have been, then run.

Signals, streams, directory, environment, umask, limits and priority are taken over before a line of the
program runs; if one cannot be, the fork ends without a word and the caller runs by itself.
"""

import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import time
from typing import Any, NoReturn

from ddgen.cli import companion, wire


def live(line: socket.socket, request: dict[str, Any], descriptors: list[int], report: int) -> NoReturn:
    """Take over the caller's surroundings and run its call to the end; `report` is the worker's pipe."""
    line.settimeout(companion.PATIENCE)
    become(request, descriptors)
    handle = os.pidfd_open(os.getpid())
    wire.send(line, {"started": True}, [handle])
    os.close(handle)

    from ddgen.cli import keeping
    from ddgen.cli.main import work

    def last(code: int) -> None:
        told = keeping.report()
        if len(told) < 60_000:  # what a pipe takes at once
            with contextlib.suppress(OSError):  # the worker was killed
                os.write(report, told)
        say(line, code)

    work(last)


def say(line: socket.socket, code: int) -> None:
    """Tell the caller the exit code oneself: the worker may have been killed meanwhile."""
    with contextlib.suppress(OSError):
        wire.send(line, {"code": code})


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Take over what the caller's process is made of.

    Raises:
        OSError, ValueError, KeyError, TypeError: it cannot be taken over.
    """
    for number in (*companion.FORWARDED, signal.SIGCHLD):
        ignored = number in request["ignored"]
        signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    directory, *streams = descriptors
    if len(streams) != len(request["streams"]):
        raise ValueError("streams are missing")
    os.fchdir(directory)
    os.close(directory)
    for number in (0, 1, 2):
        if number not in request["streams"]:
            os.close(number)
    for number, stream in zip(request["streams"], streams, strict=True):
        os.dup2(stream, number, inheritable=True)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.umask(request["umask"])
    for kind, soft, hard in request["limits"]:
        resource.setrlimit(kind, (soft, hard))
    sys.argv[:] = ["ddgen", *request["arguments"]]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if number not in request["streams"]:
            setattr(sys, name, None)  # as Python does it for a stream that is closed
    gc.disable()
