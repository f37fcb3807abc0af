"""The process and what surrounds it: its three standard streams, and the signals that end it.

A missing stream is replaced by /dev/null before anything is opened, or the next file would get its number.
Standard output is moved aside: results go to the copy kept here, and whatever a library prints on number 1
lands on standard error.

Signals end the process by themselves, as a shell expects: the handler tells what was saved, removes the temp
in hand, puts the default action back and sends the signal again. Finished pictures are already whole under
their names.
"""

import atexit
import errno
import os
import signal
import stat
import sys
from collections.abc import Callable
from typing import NoReturn

from ddgen.errors import OutputError
from ddgen.io import files

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_closed: set[int] = set()
_output = 1
_last_words: list[Callable[[], str]] = []


def take_over() -> None:
    """Put the standard streams in order and catch the signals that end a program. Call first."""
    global _output
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _closed.add(number)
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            os.set_inheritable(number, True)
    _output = os.dup(1)
    os.dup2(2, 1)
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's choice stands
            signal.signal(number, _end)


def is_closed(number: int) -> bool:
    """Tell whether standard stream 0, 1 or 2 was closed when the program began."""
    return number in _closed


def is_terminal(number: int) -> bool:
    """Tell whether standard stream 0, 1 or 2 is a terminal."""
    return os.isatty(_output if number == 1 else number)


def check_output() -> None:
    """Refuse to work for a standard output that is closed.

    Raises:
        OutputError: it is.
    """
    if is_closed(1):
        raise OutputError(
            "standard output is closed",
            "leave it open, or send it to a file with '>FILE'",
            id="output.stdout-closed",
        )


def write_output(data: bytes) -> None:
    """Write all of `data` to standard output now.

    Raises:
        OutputError: the system refuses. A reader that went away ends the process silently instead.
    """
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(_output, rest) :]
    except OSError as error:
        if error.errno == errno.EPIPE:
            end_by(signal.SIGPIPE)
        words, _ = files.reason(error)
        raise OutputError(
            f"standard output: {words}", "send it to another place with '>FILE'", id="output.stdout"
        ) from error


def write_error(text: str) -> None:
    """Write a message to standard error; where nobody listens, the work goes on."""
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def read_input() -> bytes:
    """Return all of standard input."""
    parts = []
    while part := os.read(0, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def input_is_piped() -> bool:
    """Tell whether standard input is a pipe or a file, so that reading it will end."""
    if is_closed(0):
        return False
    mode = os.fstat(0).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def at_end(last_words: Callable[[], str]) -> None:
    """Have `last_words` called, and what it returns shown, when a signal ends the process."""
    _last_words.append(last_words)


def at_first_signal(told: Callable[[int], None]) -> None:
    """Have the first signal call `told` instead of ending the process; the second is obeyed at once."""

    def first(number: int, frame: object) -> None:
        for other in ENDING:
            if signal.getsignal(other) is not signal.SIG_IGN:
                signal.signal(other, _end)
        told(number)

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, first)


def end_by(number: int) -> None:
    """End the process by a signal's default action, so that the shell sees which."""
    files.remove_temps()
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)


def leave(code: int) -> NoReturn:
    """End the process at once: taking the interpreter and torch apart would cost half a second."""
    atexit._run_exitfuncs()  # what libraries asked for; there is no public name
    os._exit(code)


def _end(number: int, frame: object) -> None:
    for other in ENDING:
        signal.signal(other, signal.SIG_DFL)  # an insisting signal is obeyed at once
    words = "".join(filter(None, (last() for last in _last_words)))
    write_error(words or "ddgen: interrupted\n")
    end_by(number)


class Stdout:
    """Standard output as text for those that call `print`: the help pages, shell completion."""

    encoding = "utf-8"
    errors = "surrogateescape"

    def write(self, text: str) -> int:
        write_output(text.encode(self.encoding, self.errors))
        return len(text)

    def flush(self) -> None:
        return None

    def isatty(self) -> bool:
        return is_terminal(1)

    def fileno(self) -> int:
        return _output


def divert_prints() -> None:
    """Send to standard error whatever prints: results go through `write_output`."""
    sys.stdout = sys.stderr


def guard_stdout() -> None:
    """Let `print` fail loudly where its text would be lost."""
    sys.stdout = Stdout()  # type: ignore[assignment]  # the part of TextIO that print, click and rich use
