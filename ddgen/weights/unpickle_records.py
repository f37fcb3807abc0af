"""The only things that a pickled weights file can make: tensors as places in a storage, and records that do
nothing.

    the pickle says                        here
    torch._utils._rebuild_tensor_v2(...)   Tensor(storage, dtype, offset, shape, stride)
    torch.FloatStorage                     DType("float32")
    collections.OrderedDict                Mapping, a dict
    what trainers leave beside it          Record: takes anything, does nothing
    anything else                          Refused, by its name

Standard library only: this is imported by the child process of unpickle.py.
"""

import pickle
import re
from typing import Any, NamedTuple

ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
ITEMSIZE |= {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
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
    """Stands for an object that we have no use for: takes anything, does nothing, keeps its state to be
    looked into.
    """

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


def _from_type(
    function: object = None, kind: object = None, args: object = (), state: object = None
) -> object:
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
    """collections.defaultdict collections.Counter argparse.Namespace pathlib.PosixPath pathlib.WindowsPath
    datetime.datetime
    builtins.set builtins.frozenset builtins.list builtins.dict builtins.int builtins.float builtins.bool
    builtins.complex
    builtins.slice __builtin__.set __builtin__.frozenset __builtin__.list __builtin__.dict __builtin__.int
    __builtin__.float
    __builtin__.object __builtin__.complex builtins.object copy_reg._reconstructor copyreg._reconstructor
    _codecs.encode numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct
    numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct numpy.float64 numpy.float32 numpy.int64
    torch.device torch.nn.parameter.Parameter torch.nn.parameter.UninitializedParameter
    torch.nn.modules.container.ParameterDict torch.nn.modules.container.ParameterList torch.Tensor
    pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
    pytorch_lightning.callbacks.early_stopping.EarlyStopping
    pytorch_lightning.utilities.parsing.AttributeDict lightning_fabric.utilities.data.AttributeDict
    omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata
    omegaconf.base.Metadata
    omegaconf.nodes.AnyNode omegaconf.nodes.StringNode omegaconf.nodes.IntegerNode omegaconf.nodes.FloatNode
    omegaconf.nodes.BooleanNode typing.Any""".split(),
    Record,
)


class Unpickler(pickle.Unpickler):
    """pickle.Unpickler that knows the allowlist and storages, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = ALLOWED.get(f"{module}.{name}")
        if known is None:
            raise Refused(
                f"asks to run '{safe(module)}.{safe(name)}'; refused as unsafe; get the .safetensors version"
            )
        return known

    def persistent_load(self, pid: Any) -> object:
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module" and pid[1] is Record:
            return pid[
                1
            ]  # a container class of the old format, beside its source code, which nobody looks at
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], DType):
            raise Refused("refers to something that is not a tensor storage; get the .safetensors version")
        key, count = pid[2], pid[4]
        if (
            not isinstance(key, str)
            or type(count) is not int
            or count < 0
            or (len(pid) > 5 and pid[5] is not None)
        ):
            raise Refused("has a damaged storage; download it again")
        return Storage(key, pid[1].name, count)


def safe(text: str) -> str:
    return re.sub(r"[^\w.\-<>]", "?", text, flags=re.ASCII)[:100]
