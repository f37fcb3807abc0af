"""`ddgen doctor`: versions, devices, paths, and whether the model that ships can be found."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator

import typer

from ddgen import __version__
from ddgen.cli import console, flags, settings
from ddgen.errors import DdgenError
from ddgen.weights import registry, shelves

LIBRARIES = (
    "torch", "transformers", "open_clip_torch", "tokenizers", "safetensors", "numpy", "pillow", "typer",
    "rich", "huggingface_hub", "ray",
)  # fmt: skip

Item = tuple[str, str, str]
"""section, name, what was found"""


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("doctor")(doctor)


def doctor(json: flags.Json = False, debug: flags.Debug = False) -> None:
    """Show versions, devices, dtypes and paths; the first thing to send with a report."""
    section = ""
    for item in examine():
        if json:
            console.out_json({"type": "finding", "section": item[0], "name": item[1], "value": item[2]})
            continue
        if item[0] != section:
            section = item[0]
            console.out(section)
        console.out(f"  {item[1]:<18} {item[2]}")


def examine() -> Iterator[Item]:
    """Yield all findings; nothing here raises for what is merely missing."""
    yield "versions", "ddgen", __version__
    yield "versions", "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in LIBRARIES:
        try:
            yield "versions", name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield "versions", name, "not installed"
    yield from _paths()
    yield from _devices()


def _paths() -> Iterator[Item]:
    file = settings.config_file()
    yield "paths", "config", _shortened(str(file)) + ("" if file.is_file() else " (none)")
    try:
        for number, path in enumerate(registry.weights_files()):
            yield "paths", "weights.toml" if number == 0 else "", _shortened(str(path))
        spec = registry.find(None)
        there = spec.source.path is not None and spec.source.path.exists()
        yield (
            "paths",
            "default model",
            f"{spec.name}, " + (_shortened(str(spec.source.path)) if there else "not on this disk"),
        )
    except DdgenError as error:
        yield "paths", "default model", str(error)
    try:
        for key in shelves.KEYS:
            for number, folder in enumerate(shelves.directories(key)):
                there = "" if folder.is_dir() else " (not there)"
                yield "paths", key if number == 0 else "", _shortened(str(folder)) + there
    except DdgenError as error:
        yield "paths", "folders", str(error)
    cache = os.environ.get("HF_HUB_CACHE") or os.path.join(
        os.environ.get("HF_HOME") or "~/.cache/huggingface", "hub"
    )
    yield "paths", "downloaded models", _shortened(os.path.expanduser(cache))


def _devices() -> Iterator[Item]:
    try:
        import torch
    except ImportError as error:
        yield "devices", "torch", f"cannot be imported: {error}"
        return
    yield "devices", "cpu", f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, float32 bfloat16"
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        kinds = "float32 float16" + (" bfloat16" if torch.cuda.is_bf16_supported() else "")
        yield "devices", f"cuda:{index}", f"{about.name}, {about.total_memory / 2**30:.1f} GiB, {kinds}"
    if torch.backends.mps.is_available():
        yield "devices", "mps", "float32 float16"


def _shortened(path: str) -> str:
    """Write the home directory as ~, so that a report names nobody."""
    home = os.path.expanduser("~")
    return "~" + path[len(home) :] if len(home) > 1 and path.startswith(home + os.sep) else path
