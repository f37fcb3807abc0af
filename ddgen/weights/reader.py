"""Tensors out of checkpoint files, each read once, into the memory where it stays.

Files are read with preadv: no mmap, so a file that is truncated meanwhile gives an error, not a dead process.
What is stored in another dtype passes through a buffer that stays in the processor's cache, a piece at a time;
no tensor is in memory twice.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ddgen.weights.header import AGAIN, Header, open_regular, refuse
from ddgen.weights.split import Stored

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}

PIECE = 2**15
"""Elements converted at once: fewer than torch splits among its own threads, which would wait for each other."""
READERS = 4  # threads at most: memory is full with fewer


class Reader:
    """Reads tensors of checkpoints; a context manager that keeps their files open, and sees when one was
    changed."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._handles: dict[Path, int] = {}
        self._opening = threading.Lock()
        self._mine = threading.local()  # .buffer of each thread

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def read(
        self, stored: Stored, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return a tensor, converted to `dtype` if it holds floats (None: as stored; float32 what has a scale).

        Raises:
            ModelError: the file was changed since its header was read, or is shorter than it said.
        """
        kind = DTYPES[stored.dtype]
        scaled = stored.scale is not None
        wanted = _wanted(stored, dtype) if dtype is not None else torch.float32 if scaled else kind
        if _in_order(stored):
            there = torch.device(device).type == "cpu" and not scaled
            tensor = torch.empty(stored.shape, dtype=wanted if there else kind)
            self._fill(tensor.view(-1), stored)
        else:
            pieces = [self._raw(stored.header, name) for name in stored.take.names]
            tensor = stored.take.apply(pieces[0] if len(pieces) == 1 else torch.cat(pieces))
        if stored.scale is not None:
            tensor = tensor.to(torch.float32) * self._raw(stored.header, stored.scale).to(torch.float32)
        return tensor.to(device=device, dtype=wanted).contiguous()

    def into(self, tensor: Tensor, stored: Stored) -> None:
        """Fill a tensor of the CPU, of the same shape, in its own dtype. May be called by several threads.

        Raises:
            ModelError: as read.
        """
        if _in_order(stored) and stored.scale is None:
            self._fill(tensor.view(-1), stored)
        else:
            tensor.copy_(self.read(stored, tensor.dtype))

    def _fill(self, flat: Tensor, stored: Stored) -> None:
        """Read what lies in the file as the tensor wants it: whole tensors one after the other, or some rows of
        one."""
        done = 0
        for name in stored.take.names:
            info = stored.header.tensors[name]
            count, start = info.count, info.start
            if stored.take.rows is not None:
                block, blocks = stored.take.rows
                count //= blocks
                start += block * ((info.stop - info.start) // blocks)
            self._convert(flat[done : done + count], stored.header, name, start)
            done += count

    def _convert(self, flat: Tensor, header: Header, name: str, start: int) -> None:
        kind = DTYPES[header.tensors[name].dtype]
        if flat.dtype == kind:
            self._pread(header, name, memoryview(flat.view(torch.uint8).numpy()), start)
            return
        if not hasattr(self._mine, "buffer"):
            self._mine.buffer = torch.empty(PIECE * 8, dtype=torch.uint8)
        size = kind.itemsize
        buffer, bytes_ = self._mine.buffer[: PIECE * size].view(kind), memoryview(self._mine.buffer.numpy())
        for piece in flat.split(PIECE):
            count = piece.numel()
            self._pread(header, name, bytes_[: count * size], start)
            piece.copy_(buffer if count == PIECE else buffer[:count])
            start += count * size

    def _raw(self, header: Header, name: str) -> Tensor:
        """Return a tensor as it lies in the file."""
        info = header.tensors[name]
        raw = torch.empty(info.stop - info.start, dtype=torch.uint8)
        self._pread(header, name, memoryview(raw.numpy()), info.start)
        flat = raw.view(DTYPES[info.dtype])
        return flat.reshape(info.shape) if info.stride is None else flat.as_strided(info.shape, info.stride)

    def _pread(self, header: Header, name: str, rest: memoryview, offset: int) -> None:
        handle = self._handles.get(header.path) or self._open(header)
        while rest:
            got = os.preadv(handle, [rest], offset)
            if got == 0:
                refuse(header.path, f"ends inside tensor '{name}'", AGAIN, "truncated")
            rest, offset = rest[got:], offset + got

    def _open(self, header: Header) -> int:
        with self._opening:
            if header.path not in self._handles:
                handle, identity = self._stack.enter_context(open_regular(header.path))
                if identity != header.identity:
                    refuse(header.path, "was changed while it was read", "run the same command again", "changed")
                self._handles[header.path] = handle
            return self._handles[header.path]


def _in_order(stored: Stored) -> bool:
    """Whether the bytes of a tensor lie in the file as one wants them."""
    take = stored.take
    plain = all(stored.header.tensors[name].stride is None for name in take.names)
    return plain and not take.transpose and (take.rows is None or len(take.names) == 1)


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


def read_all(
    part: Mapping[str, Stored], *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return what read_tensors yields; into main memory with several threads.

    Raises:
        ModelError: as read_tensors.
    """
    threads = min(READERS, torch.get_num_threads())
    if torch.device(device).type != "cpu" or threads == 1:
        return dict(read_tensors(part, dtype=dtype, device=device))
    ordered = sorted(part.items(), key=_position)
    # Taken by this thread: the C library gives each thread a heap of its own, which keeps less for later.
    found = {name: torch.empty(stored.shape, dtype=_wanted(stored, dtype)) for name, stored in ordered}
    inference = torch.is_inference_mode_enabled()  # each thread has its own

    def fill(reader: Reader, name: str, stored: Stored) -> None:
        with torch.inference_mode(inference):
            reader.into(found[name], stored)

    with Reader() as reader:
        pool = ThreadPoolExecutor(threads)
        try:
            for future in [pool.submit(fill, reader, name, stored) for name, stored in ordered]:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def _wanted(stored: Stored, dtype: torch.dtype) -> torch.dtype:
    kind = DTYPES[stored.dtype]
    return dtype if kind.is_floating_point or stored.scale is not None else kind


def _position(item: tuple[str, Stored]) -> tuple[str, int, str]:
    stored = item[1]
    return str(stored.header.path), stored.header.tensors[stored.take.names[0]].start, item[0]
