"""Weights <-> modules: read straight into the compute dtype, loaded strictly, saved with their Spec.

A module is built on the `meta` device, where it takes no memory, and its parameters are replaced by what
reader.py reads.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ddgen.errors import ModelError, NumericsError
from ddgen.io.files import publish
from ddgen.weights import spec as specs
from ddgen.weights.header import AGAIN, product
from ddgen.weights.infer import family_of, shapes_of, unet_config
from ddgen.weights.layout import Checkpoint, open_checkpoint
from ddgen.weights.reader import NAMES, Reader, read_all, read_tensors
from ddgen.weights.spec import Spec
from ddgen.weights.split import Part

__all__ = [
    "Checkpoint",
    "Reader",
    "load_module",
    "open_checkpoint",
    "read_tensors",
    "save_tensors",
    "unfilled",
    "write_file",
]

SHOWN = 3  # names listed in a report


class _Untouched(TorchFunctionMode):
    """Lets the functions of torch.nn.init return their tensor as it is."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules built inside are on the `meta` device, and no time goes into initial values that nobody reads."""
    with torch.device("meta"), _Untouched():
        yield


def load_module(
    module: nn.Module,
    part: Part,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    name: str = "model",
) -> None:
    """Replace a module's parameters (it may live on `meta`) by a part's tensors; what does not fit exactly is
    an error.

    Raises:
        ModelError: a tensor is missing, left over or of another shape (one report with the first few), or the
            file was changed.
    """
    check_fit(module, part, name)
    state = read_all(part, dtype=dtype, device=device)
    expected = module.state_dict()
    state = {key: value.reshape(expected[key].shape) for key, value in state.items()}
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False).eval()


def check_fit(module: nn.Module, part: Part, name: str) -> None:
    """Compare names and shapes, from headers alone.

    Raises:
        ModelError: with the first few differences and the likely architecture.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing = sorted(expected.keys() - part.keys())
    extra = sorted(part.keys() - expected.keys())
    wrong = sorted(
        key for key in expected.keys() & part.keys() if not same_shape(part[key].shape, expected[key])
    )
    if not (missing or extra or wrong):
        return
    path = next(iter(part.values())).header.path if part else Path(name)
    lines = [f"'{key}' is {_shape(part[key].shape)}, expected {_shape(expected[key])}" for key in wrong]
    lines += [f"'{key}' is missing" for key in missing] + [f"'{key}' is not expected" for key in extra]
    count = len(lines)
    text = ", ".join(lines[:SHOWN]) + (f" (+{count - SHOWN} more)" if count > SHOWN else "")
    total = f"{count} of {len(expected)} tensors differ"
    raise ModelError(
        f"model '{path.name}': {name}: {text}; {total}{_likely(part, name)}",
        "choose the entry of weights.toml that fits it, or give the file by its path",
        id="model.unfit",
    )


def same_shape(stored: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether shapes are equal, but for a Linear stored as a 1 x 1 convolution or the reverse."""
    if stored == expected:
        return True
    short, long = sorted((stored, expected), key=len)
    return len(short) == 2 and long == (*short, 1, 1)


def _likely(part: Part, name: str) -> str:
    if name != "unet" or not part:
        return ""
    try:
        family = family_of(unet_config(shapes_of(part)))
    except ModelError:
        return ""
    return f" (it looks like {family.name})" if family is not None else ""


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def check_finite(part: Part, name: str) -> None:
    """Look for NaN and infinity in stored weights.

    Raises:
        NumericsError: naming the first tensor that holds some.
    """
    for key, tensor in read_tensors(part):
        if tensor.dtype.itemsize == 1:
            tensor = tensor.to(torch.float32)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            path = part[key].header.path
            raise NumericsError(
                f"model '{path.name}': {name} tensor '{key}' holds {count} non-finite values",
                AGAIN,
                id="model.nan",
            )


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Write a safetensors file that is whole under its name or absent; return its size in bytes.

    Raises:
        OutputError: no space, no permission, or the name is not a file's.
    """
    plan = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return write_file(path, plan, tensors.__getitem__, metadata)


def write_file(
    path: Path,
    plan: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    produce: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> int:
    """Write the tensors of `plan`, each produced when its turn comes; return the size in bytes.

    Equal tensors and metadata give equal bytes: larger element types first, then by name, as the format's own
    writer does.

    Raises:
        OutputError: no space, no permission, or the name is not a file's.
    """
    order = sorted(plan, key=lambda name: (-plan[name][0].itemsize, name))
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in order:
        dtype, shape = plan[name]
        size = product(shape) * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def pieces() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for name in order:
            tensor = produce(name).detach().cpu().contiguous()
            assert (tensor.dtype, tuple(tensor.shape)) == plan[name], name
            yield memoryview(tensor.reshape(-1).view(torch.uint8).numpy())

    publish(path, pieces(), force=True)
    return 8 + len(text) + offset


def spec_metadata(spec: Spec) -> dict[str, str]:
    """Return the metadata that carries a Spec in a file ddgen writes."""
    return {"format": "pt", specs.KEY: specs.spec_to_json(spec)}
