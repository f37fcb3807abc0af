"""One line of a prompt file: what a good and a bad one are, and how bytes become lines.

A bad line is a value, not an exception: a stream goes on after it, a file that is checked whole is refused
because of it. Lines are found byte by byte, so nothing longer than MAX_LINE_BYTES is ever held.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ddgen.errors import InputError
from ddgen.io.settings import SettingError, Settings

MAX_LINE_BYTES = 64 * 1024
MAX_LINES = 1_000_000
MAX_SHOWN_FAULTS = 5


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One good line: its prompt and what it says about settings."""

    source: str
    number: int
    prompt: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class BadLine:
    """One line that cannot be used.

    text: the line as far as it could be read, for the list of failed items.
    """

    source: str
    number: int
    message: str
    hint: str
    text: str = ""

    def error(self) -> InputError:
        return InputError(f"{self.source} line {self.number}: {self.message}", self.hint, id="prompts.line")


class Faults(InputError):
    """A file with bad lines: the first is the message, `others` are the next few, `more` counts the rest."""

    def __init__(self, first: BadLine, others: list[BadLine], more: int) -> None:
        head = first.error()
        super().__init__(head.message, head.hint, id=head.id)
        self.others = others
        self.more = more


def collect_faults(bad: Iterator[BadLine]) -> Faults | None:
    """Gather the first few bad lines and count the rest; None when there are none."""
    first = next(bad, None)
    if first is None:
        return None
    others: list[BadLine] = []
    more = 0
    for line in bad:
        if len(others) < MAX_SHOWN_FAULTS - 1:
            others.append(line)
        else:
            more += 1
    return Faults(first, others, more)


def read_line(file: BinaryIO) -> bytes:
    return file.readline(MAX_LINE_BYTES + 2)


def numbered(file: BinaryIO, first: bytes, source: str) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line without its end).

    What is beyond MAX_LINE_BYTES of one line is skipped, the excess marked by its length.
    """
    number, line = 0, first
    while line:
        number += 1
        if number > MAX_LINES:
            raise InputError(
                f"{source} has more than {MAX_LINES} lines", "split it: split -l 1000000", id="prompts.lines"
            )
        if not line.endswith(b"\n"):
            rest = line if len(line) > MAX_LINE_BYTES else b""
            while rest and not rest.endswith(b"\n"):
                rest = read_line(file)
        yield number, line.rstrip(b"\r\n") if line.endswith(b"\n") else line
        line = read_line(file)


def decode(line: bytes, encoding: str) -> str:
    """Return the text of a line.

    Raises:
        SettingError: too long, a NUL byte, or bytes that the encoding does not know.
    """
    if len(line) > MAX_LINE_BYTES:
        raise SettingError(f"the line is longer than {MAX_LINE_BYTES} bytes", "one prompt a line; shorten it")
    if b"\0" in line:
        raise SettingError(f"NUL byte at column {line.index(0) + 1}", "take it out: tr -d '\\000'")
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        column = len(line[: error.start].decode(encoding, "replace")) + 1
        name = "UTF-8" if encoding == "utf-8" else encoding
        raise SettingError(f"invalid {name} at column {column}", "fix the line or use --encoding") from None
