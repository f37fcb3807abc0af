r"""Prompt files: text, JSONL, CSV or TOML in, one typed line after the other out; memory does not grow with
the number of lines.

    a red apple                                 txt: a prompt a line, `#` starts a comment line
    a blue cup --steps 20,30 --seed 7           ... with options behind it (`\--` is two plain dashes)
    --prompt "a cat" --negative_prompt blurry   ... or all in options, as A1111 writes them
    {"prompt": "a fox", "steps": 20}            jsonl: an object a line
    prompt,steps                                csv: the first line names the columns
    prompts = ["a tulip", {prompt = "..."}]     toml: with an optional [defaults] table

Every file is data: it names no other file but pictures beside or below it. Knows no planner, no expansion, no range of a setting.
"""

import codecs
import io
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ddgen.errors import InputError, UsageError
from ddgen.io.lines import BadLine, PromptLine, decode, numbered, read_line
from ddgen.io.records import MAX_TOML_BYTES, csv_lines, jsonl_line, toml_lines
from ddgen.io.settings import SettingError, Settings, Value, key_name, read_values

SUFFIXES = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".toml": "toml",
}
FORMATS = ("txt", "jsonl", "csv", "tsv", "toml")

_SPOOL_BYTES = 2**20
_OPTION = re.compile(r"(?:^|(?<=\s))--([A-Za-z][\w-]*)")


def shown_name(path: str) -> str:
    """Return how messages call a prompt file; `-` is standard input."""
    return "standard input" if path == "-" else f"prompt file '{path}'"


def check_encoding(encoding: str) -> str:
    """Return the codec's own name.

    Raises:
        UsageError: unknown, or one in which lines cannot be found byte by byte (UTF-16).
    """
    try:
        name = codecs.lookup(encoding).name
        plain = "a\n\r".encode(name) == b"a\n\r"
    except (LookupError, ValueError, UnicodeError):
        raise UsageError(
            f"unknown encoding '{encoding}'", "use utf-8, latin-1 or cp1252", id="usage.encoding"
        ) from None
    if not plain:
        raise UsageError(
            f"--encoding {encoding} is not a byte encoding",
            f"convert the file: iconv -f {encoding} -t UTF-8",
            id="usage.encoding",
        )
    return name


def guess_format(path: str, first_line: bytes) -> str:
    """Tell the format from the file's suffix, else from its first line that is not blank."""
    suffix = Path(path).suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    return "jsonl" if re.match(rb'\s*\{\s*["}]', first_line) else "txt"


def stream(
    file: BinaryIO, source: str, format: str = "", encoding: str = "utf-8"
) -> Iterator[PromptLine | BadLine]:
    """Yield the lines of a file as they arrive, reading no further than asked for. source: its name in
    messages.

    Raises:
        InputError: what no line can be blamed for: UTF-16, an unknown column, broken TOML, more than
        MAX_LINES lines.
    """
    first = read_line(file)
    if _looks_like_utf16(first):
        raise InputError(
            f"{source}: looks like UTF-16", "convert it: iconv -f UTF-16 -t UTF-8", id="prompts.utf16"
        )
    first = first.removeprefix(codecs.BOM_UTF8)
    kind = format if format else guess_format("", first)
    if kind == "toml":
        yield from toml_lines(first + file.read(MAX_TOML_BYTES), source, encoding)
        return
    raw = numbered(file, first, source)
    if kind in ("csv", "tsv"):
        yield from csv_lines(raw, source, encoding, "," if kind == "csv" else "\t")
        return
    read = jsonl_line if kind == "jsonl" else _text_line
    for number, line in raw:
        found = _parse(read, line, source, number, encoding)
        if found is not None:
            yield found


