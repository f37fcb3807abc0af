"""Wildcard files: `__animal__` means a line of animal.txt in the wildcard folder. Torch-free.

A name is a path beneath the folder without its suffix (`__birds/owl__`); `*` stands for any part of one path
component, `**` for any number of components. A file holds a value a line, in UTF-8; blank lines and lines
that begin with `#` are skipped. Names come from prompts, so nothing outside the folder is ever read, links
included.
"""

import os
import re
from pathlib import Path

from ddgen.errors import InputError, nearest

MAX_BYTES = 2**20
MAX_FILES = 10_000
SUFFIX = ".txt"


class Wildcards:
    """The wildcard files of one folder; each is read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: dict[str, tuple[str, ...]] = {}
        self._known: list[str] | None = None

    def names(self) -> list[str]:
        """Return the names of all files in the folder, sorted.

        Raises:
            InputError: the folder cannot be read, or holds more than 10,000 files.
        """
        if self._known is None:
            self._known = sorted(self._walk())
        return self._known

    def lines(self, name: str) -> tuple[str, ...]:
        """Return the values of a name, in the order of files and lines; at least one.

        Raises:
            InputError: no such file, nothing in it, not UTF-8, too large, or outside the folder.
        """
        if name not in self._lines:
            found = self._glob(name) if "*" in name else [name]
            lines = tuple(line for one in found for line in self._read(one))
            if not lines:
                raise InputError(f"wildcard '{name}' has no values", "write one a line", id="input.wildcard")
            self._lines[name] = lines
        return self._lines[name]

    def _walk(self) -> list[str]:
        names = []
        for folder, _, files in os.walk(self._folder, onerror=_unreadable):
            for file in files:
                if file.endswith(SUFFIX):
                    names.append(Path(folder, file).relative_to(self._folder).as_posix().removesuffix(SUFFIX))
            if len(names) > MAX_FILES:
                raise InputError(
                    f"more than {MAX_FILES:,} wildcard files in '{self._folder}'",
                    "give a smaller folder",
                    id="input.wildcard",
                )
        return names

    def _glob(self, pattern: str) -> list[str]:
        parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
        pieces = re.split(r"(\*\*/|\*\*|\*)", pattern)
        expression = re.compile("".join(parts.get(piece) or re.escape(piece) for piece in pieces), re.DOTALL)
        found = [name for name in self.names() if expression.fullmatch(name)]
        if not found:
            raise self._unknown(pattern)
        return found

    def _unknown(self, name: str) -> InputError:
        names = self.names()
        close = nearest(name, names)
        hint = (
            f"did you mean '__{close}__'?"
            if close is not None
            else f"write a value a line into {name}{SUFFIX}"
        )
        return InputError(f"no wildcard file '{name}{SUFFIX}'", hint, id="input.wildcard")

    def _read(self, name: str) -> list[str]:
        try:
            root = self._folder.resolve()
            path = (self._folder / f"{name}{SUFFIX}").resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, a loop of links
            raise InputError(
                f"wildcard '{name}' cannot be read: {error}", "rename it", id="input.wildcard"
            ) from error
        if not path.is_relative_to(root):
            raise InputError(
                f"wildcard '{name}' lies outside the wildcard folder",
                "copy the file into it",
                id="input.wildcard",
            )
        if not path.is_file():
            raise self._unknown(name)
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
        except OSError as error:
            raise InputError(
                f"wildcard file '{name}{SUFFIX}': {error.strerror}",
                "check its permissions",
                id="input.wildcard",
            ) from error
        if len(data) > MAX_BYTES:
            raise InputError(
                f"wildcard file '{name}{SUFFIX}' is larger than {MAX_BYTES // 2**20} MiB",
                "split it",
                id="input.wildcard",
            )
        return _values(name, data)


def _values(name: str, data: bytes) -> list[str]:
    values = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise InputError(
                f"wildcard file '{name}{SUFFIX}' line {number}: invalid UTF-8 at column {error.start + 1}",
                "save it as UTF-8",
                id="input.encoding",
            ) from error
        if text and not text.startswith("#"):
            values.append(text)
    return values


def _unreadable(error: OSError) -> None:
    words = (error.strerror or str(error)).lower()
    mend = "name it with --wildcards, or write \\__ for plain underscores"
    raise InputError(f"wildcard folder '{error.filename}': {words}", mend, id="input.wildcard") from error
