"""The child half of unpickle.py: turn a pickled weights file into a list of byte ranges, and run nothing that it asks for.

Started as a script by its path, isolated (`python -I -S`), with the weights file as standard input and JSON on standard output.
Standard library only. Before a byte is read the process gives up opening files, sockets and much memory and time. Globals are
looked up in an allowlist of inert records; there is no other way from the pickle to code. No tensor data is read here: the answer
says where in the file each tensor lies, and the parent checks that against the file's size and reads it.
"""

import codecs
import io
import json
import os
import pickle
import re
import signal
import sys
import zipfile
from typing import Any, BinaryIO, NamedTuple

MAX_PICKLE = 16 * 2**20
MAX_ENTRIES = 65_536
MAX_TENSORS = 32_768
MAX_NODES = 1_000_000
MAX_RANK = 8
MAX_NAME = 256
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
WRAPPERS = ("state_dict", "model")

ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
ITEMSIZE |= {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8",
}  # fmt: skip


class Refused(Exception):
    """The file is not plain weights; the text says why, and reads on after the file's name."""


class DType(NamedTuple):
    """A storage class or a dtype, by the name of its elements."""

    name: str


class Storage(NamedTuple):
    """One storage by its key, `count` elements of `dtype`."""

    key: str
    dtype: str
    count: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Record:
    """Stands for an object that we have no use for: takes anything, does nothing, keeps its state to be looked into."""

    state: object = None

    def __init__(self, *args: object) -> None:
        self.items: list[object] = []

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.items.append(value)

    def append(self, value: object) -> None:
        self.items.append(value)

    def extend(self, values: list[object]) -> None:
        self.items.extend(values)


class Mapping(dict):  # type: ignore[type-arg]
    """Stands for OrderedDict: a dict that ignores its `_metadata`."""

    def __init__(self, *args: object) -> None:
        super().__init__(args[0] if args and isinstance(args[0], (dict, list, tuple)) else ())  # type: ignore[arg-type]

    def __setstate__(self, state: object) -> None:
        return None


def _whole(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(v) is int for v in values):
        raise Refused("has a tensor without a proper shape; get the .safetensors version")
    return values


def _tensor(storage: object, offset: object, shape: object, stride: object, *rest: object) -> Tensor:
    """Stands for torch._utils._rebuild_tensor_v2 (and _v3, whose extra argument is a dtype)."""
    if not isinstance(storage, Storage) or type(offset) is not int:
        raise Refused("has a tensor without a storage; get the .safetensors version")
    dtypes = [value.name for value in rest if isinstance(value, DType)]
    return Tensor(storage, dtypes[0] if dtypes else storage.dtype, offset, _whole(shape), _whole(stride))


def _first(value: object = None, *rest: object) -> object:
    """Stands for _rebuild_parameter and its like: a wrapper around its first argument."""
    return value


def _from_type(function: object = None, kind: object = None, args: object = (), state: object = None) -> object:
    """Stands for torch._tensor._rebuild_from_type_v2: a tensor of a subclass."""
    return _tensor(*args) if function is _tensor and isinstance(args, tuple) and len(args) >= 4 else None


ALLOWED: dict[str, object] = {
    "collections.OrderedDict": Mapping,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": _first,
}
ALLOWED |= {f"torch.{name}": DType(dtype) for name, dtype in STORAGES.items()}
ALLOWED |= {f"torch.storage.{name}": DType(dtype) for name, dtype in STORAGES.items()}
ALLOWED |= {f"torch.{name}": DType(name) for name in ITEMSIZE}
# What training programs leave beside the weights: callbacks, schedules, counters. None of it is called.
ALLOWED |= dict.fromkeys(
    """collections.defaultdict collections.Counter argparse.Namespace pathlib.PosixPath pathlib.WindowsPath datetime.datetime
    builtins.set builtins.frozenset builtins.list builtins.dict builtins.int builtins.float builtins.bool builtins.complex
    builtins.slice __builtin__.set __builtin__.frozenset __builtin__.list __builtin__.dict __builtin__.int __builtin__.float
    __builtin__.object __builtin__.complex builtins.object copy_reg._reconstructor copyreg._reconstructor
    _codecs.encode numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct
    numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct numpy.float64 numpy.float32 numpy.int64
    torch.device torch.nn.parameter.Parameter torch.nn.parameter.UninitializedParameter
    torch.nn.modules.container.ParameterDict torch.nn.modules.container.ParameterList torch.Tensor
    pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint pytorch_lightning.callbacks.early_stopping.EarlyStopping
    pytorch_lightning.utilities.parsing.AttributeDict lightning_fabric.utilities.data.AttributeDict
    omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata omegaconf.base.Metadata
    omegaconf.nodes.AnyNode omegaconf.nodes.StringNode omegaconf.nodes.IntegerNode omegaconf.nodes.FloatNode
    omegaconf.nodes.BooleanNode typing.Any""".split(),
    Record,
)


