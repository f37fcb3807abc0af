"""Safetensors headers, read and proved sound before a single weight is: torch-free.

    8 bytes little-endian n | n bytes of JSON | data
    JSON: {name: {dtype, shape, data_offsets}, ..., "__metadata__": {str: str}}

A weights file is data from strangers. What is checked here: a regular, whole file; what it really is, when it
is not safetensors; sizes within limits; plain names, none twice; known dtypes; tensors that fill the data
exactly, without overlap or gap. What fits the network is checked in checkpoint.py, against shapes that come
from our own configuration.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ddgen.errors import ModelError

MAX_HEADER = 8 * 2**20  # bytes
MAX_TENSORS = 32_768
MAX_RANK = 8
MAX_NAME = 256  # bytes of UTF-8
MAX_INT_DIGITS = 19  # 2^63 has as many

BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
FLOATS = ("F16", "BF16", "F32", "F64")

# Tensors whose presence alone is the message; tools write them with no elements.
MARKERS = ("v_pred", "ztsnr", "scaled_fp8")

AGAIN = "download it again"

_MAGIC = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not weights",
        "run 'git lfs pull' where it came from",
    ),
    (b"PK\x03\x04", "is a zip archive (a PyTorch .ckpt), not safetensors", "get the .safetensors version"),
    (b"\x80\x02", "is a Python pickle, not safetensors", "get the .safetensors version"),
    (b"\x80\x03", "is a Python pickle, not safetensors", "get the .safetensors version"),
    (b"\x80\x04", "is a Python pickle, not safetensors", "get the .safetensors version"),
    (b"\x80\x05", "is a Python pickle, not safetensors", "get the .safetensors version"),
    (b"GGUF", "is a GGUF file, which ddgen does not read", "get the .safetensors version"),
    (b"\x1f\x8b", "is gzip-compressed", "unpack it with gunzip"),
    (b"\x89PNG", "is a PNG image, not weights", AGAIN),
    (b"\x89HDF", "is an HDF5 file, which ddgen does not read", "get the .safetensors version"),
)


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: bytes start..stop of the file. stride: in elements, where a pickled file does not
    keep row order."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    stride: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return product(self.shape)


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds. `identity` tells whether the file was changed since (device, inode,
    bytes, mtime in ns)."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    identity: tuple[int, int, int, int]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.identity[2]


def product(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def read_header(path: str | Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        ModelError: the file is missing, not a regular file, not safetensors, damaged or over a limit.
    """
    path = Path(path)
    with open_regular(path) as (handle, identity):
        size = identity[2]
        if size == 0:
            refuse(path, "is empty (0 bytes)", AGAIN, "empty")
        start = os.pread(handle, 512, 0)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > MAX_HEADER or start[8:9] != b"{":
            _name_the_stranger(path, start, size, length)
        if 8 + length > size:
            refuse(path, f"ends inside its header ({size} bytes)", AGAIN, "truncated")
        text = os.pread(handle, length, 8)
    if len(text) != length:
        refuse(path, "ends inside its header", AGAIN, "truncated")
    entries = _parse(path, text)
    metadata = _metadata(path, entries.pop("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        refuse(path, f"lists {len(entries)} tensors, the limit is {MAX_TENSORS}", AGAIN, "limit")
    tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in entries.items()}
    _check_cover(path, tensors, 8 + length, size)
    return Header(path, tensors, metadata, identity)


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Open a regular file for `os.pread` and yield (descriptor, identity); never waits on a FIFO.

    Raises:
        ModelError: missing, unreadable, a directory, a FIFO or a device.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        refuse(path, "does not exist", "check the path, or see 'ddgen models'", "missing")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        refuse(path, f"cannot be opened ({reason.lower()})", "check its permissions", "unreadable")
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            kind = "a directory" if stat.S_ISDIR(state.st_mode) else "not a regular file"
            refuse(path, f"is {kind}", "give a .safetensors file", "kind")
        yield handle, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    finally:
        os.close(handle)


def prefetch(path: str | Path) -> None:
    """Ask the system to read a file into its cache meanwhile; does nothing where that is not offered."""
    if hasattr(os, "posix_fadvise"):
        with open_regular(Path(path)) as (handle, identity):
            os.posix_fadvise(handle, 0, identity[2], os.POSIX_FADV_WILLNEED)


def refuse(path: Path, message: str, hint: str, code: str) -> NoReturn:
    raise ModelError(f"model '{path.name}' {message}", hint, id=f"model.{code}")


def _name_the_stranger(path: Path, start: bytes, size: int, length: int) -> NoReturn:
    for magic, message, hint in _MAGIC:
        if start.startswith(magic):
            refuse(path, message, hint, "not-safetensors")
    if start.lstrip()[:1] == b"<":
        refuse(path, "is a web page, not weights (a failed download saved it)", AGAIN, "not-safetensors")
    if start[257:262] == b"ustar":
        refuse(path, "is a tar archive, not safetensors", "get the .safetensors version", "not-safetensors")
    if 0 < length <= size - 8 and start[8:9] == b"{":
        refuse(path, f"has a header of {length} bytes, the limit is {MAX_HEADER}", AGAIN, "limit")
    if size < 8:
        refuse(path, f"ends inside its header ({size} bytes)", AGAIN, "truncated")
    refuse(path, "is not a safetensors file", AGAIN, "not-safetensors")


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            names = [key for key, _ in items]
            twice = next(key for i, key in enumerate(names) if key in names[:i])
            raise ValueError(f"lists key {twice[:80]!a} twice")
        return found

    def integer(digits: str) -> int:
        if len(digits) > MAX_INT_DIGITS:
            raise ValueError("holds a number that is too large")
        return int(digits)

    def constant(word: str) -> NoReturn:
        raise ValueError(f"holds {word}")

    try:
        entries = json.loads(
            text.decode("utf-8"), object_pairs_hook=pairs, parse_int=integer, parse_constant=constant
        )
    except UnicodeDecodeError:
        refuse(path, "has a header that is not UTF-8", AGAIN, "header")
    except json.JSONDecodeError as error:
        refuse(path, f"has a header that is not JSON (at byte {error.pos})", AGAIN, "header")
    except RecursionError:
        refuse(path, "has a header nested too deeply", "get the file from its source again", "header")
    except ValueError as error:
        refuse(path, f"has a header that {error}", "get the file from its source again", "header")
    if not isinstance(entries, dict):
        refuse(path, "has a header that is not a JSON object", AGAIN, "header")
    return entries


def _metadata(path: Path, found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        refuse(path, "has metadata that is not text", AGAIN, "header")
    return found


def _tensor(path: Path, name: str, entry: Any, base: int) -> TensorInfo:
    if not 0 < len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME or not name.isprintable():
        refuse(path, f"names a tensor {name[:40]!a}", "refused; get the file from its source again", "name")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse(path, f"describes tensor '{name}' wrongly", AGAIN, "header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        refuse(
            path,
            f"holds tensor '{name}' of unknown type {str(dtype)[:20]!a}",
            "get another version of the file",
            "dtype",
        )
    if not _naturals(shape) or len(shape) > MAX_RANK:
        refuse(
            path,
            f"gives tensor '{name}' a shape that is not at most {MAX_RANK} whole numbers",
            AGAIN,
            "shape",
        )
    if 0 in shape and not (name in MARKERS and shape == [0]):
        refuse(path, f"gives tensor '{name}' a side of 0", AGAIN, "shape")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(path, f"places tensor '{name}' wrongly", AGAIN, "offsets")
    if offsets[1] - offsets[0] != product(tuple(shape)) * BYTES[dtype]:
        refuse(
            path,
            f"gives tensor '{name}' {offsets[1] - offsets[0]} bytes, its shape asks for another number",
            AGAIN,
            "offsets",
        )
    return TensorInfo(dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_cover(path: Path, tensors: dict[str, TensorInfo], base: int, size: int) -> None:
    end = base
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start < end:
            refuse(
                path,
                f"stores tensor '{name}' over another one",
                "refused; get the file from its source again",
                "overlap",
            )
        if tensor.start > end:
            refuse(path, f"has a gap of {tensor.start - end} bytes before tensor '{name}'", AGAIN, "gap")
        end = tensor.stop
        if end > size:
            refuse(path, f"ends {end - size} bytes early (tensor '{name}')", AGAIN, "truncated")
    if end < size:
        refuse(path, f"has {size - end} bytes behind its last tensor", "refused; " + AGAIN, "trailing")
