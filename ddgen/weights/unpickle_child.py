"""The child half of unpickle.py: turn a pickled weights file into a list of byte ranges, and run nothing that
it asks for.

Run isolated (`python -I -S`), with the weights file as standard input and JSON on standard output. Standard
library only. Before a
byte is read the process gives up opening files, sockets and much memory and time. Globals are looked up in an
allowlist of inert
records (unpickle_records.py); there is no other way from the pickle to code. No tensor data is read here: the
answer says where in
the file each tensor lies, and the parent checks that against the file's size and reads it.
"""

import codecs
import io
import json
import os
import signal
import sys
from typing import Any, BinaryIO

from ddgen.weights.unpickle_records import ITEMSIZE, LEGACY_MAGIC, Record, Refused, Tensor, Unpickler, safe
from ddgen.weights.unpickle_zip import MAX_NAME, entries

MAX_PICKLE = 16 * 2**20
MAX_TENSORS = 32_768
MAX_NODES = 1_000_000
MAX_RANK = 8
WRAPPERS = ("state_dict", "model")


def _load(stream: BinaryIO) -> Any:
    return Unpickler(stream, encoding="utf-8", errors="surrogateescape").load()


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Return the pickled object of a zip archive and where each storage key lies."""
    found = entries(file, size)
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in found):
        raise Refused("is a TorchScript program, not weights; get the .safetensors version")
    pickles = [name for name in found if name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].count("/") != 1:
        raise Refused("is a zip archive without exactly one data.pkl, not weights")
    root = pickles[0][: -len("data.pkl")]
    start, length = found[pickles[0]]
    if length > MAX_PICKLE:
        raise Refused(f"has a pickle of {length} bytes, over the limit of {MAX_PICKLE}")
    if f"{root}byteorder" in found:
        file.seek(found[f"{root}byteorder"][0])
        if file.read(found[f"{root}byteorder"][1]) != b"little":
            raise Refused("was written in big-endian order; get the .safetensors version")
    file.seek(start)
    value = _load(
        io.BytesIO(file.read(length))
    )  # its own stream, so that the pickle cannot read past its entry
    prefix = f"{root}data/"
    return value, {name[len(prefix) :]: span for name, span in found.items() if name.startswith(prefix)}


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Return the same of torch's format before 1.6: five pickles in a row, then the storages, each behind its
    length.
    """
    stream = io.BytesIO(file.read(min(size, MAX_PICKLE)))
    if stream.getvalue()[257:262] == b"ustar":
        raise Refused(
            "is a tar archive from before torch 0.1.10, not read here; get the .safetensors version"
        )
    if _load(stream) != LEGACY_MAGIC:
        raise Refused("is a pickle, but not one of weights; get the .safetensors version")
    _load(stream), _load(stream)  # protocol and byte order
    value, order = _load(stream), _load(stream)
    if (
        not isinstance(order, list)
        or not all(isinstance(key, str) for key in order)
        or len(set(order)) != len(order)
    ):
        raise Refused("has a damaged list of storages; download it again")
    counts = {}
    for tensor in _walk(value)[0].values():
        counts[tensor.storage.key] = tensor.storage
    spans = {}
    at = stream.tell()
    for key in order:
        if key not in counts:
            raise Refused("holds a storage that no tensor uses, so that the others cannot be found")
        file.seek(at)
        length = ITEMSIZE[counts[key].dtype] * int.from_bytes(file.read(8), "little")
        spans[key] = (at + 8, length)
        at += 8 + length
    return value, spans


