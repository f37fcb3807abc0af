"""The one place that prints: results to standard output, all else to standard error, an error as one line.

    ddgen: error: unknown sampler 'eular'; did you mean 'euler'?

Every string that came from outside passes `safe`, so that a prompt or a path cannot steer the terminal, and
none is read as markup.
"""

import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ddgen.cli import process
from ddgen.errors import DdgenError

COLORS = ("auto", "always", "never")
MAX_LINE = 300  # bytes of an error line, behind "ddgen: error: "


@dataclass
class Manners:
    """How this run wants to be spoken to."""

    color: str = "auto"
    quiet: bool = False
    verbose: int = 0
    debug: bool = False
    json: bool = False
    events: bool = False
    preview: bool = False


manners = Manners()


def configure(*, color: str, quiet: bool, verbose: int, json: bool) -> None:
    """Take over how the run wants to be spoken to, once its flags are parsed."""
    manners.color, manners.quiet, manners.verbose, manners.json = color, quiet, verbose, json


class Live(Protocol):
    """Something that stays on the screen and must step aside while a line is printed."""

    def hide(self) -> None: ...

    def show(self) -> None: ...


_live: list[Live] = []


@contextmanager
def aside() -> Iterator[None]:
    """Take what is live off the screen for as long as a line is printed."""
    for part in _live:
        part.hide()
    yield
    for part in _live:
        part.show()


def keep_live(part: Live | None) -> None:
    """Have `part` step aside whenever something is printed; None: nothing is live any more."""
    _live[:] = [] if part is None else [part]


def out(text: str, *, end: str = "\n") -> None:
    """Print a result."""
    shown = safe(text) if process.is_terminal(1) else text
    with aside():
        process.write_output(os.fsencode(shown + end))


def out_json(data: dict[str, object]) -> None:
    """Print a result as one line of ASCII JSON."""
    with aside():
        process.write_output((json.dumps({"schema": "ddgen/1", **data}) + "\n").encode())


def out_bytes(data: bytes) -> None:
    """Print a result that is no text."""
    process.write_output(data)


def say(text: str) -> None:
    """Tell the user something that is no result."""
    if not manners.quiet:
        with aside():
            process.write_error(f"{safe(text)}\n")


def page(text: str) -> None:
    """Show a help page to somebody who did not ask for it."""
    process.write_error(text + "\n")


def detail(text: str) -> None:
    """Tell something that only -v asks for."""
    if manners.verbose:
        say(text)


def warn(text: str) -> None:
    """Tell the user of something that may surprise; whoever listens to events hears it among them."""
    if manners.events:
        out_json({"type": "warning", "message": text})
        return
    if manners.quiet:
        return
    line = f"ddgen: {paint('warning:', '33')} {safe(text)}"
    if manners.json:
        line = json.dumps({"schema": "ddgen/1", "type": "warning", "message": text})
    with aside():
        process.write_error(line + "\n")


def fail(error: DdgenError) -> int:
    """Show an error and return the exit code."""
    if manners.json:
        thing = re.search(r"'([^']*)'|(--[\w-]+)", error.message)
        record = {
            "schema": "ddgen/1",
            "type": "error",
            "code": error.exit_code,
            "id": error.id,
            "thing": (thing[1] or thing[2]) if thing is not None else "",
            "message": error.message,
            "mend": error.hint,
        }
        process.write_error(json.dumps(record) + "\n")
    else:
        process.write_error(f"ddgen: {paint('error:', '1;31')} {line_of(error)}\n")
    if manners.debug:
        process.write_error(_traceback(error))
    return error.exit_code


def line_of(error: DdgenError) -> str:
    """Return an error's line: what is wrong, the mend; long values are shortened in their middle."""
    message, hint = (safe(part).replace("\n", "\\n") for part in (error.message, error.hint))
    room = MAX_LINE - len(hint.encode()) - 2
    if len(message.encode()) > room:
        keep = max(40, room - 3) // 2
        message = f"{_head(message, keep)}...{_tail(message, keep)}"
    return f"{message}; {hint}" if hint else message


def bug(error: BaseException) -> int:
    """Show an error that ddgen should have seen coming, and return the exit code."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = (
        f" in {Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place is not None else ""
    )
    wrapped = DdgenError(
        f"internal error ({type(error).__name__}{where})",
        "run again with --debug and report it",
        id="internal",
    )
    wrapped.__cause__ = error
    return fail(wrapped)


def safe(text: str) -> str:
    """Return a text without what steers a terminal: controls, changes of direction, lone surrogates."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c == "\n" or _harmless(c) else _escaped(c) for c in text)


def color_on(number: int = 2) -> bool:
    """Tell whether colours are wanted on standard stream 1 or 2."""
    if manners.color != "auto":
        return manners.color == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") != "0" or os.environ.get("CLICOLOR_FORCE", "0") != "0":
        return True
    return process.is_terminal(number) and os.environ.get("TERM") != "dumb"


def paint(text: str, code: str, number: int = 2) -> str:
    """Return our own text in a colour, where colours are wanted."""
    return f"\x1b[{code}m{text}\x1b[0m" if color_on(number) else text


def configure_from(arguments: list[str]) -> None:
    """Take from the raw arguments how errors are wanted, since one may come before they are parsed."""
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    manners.debug = "--debug" in flags or os.environ.get("DDGEN_DEBUG", "0") not in ("", "0")
    manners.json = "--json" in flags
    if "--color" in flags[:-1] and flags[flags.index("--color") + 1] in COLORS:
        manners.color = flags[flags.index("--color") + 1]


def _harmless(c: str) -> bool:
    return unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or c == "\u200d"


def _escaped(c: str) -> str:
    code = ord(c)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code & 0xFF:02x}"  # a byte of an argument that is not UTF-8
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def _head(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def _tail(text: str, size: int) -> str:
    return text.encode()[-size:].decode(errors="ignore")


def _traceback(error: BaseException) -> str:
    import platform
    import traceback

    from ddgen import __version__

    text = "".join(traceback.format_exception(error))
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = text.replace(home, "~")
    token = os.environ.get("HF_TOKEN")
    text = text.replace(token, "***") if token else text
    loaded = sys.modules.get("torch")
    torch = f", torch {loaded.__version__}" if loaded is not None else ""
    system = f"{platform.system()} {platform.machine()}"
    return safe(f"{text}ddgen {__version__}, Python {platform.python_version()}{torch}, {system}\n")
