"""A call whose work a warm worker does: this process hands over what it was given, passes signals on, and ends
by the exit code, or the signal, by which the work has ended.

    companion                          worker
    likeness                      ->
                                  <-   ready, or why not
    arguments, environment, ...
    + descriptors                 ->   forks
                                  <-   started + a handle of the process (from the fork itself)
                                  <-   code (from the fork), or code | signal (from the worker that reaps it)

The handle is a pidfd: a signal cannot reach a stranger who was given the same number.
"""

import os
import resource
import select
import signal
import socket
from typing import NoReturn

from ddgen.cli import wire

PATIENCE = 1.0  # seconds to wait for a worker that is busy loading
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
LINGER = 10_000  # milliseconds that the work may need to end after its last word


def go(path: str, words: list[str], arguments: list[str]) -> None:
    """Give the call to the worker at `path` and end as it does; return if it refuses.

    Raises:
        OSError: there is no worker, or it went away before it began.
    """
    streams = [number for number in (0, 1, 2) if is_open(number)]  # before the line takes a free number
    with wire.connect(path, PATIENCE) as line:
        wire.send(line, {"do": "run", "likeness": words, "nice": os.getpriority(os.PRIO_PROCESS, 0)})
        answer, _ = wire.receive(line)
        if answer.get("ready") is not True:
            return
        request, descriptors = surroundings(arguments, streams)
        line.settimeout(None)  # from here on only one of us may run it
        try:
            wire.send(line, request, descriptors)
        finally:
            os.close(descriptors[0])
        answer, descriptors = wire.receive(line)
        if answer.get("started") is not True or len(descriptors) != 1:
            wire.close(descriptors)
            return
        accompany(line, descriptors[0])


def is_open(number: int) -> bool:
    """Tell whether a descriptor is open."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def surroundings(arguments: list[str], streams: list[int]) -> tuple[wire.Message, list[int]]:
    """Return what the worker must take over from this process, and the descriptors that go with it: the
    current directory, then the standard streams that are open; one that is closed must be so there, too.

    Raises:
        OSError: there is no current directory.
    """
    mask = os.umask(0o077)
    os.umask(mask)
    kinds = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "umask": mask,
        "limits": [[kind, *resource.getrlimit(kind)] for kind in kinds],
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "ignored": [number for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN],
        "streams": streams,
    }
    return request, [os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), *streams]


def accompany(line: socket.socket, handle: int) -> NoReturn:
    """Pass signals on to the work behind `handle` until it has ended, then end as it did."""
    last = 0

    def forward(number: int, frame: object) -> None:
        nonlocal last
        last = number
        _tell(handle, number)

    def pause(number: int, frame: object) -> None:
        _tell(handle, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # the shell has its prompt back here
        _tell(handle, signal.SIGCONT)

    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    if signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, pause)
    try:
        answer, _ = wire.receive(line)
    except OSError:
        answer = {"signal": last} if last else {}
    ended = select.poll()
    ended.register(handle, select.POLLIN)
    ended.poll(LINGER)  # its streams are closed now: whoever reads them sees the end before ours
    if isinstance(answer.get("signal"), int):
        end_by(answer["signal"])
    code = answer.get("code")
    os._exit(code if isinstance(code, int) else lost())


def end_by(number: int) -> None:
    """End by a signal, as the work did, so that the shell sees which; without a core of our own."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # a signal whose default is to do nothing


def lost() -> int:
    """Tell that the work and its worker ended without a word, and return the exit code."""
    from ddgen.cli import console
    from ddgen.errors import ResourceError

    return console.fail(
        ResourceError(
            "the warm worker was killed in the middle of the work",
            "run the same command again",
            id="resource.worker",
        )
    )


def _tell(handle: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass  # it has just ended