def _looks_like_utf16(line: bytes) -> bool:
    """Tell by the mark at the start, or by every other byte being NUL."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    head = line[:64]
    nuls = sorted((head[::2].count(0), head[1::2].count(0)))
    return len(head) >= 4 and nuls[0] == 0 and nuls[1] * 5 >= len(head) * 2


def _parse(
    read: Callable[[str], tuple[str, Settings] | None], line: bytes, source: str, number: int, encoding: str
) -> PromptLine | BadLine | None:
    """Decode and read one line; None for blank lines and comments."""
    text = ""
    try:
        text = decode(line, encoding)
        found = read(text)
    except SettingError as error:
        return BadLine(source, number, str(error), error.hint, text[:2000])
    return None if found is None else PromptLine(source, number, *found)


def _text_line(text: str) -> tuple[str, Settings] | None:
    """Read `PROMPT [--key value]...`."""
    text = text.strip()
    if not text or text.startswith("#"):
        return None
    text = text.removeprefix("\\") if text.startswith("\\#") else text
    spots = list(_OPTION.finditer(text)) if "--" in text else []
    prompt: str | None = text[: spots[0].start()].rstrip() if spots else text
    settings: dict[str, tuple[Value, ...]] = {}
    ends = [spot.start() for spot in spots[1:]] + [len(text)]
    for spot, end in zip(spots, ends, strict=False):
        value = text[spot.end() : end].strip()
        name = key_name(spot[1])
        value = _unquote(value.removeprefix("=").strip())
        if name == "prompt":
            if prompt:
                raise SettingError(
                    "the prompt is given twice", "write it before the options or behind --prompt"
                )
            prompt = value
        elif name in settings:
            raise SettingError(
                f"'--{spot[1]}' is given twice", "write several values with commas: --steps 20,30"
            )
        elif not value and name not in ("negative", "note"):
            raise SettingError(
                f"'--{spot[1]}' has no value",
                f"write --{spot[1]} VALUE, or \\--{spot[1]} if it is part of the prompt",
            )
        else:
            settings[name] = read_values(name, value)
    if prompt == "" and not any(spot[1] == "prompt" for spot in spots):
        raise SettingError("the line has no prompt", 'write it before the options or behind --prompt ""')
    return (prompt or "").replace("\\--", "--"), settings


def _unquote(value: str) -> str:
    """Take off one pair of quotes; inside double ones `\\"` and `\\\\` are a quote and a backslash."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r'\\(["\\])', r"\1", value[1:-1])
    if len(value) >= 2 and value[0] == value[-1] == "'":
        return value[1:-1]
    return value


@dataclass
class PromptFile:
    """One prompt file on disk, opened once, so that what was checked is what is read.

    path: a regular file, or a pipe (then it is copied to a temporary file first).
    """

    path: str
    format: str = ""
    encoding: str = "utf-8"
    _file: BinaryIO = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._file = _open(self.path)
        if not self.format:
            self.format = guess_format(self.path, _first_filled(self._file))

    def lines(self) -> Iterator[PromptLine | BadLine]:
        """Yield every line, from the start."""
        self._file.seek(0)
        return stream(self._file, shown_name(self.path), self.format, self.encoding)

    def close(self) -> None:
        self._file.close()


def _first_filled(file: BinaryIO) -> bytes:
    file.seek(0)
    line = read_line(file)
    while line and not line.strip(b" \t\r\n\xef\xbb\xbf"):
        line = read_line(file)
    file.seek(0)
    return line.removeprefix(codecs.BOM_UTF8)


def _open(path: str) -> BinaryIO:
    name = shown_name(path)
    try:
        file: BinaryIO = io.BufferedReader(io.FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
    except FileNotFoundError:
        raise InputError(
            f"{name}: no such file", "check the path or use '-' for standard input", id="prompts.missing"
        ) from None
    except IsADirectoryError:
        mend = f"name the files in it: {path.rstrip('/')}/*.txt"
        raise InputError(f"{name}: is a directory", mend, id="prompts.unreadable") from None
    except (OSError, ValueError) as error:
        reason = (
            error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not a file name"
        )
        raise InputError(
            f"{name}: {reason}", "check the path or use '-' for standard input", id="prompts.unreadable"
        ) from None
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode):
        return file
    spool = tempfile.TemporaryFile()
    while chunk := file.read(_SPOOL_BYTES):
        spool.write(chunk)
    file.close()
    spool.seek(0)
    return spool  # type: ignore[return-value]
