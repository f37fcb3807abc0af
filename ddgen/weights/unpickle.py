"""Reading .ckpt, .pt, .pth and .bin files without running what is in them.

A pickle is a program. A child process with no rights (unpickle_child.py) interprets it with an allowlist of inert records and
answers with a list: this tensor, this dtype and shape, these bytes of the file. Here that list is checked against the file and
the bytes are read, tensor by tensor, from the same open file. There is no torch.load, no fallback and no switch for one.
"""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddgen.errors import ModelError

if TYPE_CHECKING:
    from types import TracebackType

    import torch

CHILD = Path(__file__).with_name("unpickle_child.py")
TIMEOUT = 60.0  # seconds of wall clock; the child's own limit is about a second of CPU
MAX_ANSWER = 64 * 2**20
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
ITEMSIZE |= {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}


@dataclass(frozen=True)
class PickledTensor:
    """Where a tensor lies: bytes start..stop of the file, strides in elements from `start`."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int
    stop: int


class PickleFile:
    """An open pickled weights file: `tensors` by name, `values` (plain numbers and strings of the top level), `read(name)`.

    kind: what messages call the file ("model", "embedding").

    Raises:
        ModelError: the file is missing, damaged, not weights, or asks for something outside the allowlist (named).
    """

    def __init__(self, path: str | Path, kind: str = "model") -> None:
        self.path = Path(path)
        self._thing = f"{kind} '{self.path.name}'"
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as fault:
            raise ModelError(f"{self._thing}: {fault.strerror.lower()}", "check the path", id="model.open") from fault
        try:
            info = os.fstat(self._fd)
            if not stat.S_ISREG(info.st_mode):
                raise ModelError(f"{self._thing} is not a regular file", "check the path", id="model.open")
            answer = self._ask()
            self.values: dict[str, object] = dict(answer["values"])  # type: ignore[call-overload]
            self.tensors = {t["name"]: self._checked(t, info.st_size) for t in answer["tensors"]}  # type: ignore[attr-defined]
        except BaseException:
            os.close(self._fd)
            raise

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor, contiguous, in the dtype that the file has."""
        import torch

        place = self.tensors[name]
        data = bytearray(place.stop - place.start)
        view, done = memoryview(data), 0
        while done < len(data):
            count = os.preadv(self._fd, [view[done:]], place.start + done)
            if not count:
                raise ModelError(f"{self._thing}: file ends early (tensor '{name}')", "download it again", id="model.truncated")
            done += count
        flat = torch.frombuffer(data, dtype=getattr(torch, place.dtype))
        return flat.as_strided(place.shape, place.stride).contiguous()

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> PickleFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ask(self) -> dict[str, object]:
        """Return the child's answer about the open file."""
        command = [sys.executable, "-I", "-S", str(CHILD)]
        try:
            done = subprocess.run(command, stdin=self._fd, capture_output=True, timeout=TIMEOUT, env={}, cwd="/", check=False)
        except subprocess.TimeoutExpired as fault:
            raise self._refused("takes too long to read; refused as unsafe") from fault
        if done.returncode != 0 or len(done.stdout) > MAX_ANSWER:
            raise self._refused("asks for more time or memory than a list of tensors needs; refused as unsafe")
        answer: dict[str, object] = json.loads(done.stdout)
        if "refused" in answer:
            raise self._refused(str(answer["refused"]))
        return answer

    def _checked(self, t: dict[str, object], size: int) -> PickledTensor:
        """Return the place of a tensor, once more compared with the file: the child read hostile input."""
        dtype, shape, stride = str(t["dtype"]), tuple(t["shape"]), tuple(t["stride"])  # type: ignore[arg-type]
        start, stop = int(t["start"]), int(t["stop"])  # type: ignore[call-overload]
        whole = all(type(n) is int and n >= 0 for n in (*shape, *stride, start, stop))
        if dtype not in ITEMSIZE or not whole or len(shape) != len(stride):
            raise self._refused("is damaged; download it again")
        span = 1 + sum((s - 1) * step for s, step in zip(shape, stride, strict=True))
        if not 0 <= start <= stop <= size or span * ITEMSIZE[dtype] != stop - start or math.prod(shape) > size:
            raise self._refused("is damaged; download it again")
        return PickledTensor(dtype, shape, stride, start, stop)

    def _refused(self, why: str) -> ModelError:
        text, _, hint = why.partition("; ")
        return ModelError(f"{self._thing} {text}", hint, id="model.pickle")