class Unpickler(pickle.Unpickler):
    """pickle.Unpickler that knows the allowlist and storages, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = ALLOWED.get(f"{module}.{name}")
        if known is None:
            raise Refused(f"asks to run '{_safe(module)}.{_safe(name)}'; refused as unsafe; get the .safetensors version")
        return known

    def persistent_load(self, pid: Any) -> object:
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module" and pid[1] is Record:
            return pid[1]  # a container class of the old format, beside its source code, which nobody looks at
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], DType):
            raise Refused("refers to something that is not a tensor storage; get the .safetensors version")
        key, count = pid[2], pid[4]
        if not isinstance(key, str) or type(count) is not int or count < 0 or (len(pid) > 5 and pid[5] is not None):
            raise Refused("has a damaged storage; download it again")
        return Storage(key, pid[1].name, count)


def _safe(text: str) -> str:
    return re.sub(r"[^\w.\-<>]", "?", text, flags=re.ASCII)[:100]


def _load(stream: BinaryIO) -> Any:
    return Unpickler(stream, encoding="utf-8", errors="surrogateescape").load()


def entries(file: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """Return name -> (start, bytes) of a zip archive whose entries are stored, distinct, apart and plainly named."""
    file.seek(max(0, size - 22))
    if file.read(4) != b"PK\x05\x06":
        raise Refused("is a zip archive cut short, or with something behind its end; download it again")
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise Refused(f"is a zip archive of {len(infos)} entries, over the limit of {MAX_ENTRIES}")
    found: dict[str, tuple[int, int]] = {}
    spans = []
    for info in infos:
        name = info.orig_filename
        parts = name.split("/")
        if name.startswith("/") or "\\" in name or ".." in parts or not name.isprintable() or len(name) > MAX_NAME:
            raise Refused("is a zip archive with a forbidden entry name; refused as unsafe")
        if name in found:
            raise Refused(f"is a zip archive that lists '{_safe(name)}' twice; refused as unsafe")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Refused(f"is a zip archive with a compressed entry ('{_safe(name)}'); refused, get the .safetensors version")
        if info.flag_bits & 0x1:
            raise Refused("is an encrypted zip archive, not weights")
        file.seek(info.header_offset)
        local = file.read(30)
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise Refused("is a damaged zip archive; download it again")
        name_size, extra = int.from_bytes(local[26:28], "little"), int.from_bytes(local[28:30], "little")
        start = info.header_offset + 30 + name_size + extra
        if file.read(name_size) != name.encode("utf-8") or int.from_bytes(local[8:10], "little") != zipfile.ZIP_STORED:
            raise Refused("is a zip archive whose two lists of entries differ; refused as unsafe")
        found[name] = (start, info.file_size)
        spans.append((info.header_offset, start + info.file_size))
    spans.sort()
    if not spans or spans[0][0] != 0 or spans[-1][1] > size:
        raise Refused("is a zip archive with something before its start or past its end; refused as unsafe")
    if any(end > start for (_, end), (start, _) in zip(spans, spans[1:], strict=False)):
        raise Refused("is a zip archive whose entries overlap; refused as unsafe")
    return found


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
    value = _load(io.BytesIO(file.read(length)))  # its own stream, so that the pickle cannot read past its entry
    prefix = f"{root}data/"
    return value, {name[len(prefix) :]: span for name, span in found.items() if name.startswith(prefix)}


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Return the same of torch's format before 1.6: five pickles in a row, then the storages, each behind its length."""
    stream = io.BytesIO(file.read(min(size, MAX_PICKLE)))
    if stream.getvalue()[257:262] == b"ustar":
        raise Refused("is a tar archive from before torch 0.1.10, not read here; get the .safetensors version")
    if _load(stream) != LEGACY_MAGIC:
        raise Refused("is a pickle, but not one of weights; get the .safetensors version")
    _load(stream), _load(stream)  # protocol and byte order
    value, order = _load(stream), _load(stream)
    if not isinstance(order, list) or not all(isinstance(key, str) for key in order) or len(set(order)) != len(order):
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
    """Return the tensors by dotted name and the plain values of the top level; every object is visited once."""
    scalars: dict[str, object] = {}
    while isinstance(value, dict):
        for key, entry in value.items():
            if isinstance(key, str) and len(key) <= MAX_NAME and type(entry) in (str, int, float, bool):
                scalars.setdefault(key, entry[:1000] if isinstance(entry, str) else entry)
        inner = next((value[w] for w in WRAPPERS if isinstance(value.get(w), dict) and value[w] is not value), None)
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
                        inner_name = name if text in ("_parameters", "") else f"{name}.{text}" if name else text
                        stack.append((inner_name[: MAX_NAME + 1], entry))
            else:
                stack.extend((f"{name}.{i}" if len(node) > 1 else name, entry) for i, entry in enumerate(node))
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
    bad = len(shape) > MAX_RANK or len(stride) != len(shape) or any(s < 1 for s in shape) or any(s < 0 for s in stride)
    last = tensor.offset + sum((s - 1) * step for s, step in zip(shape, stride, strict=False))
    if bad or tensor.offset < 0 or start + length > size or (last + 1) * item > length or count * item > length:
        raise Refused(f"is damaged: tensor '{_safe(name)}' lies outside its storage; download it again")
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
    """Leave this process no new files, sockets or written bytes, `memory` bytes of address space and `seconds` of CPU."""
    import resource

    for codec in ("latin-1", "utf-8", "cp437", "ascii", "raw_unicode_escape"):
        codecs.lookup(codec)  # they are modules: load them while files may still be opened
    limits = {resource.RLIMIT_AS: memory, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 0}
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
        answer = {"refused": f"is a damaged pickle ({type(fault).__name__}); download it again or get the .safetensors version"}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
