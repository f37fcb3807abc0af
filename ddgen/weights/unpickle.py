"""Reading .ckpt, .pt, .pth and .bin files without running what is in them. Torch-free.

A pickle is a program. A child process with no rights (unpickle_child.py) interprets it with an allowlist of
inert records and answers
with a list: this tensor, this dtype and shape, these bytes of the file. Here that list is checked against the
file and becomes a Header
like that of a safetensors file, so that whatever reads one reads the other. There is no torch.load, no
fallback and no switch for one.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from ddgen.errors import ModelError
from ddgen.weights.header import BYTES, Header, TensorInfo, open_regular, product, read_header

ROOT = str(Path(__file__).resolve().parents[2])
CHILD = f"import sys; sys.path.append({ROOT!r}); from ddgen.weights.unpickle_child import main; main()"
TIMEOUT = 60.0  # seconds of wall clock; the child's own limit is about a second of CPU
MAX_ANSWER = 64 * 2**20  # bytes
MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def read_weights_header(path: str | Path) -> Header:
    """Read what a weights file holds, safetensors or pickled: its first bytes decide, never its name.

    A safetensors file begins with a length, which may look like a pickle's beginning (640 is 80 02): its
    brace is looked for first.

    Raises:
        ModelError: missing, damaged, not weights, or asking for something that is not allowed.
    """
    path = Path(path)
    with open_regular(path) as (handle, identity):
        start = os.pread(handle, 9, 0)
    braced = start[8:] == b"{" and int.from_bytes(start[:8], "little") <= identity[2]
    pickled = start.startswith(MAGIC) and not braced
    return read_pickled_header(path) if pickled else read_header(path)


def read_pickled_header(path: str | Path) -> Header:
    """Read what a pickled weights file holds. Plain numbers and words of its top level (`global_step`,
    `name`) become metadata.

    Raises:
        ModelError: missing, damaged, not weights, or asking for something outside the allowlist (named).
    """
    path = Path(path)
    with open_regular(path) as (handle, identity):
        answer = _ask(path, handle)
    tensors = {str(t["name"]): _tensor(path, t, identity[2]) for t in answer["tensors"]}
    return Header(path, tensors, {key: str(value) for key, value in answer["values"].items()}, identity)


def _ask(path: Path, handle: int) -> dict[str, Any]:
    """Return the child's answer about the open file."""
    import subprocess

    command = [sys.executable, "-I", "-S", "-c", CHILD]
    try:
        done = subprocess.run(
            command, stdin=handle, capture_output=True, timeout=TIMEOUT, env={}, cwd="/", check=False
        )
    except subprocess.TimeoutExpired:
        raise _refused(path, "takes too long to read; refused as unsafe") from None
    if done.returncode != 0 or len(done.stdout) > MAX_ANSWER:
        raise _refused(path, "asks for more time or memory than a list of tensors needs; refused as unsafe")
    answer: dict[str, Any] = json.loads(done.stdout)
    if "refused" in answer:
        raise _refused(path, str(answer["refused"]))
    return answer


def _tensor(path: Path, t: dict[str, Any], size: int) -> TensorInfo:
    """Return the place of a tensor, once more compared with the file: the child has read hostile input."""
    dtype, shape, stride = str(t["dtype"]), tuple(t["shape"]), tuple(t["stride"])
    start, stop = t["start"], t["stop"]
    whole = all(type(n) is int and n >= 0 for n in (*shape, *stride, start, stop))
    if dtype not in DTYPES or not whole or len(shape) != len(stride):
        raise _refused(path, "is damaged; download it again")
    name = DTYPES[dtype]
    span = 1 + sum((s - 1) * step for s, step in zip(shape, stride, strict=True))
    if not start <= stop <= size or span * BYTES[name] != stop - start or product(shape) * BYTES[name] > size:
        raise _refused(path, "is damaged; download it again")
    return TensorInfo(name, shape, start, stop, None if _rows(shape, stride) else stride)


def _rows(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the strides are those of the usual order, row after row, with nothing between."""
    expected = 1
    for side, step in zip(reversed(shape), reversed(stride), strict=True):
        if side != 1 and step != expected:
            return False
        expected *= side
    return True


def _refused(path: Path, why: str) -> ModelError:
    text, _, hint = why.partition("; ")
    return ModelError(f"model '{path.name}' {text}", hint, id="model.pickle")
