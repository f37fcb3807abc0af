"""Folders of weights that other programs keep, searched by file name. Torch-free.

    model_dirs = ["~/stable-diffusion-webui/models/Stable-diffusion"]     in the user's config.toml, above
    lora_dirs = ["/data/ComfyUI/models/loras", "/data/embeddings"]        its first table

`--model deliberate_v2` is then the file deliberate_v2.safetensors somewhere below; models and autoencoders
are looked for in model_dirs, LoRAs and embeddings in lora_dirs. A folder that is not there just now is passed
over.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from ddgen.errors import InputError, ModelError
from ddgen.weights.entries import user_config_dir

KEYS = ("model_dirs", "lora_dirs")
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
FOLDER_MARK = "model_index.json"  # a folder with this file in it is one model
_WHAT = {"model_dirs": "model", "lora_dirs": "adapter"}


def directories(key: str) -> tuple[Path, ...]:
    """Return the folders that the user's config names; key: one of KEYS.

    Raises:
        InputError: they are not a list of absolute paths.
    """
    path = user_config_dir() / "config.toml"
    if not path.is_absolute():
        return ()
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(
            f"config '{path}': {str(error).lower()}", "mend it or move it away", id="input.config"
        ) from error
    return declared(data, f"config '{path}'").get(key, ())


def declared(data: Mapping[str, object], where: str) -> dict[str, tuple[Path, ...]]:
    """Return the folders by key that a parsed config names.

    Raises:
        InputError: they are not a list of absolute paths.
    """
    found = {}
    for key in KEYS:
        values = data.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InputError(
                f"{where}: '{key}' is no list of folders", f'write {key} = ["/a/folder"]', id="input.config"
            )
        paths = tuple(_expanded(value) for value in values)
        for path in paths:
            if not path.is_absolute():
                raise InputError(
                    f"{where}: '{key}' names '{path}', which is relative",
                    "write it from / or ~ on",
                    id="input.config",
                )
        found[key] = paths
    return found


def search(key: str, name: str) -> Path | None:
    """Return the file (or model folder) of a name without its suffix, or with it; None if there is none.

    Raises:
        ModelError: two different files have that name.
        InputError: a config that cannot be read.
    """
    if not name or os.sep in name:
        return None
    seen: dict[Path, Path] = {}
    for path in _weights(directories(key)):
        if name in (path.name, _bare(path)):
            seen.setdefault(path.resolve(), path)
    if len(seen) > 1:
        first, second = sorted(seen.values())[:2]
        raise ModelError(
            f"{_WHAT[key]} '{name}' is two files: '{first}' and '{second}'",
            "give the path of one",
            id="model.ambiguous",
        )
    return next(iter(seen.values()), None)


def names(key: str) -> list[str]:
    """Return what `search` would find, by name."""
    return sorted({_bare(path) for path in _weights(directories(key))})


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~nobody
        return Path(text)


def _bare(path: Path) -> str:
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _weights(roots: tuple[Path, ...]) -> Iterator[Path]:
    """Yield weights files and model folders below the roots; links are followed, each entered once."""
    entered = set()
    for root in roots:
        for place, below, files in os.walk(root, followlinks=True):
            try:
                about = os.stat(place)
            except OSError:
                below.clear()
                continue
            if (about.st_dev, about.st_ino) in entered:
                below.clear()
                continue
            entered.add((about.st_dev, about.st_ino))
            if FOLDER_MARK in files:
                below.clear()
                yield Path(place)
                continue
            below[:] = sorted(item for item in below if not item.startswith("."))
            for file in sorted(files):
                if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                    yield Path(place, file)
