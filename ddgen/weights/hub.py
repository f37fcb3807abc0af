"""Where pulled models lie, and what they were at their first pull. Torch-free; opens no socket and imports no
hub library.

Weights stay in the Hugging Face cache ($HF_HUB_CACHE, $HF_HOME/hub, ~/.cache/huggingface/hub), shared with
other programs:

    models--ORG--REPO/refs/main -> commit        models--ORG--REPO/snapshots/COMMIT/FILE -> the file

What a model was at its first pull (commit, sha256 and size of every file) is one JSON file in the user's
state directory; ever after the same
bytes are asked for, and others are refused.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ddgen.errors import ModelError
from ddgen.io.files import publish
from ddgen.weights.spec import Source

FILE = "pulled.json"
MAIN = "main"
_REFERENCE = re.compile(
    r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})"
    r"(?:@(?P<revision>[\w./-]{1,200}))?"
    r"(?::(?P<file>[\w./ +()-]{1,300}))?",
    re.ASCII,
)
_WANTED = ("model_index.json", "unet/config.json")


@dataclass(frozen=True)
class Pulled:
    """A model as it was at its first pull. files: path in the repository -> (bytes, sha256)."""

    repo: str
    revision: str
    files: dict[str, tuple[int, str]]


def parse_reference(text: str) -> Source | None:
    """Return the source that `org/repo[@revision][:file]` means, None if it is none."""
    found = _REFERENCE.fullmatch(text)
    if found is None or ".." in text or found["repo"].startswith((".", "-", "/")):
        return None
    return Source(repo=found["repo"], file=found["file"], revision=found["revision"])


def key_of(source: Source) -> str:
    """Return `org/repo[@revision][:file]`, under which a pull is remembered."""
    revision = f"@{source.revision}" if source.revision else ""
    return f"{source.repo}{revision}{f':{source.file}' if source.file else ''}"


def cache_dir() -> Path:
    """Return the directory of the Hugging Face cache, as its own variables say."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    named = (
        os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    )
    return Path(os.path.expandvars(named)).expanduser()


def offline() -> bool:
    """Whether the environment forbids the network, as --offline does."""
    words = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DDGEN_OFFLINE")
    return any(os.environ.get(word, "").upper() in ("1", "ON", "YES", "TRUE") for word in words)


def repo_dir(repo: str) -> Path:
    return cache_dir() / ("models--" + repo.replace("/", "--"))


def located(source: Source) -> Path | None:
    """Return the file or folder of a source if it is here whole: as pulled, else as another program left it
    in the cache.
    """
    if source.path is not None or source.repo is None:
        return source.path
    found = pulled().get(key_of(source))
    if found is not None:
        snapshot = repo_dir(found.repo) / "snapshots" / found.revision
        whole = all(_size(snapshot / name) == size for name, (size, _) in found.files.items())
        return (snapshot / source.file if source.file else snapshot) if whole else None
    revision = _commit(source)
    snapshot = repo_dir(source.repo) / "snapshots" / revision
    if source.file:
        return snapshot / source.file if (snapshot / source.file).is_file() else None
    return (
        snapshot
        if all((snapshot / name).is_file() for name in _WANTED) and any(snapshot.glob("unet/*.safetensors"))
        else None
    )


def _commit(source: Source) -> str:
    """Return the commit that a source's revision stands for in the cache; a commit stands for itself."""
    assert source.repo is not None
    revision = source.revision or MAIN
    try:
        return (repo_dir(source.repo) / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return revision


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def check(source: Source, name: str, path: Path, digest: str) -> None:
    """Compare a weights file with what is pinned in weights.toml and with its first pull.

    Raises:
        ModelError: its sha256 is another.
    """
    expected, origin = None, ""
    if source.sha256 is not None and (source.file is None or path.name == Path(source.file).name):
        expected, origin = source.sha256, "weights.toml says"
    elif source.repo is not None:
        found = pulled().get(key_of(source))
        names = (
            {}
            if found is None
            else {item: sha for item, (_, sha) in found.files.items() if path.as_posix().endswith(f"/{item}")}
        )
        if names:
            expected, origin = names[max(names, key=len)], "at its first pull it was"
    if expected is not None and digest != expected:
        raise ModelError(
            f"model '{name}': sha256 of '{path.name}' is {digest[:12]}..., {origin} {expected[:12]}...",
            f"get it again with: ddgen models pull {name}",
            id="model.sha256",
        )


def _lock_file() -> Path:
    import platformdirs

    return Path(platformdirs.user_state_dir("ddgen", appauthor=False)) / FILE


def pulled() -> dict[str, Pulled]:
    """Return what was pulled on this machine, by key.

    Raises:
        ModelError: the record is damaged; it is not thrown away in silence, since it is what files are
        compared with.
    """
    path = _lock_file()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(key): Pulled(
                str(item["repo"]),
                str(item["revision"]),
                {str(n): (int(s), str(h)) for n, (s, h) in item["files"].items()},
            )
            for key, item in data.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ModelError(
            f"the record of pulled models, '{path}', cannot be read",
            "delete it, and pull the models again",
            id="model.record",
        ) from None


def remember(key: str, record: Pulled) -> None:
    """Keep what a model is; what was recorded before under the key stays."""
    with _changing() as records:
        records.setdefault(key, record)


def forget(repo: str) -> None:
    """Drop what was recorded of a repository's models."""
    with _changing() as records:
        for key in [key for key, record in records.items() if record.repo == repo]:
            del records[key]


@contextmanager
def _changing() -> Iterator[dict[str, Pulled]]:
    """Give the records to change, alone among processes, and write them."""
    path = _lock_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        records = pulled()
        yield records
        data: Mapping[str, object] = {key: asdict(record) for key, record in sorted(records.items())}
        publish(path, json.dumps(data, indent=1).encode(), force=True)
    finally:
        os.close(handle)
