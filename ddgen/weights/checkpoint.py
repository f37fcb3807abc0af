"""Weights <-> modules: read straight into the compute dtype, loaded strictly, saved with their Spec.

Files are read with preadv into the memory that the module keeps: no mmap (a file that is truncated meanwhile
gives an error, not a dead process), no second copy. A module is built on the `meta` device, where it costs
nothing, and its parameters are replaced.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from ddgen.errors import ModelError, NumericsError
from ddgen.io.files import publish
from ddgen.weights import spec as specs
from ddgen.weights.header import AGAIN, Header, open_regular, product, refuse
from ddgen.weights.infer import family_of, shapes_of, unet_config
from ddgen.weights.layout import Checkpoint, open_checkpoint
from ddgen.weights.spec import Spec
from ddgen.weights.split import Part, Stored

__all__ = [
    "Checkpoint",
    "Reader",
    "load_module",
    "open_checkpoint",
    "read_tensors",
    "save_tensors",
    "write_file",
]

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}

SHOWN = 3  # names listed in a report


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
    state = dict(read_tensors(part, dtype=dtype, device=device))
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


class Reader:
    """Reads tensors of checkpoints; a context manager that keeps their files open, and sees when one was
    changed."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._handles: dict[Path, int] = {}
        self._last: tuple[tuple[Header, tuple[str, ...]], Tensor] | None = None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def read(
        self, stored: Stored, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return a tensor, converted to `dtype` if it holds floats (None: as stored).

        Raises:
            ModelError: the file was changed since its header was read, or is shorter than it said.
        """
        names, header = stored.take.names, stored.header
        # open_clip's fused q, k, v are asked for one after the other: read once.
        if self._last is None or self._last[0][1] != names or self._last[0][0] is not header:
            pieces = [self._raw(header, name) for name in names]
            self._last = ((header, names), pieces[0] if len(pieces) == 1 else torch.cat(pieces))
        tensor = stored.take.apply(self._last[1])
        if stored.take.rows is None:
            self._last = None
        if stored.scale is not None:
            tensor = tensor.to(torch.float32) * self._raw(header, stored.scale).to(torch.float32)
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.to(device=device, dtype=wanted).contiguous()

    def _raw(self, header: Header, name: str) -> Tensor:
        info = header.tensors[name]
        raw = torch.empty(info.stop - info.start, dtype=torch.uint8)
        rest, offset = memoryview(raw.numpy()), info.start
        while rest:
            got = os.preadv(self._open(header), [rest], offset)
            if got == 0:
                refuse(header.path, f"ends inside tensor '{name}'", AGAIN, "truncated")
            rest, offset = rest[got:], offset + got
        flat = raw.view(DTYPES[info.dtype])
        return flat.reshape(info.shape) if info.stride is None else flat.as_strided(info.shape, info.stride)

    def _open(self, header: Header) -> int:
        if header.path not in self._handles:
            handle, identity = self._stack.enter_context(open_regular(header.path))
            if identity != header.identity:
                refuse(header.path, "was changed while it was read", "run the same command again", "changed")
            self._handles[header.path] = handle
        return self._handles[header.path]


def read_tensors(
    part: Mapping[str, Stored], *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Yield (native name, tensor) in the order of the file, as Reader.read does.

    Raises:
        ModelError: the file was changed since its header was read, or is shorter than it said.
    """
    with Reader() as reader:
        for name, stored in sorted(part.items(), key=_position):
            yield name, reader.read(stored, dtype, device)


def _position(item: tuple[str, Stored]) -> tuple[str, int, str]:
    stored = item[1]
    return str(stored.header.path), stored.header.tensors[stored.take.names[0]].start, item[0]


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
