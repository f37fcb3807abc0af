"""Parts of models that a warm worker has loaded: a call that is forked from it finds them in its memory.

    key = (part, identities of its files, what it is called in them, its configuration, dtype)

A file's identity is (device, inode, bytes, mtime), so weights that change are not found again. In a process of
its own nothing is held; which models it used is noted, for the worker that it may leave behind. Torch-free.
"""

import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ddgen.weights.split import Part

Identity = tuple[int, int, int, int]
Key = tuple[str, tuple[tuple[str, Identity], ...], tuple[str, ...], Hashable, str]
Entry = dict[str, Any]
"""What assemble.hold needs to load a model's parts again; plain JSON."""
Module = TypeVar("Module", bound="nn.Module")

noted: list[Entry] = []
_held: "dict[Key, nn.Module]" = {}
_taking: set[Key] | None = None


def note(entry: Entry) -> None:
    """Remember that this process uses a model."""
    if entry not in noted:
        noted.append(entry)


def holds() -> bool:
    """Whether any part is in memory already."""
    return bool(_held)


def take(
    part: str,
    tensors: "Part",
    configuration: Hashable,
    dtype: object,
    device: "torch.device",
    load: "Callable[[], Module]",
) -> Module:
    """Return a part on `device`: the one that is held, else what `load` makes of its tensors."""
    headers = {id(stored.header): stored.header for stored in tensors.values()}
    files = sorted({(os.path.realpath(header.path), header.identity) for header in headers.values()})
    called = tensors[min(tensors)].take.names if tensors else ()  # an averaged U-Net has other names
    key = (part, tuple(files), called, configuration, str(dtype))
    if key not in _held:
        module: nn.Module = load()
    else:
        module = _held[key] if device.type == "cpu" else _held[key].to(device)  # in this fork alone
    if _taking is not None:
        _held[key] = module
        _taking.add(key)
    return module  # type: ignore[return-value]


@contextmanager
def holding() -> Iterator[set[Key]]:
    """Hold every part that is taken inside; yields their keys. For a worker, on the CPU."""
    global _taking
    _taking = set()
    try:
        yield _taking
    finally:
        _taking = None


def is_held(keys: Iterable[Key]) -> bool:
    """Tell whether parts are still held, and their files unchanged."""
    return all(key in _held and _is_current(key) for key in keys)


def keep_only(keys: Iterable[Key]) -> None:
    """Let go of all other parts."""
    wanted = set(keys)
    for key in list(_held):
        if key not in wanted:
            del _held[key]


def _is_current(key: Key) -> bool:
    for path, identity in key[1]:
        try:
            state = os.stat(path)
        except OSError:
            return False
        if (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns) != identity:
            return False
    return True
