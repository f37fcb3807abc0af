"""Everything that can go wrong because of what was given, as one small tree.

    DdgenError            1  (never raised itself)
      UsageError          2  a flag or a value
      InputError          4  prompt file, image, TOML, config
      ModelError          5  weights missing, corrupt, refused or unfit
      NetworkError        6  download failed, offline
      OutputError         7  space, permission, exists, path, standard output
      ResourceError       8  memory, device
      NumericsError       9  non-finite numbers
      BusyError          10  locked by another run

The number is the exit code of the command line; codes never change meaning. `message` says what was given and what is allowed, `hint`
is the one mend that works, `id` a stable name for programs. Libraries raise; only cli/console.py prints.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class DdgenError(Exception):
    """An error that the user can mend: one line of `message`, one `hint`."""

    exit_code = 1
    default_id = "error"

    def __init__(self, message: str, hint: str = "", *, id: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.id = id if id else self.default_id

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(DdgenError):
    exit_code = 2
    default_id = "usage"


class InputError(DdgenError):
    exit_code = 4
    default_id = "input"


class ModelError(DdgenError):
    exit_code = 5
    default_id = "model"


class NetworkError(DdgenError):
    exit_code = 6
    default_id = "network"


class OutputError(DdgenError):
    exit_code = 7
    default_id = "output"


class ResourceError(DdgenError):
    exit_code = 8
    default_id = "resource"


class NumericsError(DdgenError):
    exit_code = 9
    default_id = "numerics"


class BusyError(DdgenError):
    exit_code = 10
    default_id = "busy"


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice spelt most like `word`, or None when nothing is close."""
    found = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def choose(kind: str, word: str, choices: Iterable[str], *, error: type[DdgenError] = UsageError) -> str:
    """Return `word` if it is one of `choices`.

    Raises:
        DdgenError: of the given class, naming the nearest spelling or all choices.
    """
    names = sorted(choices)
    if word in names:
        return word
    close = nearest(word, names)
    hint = f"did you mean '{close}'?" if close is not None else "one of: " + ", ".join(names)
    raise error(f"unknown {kind} '{word}'", hint, id=f"{error.default_id}.{kind.replace(' ', '-')}")
