"""weights.toml: where it is looked for, and its tables checked. Torch-free; nothing is resolved here.

    [sd15]
    aliases = ["sd1.5"]
    arch = "SD15"                       # a constant of arch.py; left out where the file's own header tells
    repo = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    file = "v1-5-pruned-emaonly.safetensors"
    prediction = "eps"
    licence = "creativeml-openrail-m"
    defaults = { width = 512, height = 512, steps = 25, guidance = 7.5 }

Instead of repo and file: `path` (relative to the weights.toml that says so) or `packaged` (inside ddgen).
Entries of --weights-file, $DDGEN_WEIGHTS and the user's config directory, in this order, go before the
packaged ones; the current directory is never read.
"""

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ddgen.errors import InputError, ModelError, nearest
from ddgen.weights import spec
from ddgen.weights.arch import FAMILIES
from ddgen.weights.spec import Source

PACKAGE = Path(__file__).resolve().parents[1]
VARIABLE = "DDGEN_WEIGHTS"
FILE = "weights.toml"


@dataclass(frozen=True)
class Entry:
    """One table of a weights.toml, checked but not resolved.

    kind: "model", or "vae": an autoencoder alone. said: the plain fields of a Spec that it sets.
    """

    name: str
    home: Path
    kind: str = "model"
    aliases: tuple[str, ...] = ()
    arch: str | None = None
    said: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    source: Source = field(default_factory=Source)
    commercial: bool = True
    default: bool = False
    title: str = ""


_SAID = (
    "prediction",
    "schedule",
    "sigma_data",
    "x0_clamp",
    "zero_negative",
    "distilled",
    "licence",
    "credits",
    "note",
)
_SOURCE = ("path", "packaged", "repo", "file", "revision", "sha256", "size")
_OWN = ("kind", "aliases", "arch", "defaults", "commercial", "default", "title")
_TEXT = (
    "kind",
    "arch",
    "path",
    "packaged",
    "repo",
    "file",
    "revision",
    "sha256",
    "title",
    "prediction",
    "licence",
    "credits",
    "note",
)
_FLAGS = ("commercial", "default", "zero_negative", "distilled")


def weights_files(weights_file: str | Path | None = None) -> list[Path]:
    """Return the weights.toml files to read, the first to win first.

    Raises:
        InputError: one that was named is not there.
    """
    found = []
    for named, origin in (
        (weights_file, "--weights-file"),
        (os.environ.get(VARIABLE) or None, f"${VARIABLE}"),
    ):
        if named is not None:
            if not Path(named).is_file():
                raise InputError(
                    f"{origin} '{named}' is not a file", "check the path", id="input.weights-file"
                )
            found.append(Path(named))
    user = user_config_dir() / FILE
    if user.is_file():
        found.append(user)
    return [*found, packaged_file()]


def packaged_file() -> Path:
    """Return the weights.toml that came with ddgen: package data of a wheel, or at the root of the
    checkout."""
    inside = PACKAGE / FILE
    return inside if inside.is_file() else PACKAGE.parent / FILE


def user_config_dir() -> Path:
    """Return the directory of the user's own settings."""
    import platformdirs

    return Path(platformdirs.user_config_dir("ddgen", appauthor=False))


def entries(weights_file: str | Path | None = None) -> dict[str, Entry]:
    """Return every known entry by name; an entry of an earlier file hides one of the same name.

    Raises:
        InputError: a file that is not TOML, or an entry with a wrong field.
    """
    found: dict[str, Entry] = {}
    for path in weights_files(weights_file):
        for entry in read_entries(path):
            found.setdefault(entry.name, entry)
    return found


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of one weights.toml.

    Raises:
        InputError: not TOML, or an entry with a wrong field.
    """
    try:
        state = path.stat()
        version = state.st_ino, state.st_size, state.st_mtime_ns
        tables = _tables(path, version)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"'{path}' cannot be read: {error}", "mend the file", id="input.weights-file"
        ) from None
    for name, table in tables.items():
        yield _entry(path, name, table)


@lru_cache(8)
def _tables(path: Path, version: tuple[int, int, int]) -> dict[str, Any]:
    """Return a file's tables; parsed once in a process, and again when the file changes."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _entry(path: Path, name: str, table: Any) -> Entry:
    def wrong(reason: str) -> InputError:
        return InputError(f"'{path}': entry '{name}' {reason}", "mend the file", id="input.weights-file")

    if not isinstance(table, dict):
        raise wrong("is not a table")
    known = (*_SAID, *_SOURCE, *_OWN)
    for key, value in table.items():
        if key not in known:
            close = nearest(key, known)
            raise wrong(f"has an unknown field '{key}'" + (f"; did you mean '{close}'?" if close else ""))
        if (key in _TEXT and not isinstance(value, str)) or (key in _FLAGS and not isinstance(value, bool)):
            raise wrong(f"has a wrong '{key}'")
    if "arch" in table and table["arch"] not in FAMILIES:
        raise wrong(f"has arch '{table['arch']}', known are {', '.join(FAMILIES)}")
    aliases = table.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise wrong("has aliases that are not a list of names")
    digest = table.get("sha256")
    if digest is not None and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
        raise wrong("has a 'sha256' that is not 64 hex digits")
    size = table.get("size")
    if size is not None and (type(size) is not int or size <= 0):
        raise wrong("has a 'size' that is not a number of bytes")
    if sum(key in table for key in ("path", "packaged", "repo")) != 1:
        raise wrong("must have exactly one of path, packaged, repo")
    kind = table.get("kind", "model")
    if kind not in ("model", "vae"):
        raise wrong(f"has kind '{kind}', known are model and vae")
    if kind == "model" and "repo" in table and "arch" not in table:
        raise wrong("has a repo but no arch")
    local = PACKAGE / table["packaged"] if "packaged" in table else None
    if "path" in table:
        local = path.parent / Path(table["path"]).expanduser()
    try:
        said = {key: table[key] for key in _SAID if key in table}
        spec.check_fields(said, Path(name))
        spec.defaults_from(table.get("defaults", {}), Path(name))
    except ModelError as error:
        raise wrong(error.message.partition(": ")[2]) from None
    return Entry(
        name,
        path,
        kind,
        tuple(aliases),
        table.get("arch"),
        said,
        table.get("defaults", {}),
        Source(local, table.get("repo"), table.get("file"), table.get("revision"), digest, size),
        table.get("commercial", True),
        table.get("default", False),
        table.get("title", ""),
    )