def _walk(value: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return the tensors by dotted name and the top level's plain values; every object is visited once."""
    scalars: dict[str, object] = {}
    while isinstance(value, dict):
        for key, entry in value.items():
            if isinstance(key, str) and len(key) <= MAX_NAME and type(entry) in (str, int, float, bool):
                scalars.setdefault(key, entry[:1000] if isinstance(entry, str) else entry)
        inner = next(
            (value[w] for w in WRAPPERS if isinstance(value.get(w), dict) and value[w] is not value), None
        )
        if inner is None:
            break
        value = inner
        if len(scalars) > MAX_NODES:
            raise Refused("has too many values")

    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    stack = [("", value)]
    nodes = 0
    while stack:
        name, node = stack.pop()
        nodes += 1
        if nodes > MAX_NODES:
            raise Refused(f"holds more than {MAX_NODES} values; refused as unsafe")
        if isinstance(node, Tensor):
            if name in tensors:
                raise Refused("gives one name to two tensors; refused as unsafe")
            tensors[name] = node
        elif isinstance(node, (dict, list, tuple, Record)) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, Record):
                stack.append((name, node.state))
            elif isinstance(node, dict):
                for key, entry in node.items():
                    if isinstance(key, (str, int)) and len(text := str(key)) <= MAX_NAME:
                        inner_name = (
                            name if text in ("_parameters", "") else f"{name}.{text}" if name else text
                        )
                        stack.append((inner_name[: MAX_NAME + 1], entry))
            else:
                stack.extend(
                    (f"{name}.{i}" if len(node) > 1 else name, entry) for i, entry in enumerate(node)
                )
        if len(tensors) > MAX_TENSORS or len(stack) > MAX_NODES:
            raise Refused(f"holds more than {MAX_TENSORS} tensors; refused as unsafe")
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return dict(reversed(tensors.items())), scalars


def _entry(name: str, tensor: Tensor, spans: dict[str, tuple[int, int]], size: int) -> dict[str, object]:
    """Return the tensor's place in the file, every bound checked."""
    if not name or not name.isprintable() or len(name.encode("utf-8", "replace")) > MAX_NAME:
        raise Refused("has a tensor with a forbidden name; refused as unsafe")
    start, length = spans.get(tensor.storage.key, (0, -1))
    item = ITEMSIZE[tensor.dtype]
    shape, stride = tensor.shape, tensor.stride
    count = 1
    for side in shape:
        count *= side
    bad = (
        len(shape) > MAX_RANK
        or len(stride) != len(shape)
        or any(s < 1 for s in shape)
        or any(s < 0 for s in stride)
    )
    last = tensor.offset + sum((s - 1) * step for s, step in zip(shape, stride, strict=False))
    if (
        bad
        or tensor.offset < 0
        or start + length > size
        or (last + 1) * item > length
        or count * item > length
    ):
        raise Refused(f"is damaged: tensor '{safe(name)}' lies outside its storage; download it again")
    return {
        "name": name, "dtype": tensor.dtype, "shape": shape, "stride": stride,
        "start": start + tensor.offset * item, "stop": start + (last + 1) * item,
    }  # fmt: skip


def index(file: BinaryIO, size: int) -> dict[str, object]:
    """Return {"tensors": [...], "values": {...}} of a zip or legacy weights file of `size` bytes.

    Raises:
        Refused: naming what is wrong. Anything else that escapes means a damaged file.
    """
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    value, spans = _read_zip(file, size) if magic == b"PK\x03\x04" else _read_legacy(file, size)
    tensors, scalars = _walk(value)
    if not tensors:
        raise Refused("holds no tensors")
    listed = [_entry(name, tensor, spans, size) for name, tensor in tensors.items()]
    if sum(int(t["stop"]) - int(t["start"]) for t in listed) > 4 * size:  # type: ignore[call-overload]
        raise Refused("shares its bytes among too many tensors; refused as unsafe")
    return {"tensors": listed, "values": scalars}


def give_up_rights(seconds: float, memory: int) -> None:
    """Leave this process no new files, sockets or written bytes, `memory` bytes of address space and
    `seconds` of CPU.
    """
    import resource

    for codec in ("latin-1", "utf-8", "cp437", "ascii", "raw_unicode_escape"):
        codecs.lookup(codec)  # they are modules: load them while files may still be opened
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    for kind, limit in limits.items():
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):
            continue  # macOS knows no RLIMIT_AS; the others hold
    signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    """Answer for the file on standard input."""
    size = os.fstat(0).st_size
    file = os.fdopen(os.dup(0), "rb")
    give_up_rights(seconds=0.8 + min(size, MAX_PICKLE) / (4 * 2**20), memory=2**30)
    try:
        answer = index(file, size)
    except Refused as refusal:
        answer = {"refused": str(refusal)}
    except MemoryError:
        answer = {"refused": "asks for more memory than a list of tensors needs; refused as unsafe"}
    except Exception as fault:  # noqa: BLE001 - a process seam: whatever a damaged pickle raises is an answer, not a crash
        answer = {
            "refused": f"is a damaged pickle ({type(fault).__name__}); "
            "download it again or get the .safetensors version"
        }
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)
