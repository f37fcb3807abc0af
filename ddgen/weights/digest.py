"""The sha256 of weights files, remembered: one of gigabytes is hashed once, and again when it changes.

Torch-free. The memory is one JSON file in the user's cache directory, {path: [identity, sha256]}. Losing it
costs time, nothing else.
"""

import hashlib
import json
import os
from pathlib import Path

from ddgen.errors import DdgenError
from ddgen.io.files import publish
from ddgen.weights.header import open_regular

CHUNK = 4 * 2**20  # bytes
FILE = "digests.json"
KEPT = 200  # entries


def digest(path: str | Path, *, fresh: bool = False) -> str:
    """Return the sha256 of a file as 64 hex digits; `fresh` reads it even if it is remembered.

    Raises:
        ModelError: missing, unreadable or not a regular file.
    """
    path = Path(path).resolve()
    with open_regular(path) as (handle, identity):
        memory = _memory()
        known = memory.get(str(path))
        if not fresh and known is not None and known[0] == list(identity):
            return known[1]
        found = _hash(handle)
    memory.pop(str(path), None)
    memory[str(path)] = (list(identity), found)
    _remember(memory)
    return found


def _hash(handle: int) -> str:
    state, offset = hashlib.sha256(), 0
    while piece := os.pread(handle, CHUNK, offset):
        state.update(piece)
        offset += len(piece)
    return state.hexdigest()


def _cache_file() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("ddgen", appauthor=False)) / FILE


def _memory() -> dict[str, tuple[list[int], str]]:
    try:
        data = json.loads(_cache_file().read_text(encoding="utf-8"))
        return {path: (list(map(int, identity)), str(found)) for path, (identity, found) in data.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(memory: dict[str, tuple[list[int], str]]) -> None:
    newest = dict(list(memory.items())[-KEPT:])
    try:
        publish(_cache_file(), json.dumps(newest).encode(), force=True)
    except (DdgenError, OSError):
        pass  # no home, or a full disk: the file is hashed again next time
