"""Pickled weights are read as data: what torch saves comes back exactly, whatever wants to run is named and
refused.
"""

import io
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from ddgen.errors import ModelError
from ddgen.weights import unpickle, unpickle_child, unpickle_records, unpickle_zip
from ddgen.weights.checkpoint import Reader
from ddgen.weights.header import Header
from ddgen.weights.keymap import Take
from ddgen.weights.split import Stored
from ddgen.weights.unpickle import read_pickled_header, read_weights_header

STATE = {
    "a.weight": torch.randn(3, 4),
    "half": torch.randn(4, 5).half(),
    "brain": torch.randn(2, 2, 3, 3).bfloat16(),
    "double": torch.randn(2, 3).double(),
    "turned": torch.randn(4, 5).t(),
    "long": torch.arange(5),
    "window": torch.randn(9)[2:5],
    "scalar": torch.tensor(3),
}


def saved(tmp_path: Path, value: object, **options: bool) -> Path:
    path = tmp_path / "m.ckpt"
    torch.save(value, path, **options)
    return path


def read(header: Header, name: str) -> torch.Tensor:
    with Reader() as reader:
        return reader.read(Stored(header, Take((name,)), header.tensors[name].shape))


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_pickled_header(path)
    assert caught.value.exit_code == 5
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", ["bare", "ordered", "nested", "lightning", "module"])
def test_what_torch_saves_comes_back(tmp_path: Path, zipped: bool, wrap: str) -> None:
    value: object = {
        "bare": STATE,
        "ordered": OrderedDict(STATE),
        "nested": {"state_dict": {"state_dict": STATE}},
        "lightning": {
            "epoch": 3,
            "global_step": 470000,
            "callbacks": {"x": {1, 2}},
            "state_dict": OrderedDict(STATE),
        },
        "module": {f"module.{name}": tensor for name, tensor in STATE.items()},
    }[wrap]
    header = read_weights_header(saved(tmp_path, value, _use_new_zipfile_serialization=zipped))
    assert list(header.tensors) == list(STATE)
    for name, tensor in STATE.items():
        back = read(header, name)
        assert back.dtype == tensor.dtype and back.is_contiguous() and torch.equal(back, tensor)
        assert (header.tensors[name].stride is not None) == (name == "turned")
    assert header.metadata.get("global_step") == ("470000" if wrap == "lightning" else None)


def test_module_state_and_parameters(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    assert set(read_pickled_header(saved(tmp_path, module.state_dict())).tensors) == set(module.state_dict())
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.randn(2, 8))})
    header = read_pickled_header(saved(tmp_path, {"string_to_param": parameters, "name": "cat"}))
    assert (
        torch.equal(read(header, "string_to_param.*"), parameters["*"]) and header.metadata["name"] == "cat"
    )


def torch_zip(data: bytes, extra: dict[str, bytes] | None = None, *, compress: bool = False) -> bytes:
    """Return a torch-like archive around a pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in (extra or {"archive/data/0": bytes(64)}).items():
            archive.writestr(name, content)
    return out.getvalue()


# Globals with which a pickle can run code, read or write files, reach the network, or load native code: the
# ones in scanners'
# advisories and our own. Each is called with arguments that would leave a canary file behind.
_PAIRS = (
    """
os system|posix system|nt system|os popen|os execv|os execl|os execvp|os spawnl|os spawnv|os posix_spawn|os
fork|os kill|os remove
os rename|os rmdir|os makedirs|os symlink|os open|os putenv|os._wrap_close x|subprocess run|subprocess
Popen|subprocess call
subprocess check_call|subprocess check_output|subprocess getoutput|subprocess getstatusoutput|builtins
eval|builtins exec|builtins compile
builtins open|builtins getattr|builtins setattr|builtins __import__|builtins globals|builtins vars|builtins
input|builtins breakpoint
builtins map|builtins filter|builtins apply|builtins type|builtins super|builtins bytearray|builtins
bytes|builtins print|__builtin__ eval
__builtin__ exec|__builtin__ execfile|__builtin__ file|__builtin__ apply|__builtin__ getattr|__builtin__
compile|__builtin__ __import__
io open|io FileIO|_io FileIO|_io open|codecs open|code InteractiveInterpreter|code interact|codeop
compile_command|commands getoutput
runpy run_path|runpy _run_code|runpy run_module|pty spawn|pdb run|pdb Pdb|bdb Bdb|bdb.Bdb run|timeit
timeit|timeit main|timeit Timer
cProfile run|cProfile runctx|profile run|profile Profile|trace Trace|doctest debug_script|doctest
debug|asyncio run|asyncio create_subprocess_shell
asyncio.unix_events _UnixSubprocessTransport|multiprocessing Process|multiprocessing.util
spawnv_passfds|concurrent.futures ProcessPoolExecutor
socket socket|socket create_connection|ssl create_default_context|urllib.request urlopen|urllib.request
urlretrieve|http.client HTTPConnection
httplib HTTPSConnection|ftplib FTP|smtplib SMTP|telnetlib Telnet|aiohttp ClientSession|requests
get|requests.api get|webbrowser open
ctypes CDLL|ctypes cdll|ctypes.util find_library|_ctypes dlopen|cffi FFI|importlib
import_module|importlib.machinery SourceFileLoader
imp load_source|imp load_dynamic|zipimport zipimporter|pkgutil resolve_name|pydoc pipepager|pydoc locate|pip
main|pip._internal main
ensurepip _run_pip|venv create|lib2to3.pgen2.grammar Grammar.loads|lib2to3.pgen2.pgen
ParserGenerator.make_label|idlelib.autocomplete AutoComplete
idlelib.calltip get_entity|idlelib.run Executive.runcode|idlelib.pyshell
ModifiedInterpreter.runcode|idlelib.debugobj ObjectTreeItem.SetText
operator attrgetter|operator methodcaller|operator itemgetter|_operator attrgetter|functools partial|functools
reduce|_functools partial
itertools accumulate|types CodeType|types FunctionType|types ModuleType|marshal loads|pickle loads|pickle
Unpickler|_pickle loads|cPickle loads
dill loads|joblib load|cloudpickle loads|shelve open|dbm open|sqlite3 connect|shutil rmtree|shutil move|shutil
copy|tempfile mktemp
tarfile open|zipfile ZipFile|logging FileHandler|logging.config listen|logging.config fileConfig|site
execsitecustomize|sys exit|sys settrace
sys modules|inspect getattr_static|gc get_objects|weakref finalize|atexit register|signal signal|threading
Thread|_thread start_new_thread
faulthandler dump_traceback_later|linecache getlines|distutils.file_util write_file|distutils.spawn
spawn|setuptools setup
torch load|torch.hub load|torch.jit load|torch.serialization load|torch.storage _load_from_bytes|torch.package
PackageImporter
torch._inductor.codecache compile_file|torch.utils.cpp_extension load_inline|torch.utils._config_module
load_config|torch.ops load_library
torch.fx.experimental.symbolic_shapes ShapeEnv.evaluate_guards_expression|torch.utils.bottleneck.__main__
run_cprofile
torch.utils.collect_env run|torch._dynamo.guards GuardBuilder.get|torch.testing._internal.common_utils
run_tests|torch.nn Module
torch._C _jit_script_compile|torch.distributed.rpc rpc_sync|numpy load|numpy.f2py.crackfortran
getlincoef|numpy.f2py compile|numpy fromfile
numpy.testing._private.utils runstring|numpy.testing.utils runstring|numpy.distutils.exec_command
exec_command|numpy.ctypeslib load_library
pandas read_pickle|pandas.io.common get_handle|scipy.weave inline|yaml load|yaml unsafe_load|jinja2
Template|django.core.management execute_from_command_line
transformers AutoModel.from_pretrained|huggingface_hub hf_hub_download|diffusers
DiffusionPipeline.from_pretrained|ddgen.cli.main main
ddgen.weights.unpickle_child main|ddgen.weights.unpickle_child os.system|__main__ main|__main__
os|pytorch_lightning Trainer|ultralytics YOLO
""".replace("|", " ").split()
)
GADGETS = tuple(f"{module} {name}" for module, name in zip(_PAIRS[::2], _PAIRS[1::2], strict=True))


def call(module: str, name: str, argument: bytes, protocol: int) -> bytes:
    """Return a pickle that calls module.name(argument), written with the opcodes of the protocol."""
    if protocol == 4:
        text = b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode()
        return b"\x80\x04" + text + b"\x93" + b"C" + bytes([len(argument)]) + argument + b"\x85R."
    if protocol == 1:
        return (
            b"(S'" + argument + b"'\ni" + module.encode() + b"\n" + name.encode() + b"\n."
        )  # INST: no GLOBAL, no REDUCE
    return (
        b"\x80\x02c"
        + module.encode()
        + b"\n"
        + name.encode()
        + b"\nU"
        + bytes([len(argument)])
        + argument
        + b"\x85R."
    )


@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_no_gadget_is_found(protocol: int, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    assert len(GADGETS) > 200
    for gadget in GADGETS:
        module, name = gadget.split()
        stream = io.BytesIO(call(module, name, f"touch {canary}".encode(), protocol))
        with pytest.raises(unpickle_records.Refused, match="asks to run"):
            unpickle_records.Unpickler(stream).load()
    assert not canary.exists()


def test_the_allowlist_holds_only_inert_things() -> None:
    ours = {
        unpickle_records.Record,
        unpickle_records.Mapping,
        unpickle_records._tensor,
        unpickle_records._first,
        unpickle_records._from_type,
    }
    assert all(
        value in ours or isinstance(value, unpickle_records.DType)
        for value in unpickle_records.ALLOWED.values()
    )


@pytest.mark.parametrize(
    "gadget", ["os system", "builtins eval", "torch load", "subprocess Popen", "builtins getattr"]
)
def test_a_gadget_in_a_file_is_named(gadget: str, tmp_path: Path) -> None:
    module, name = gadget.split()
    path, canary = tmp_path / "m.ckpt", tmp_path / "canary"
    for data in (call(module, name, f"touch {canary}".encode(), 2), torch_zip(call(module, name, b"x", 4))):
        path.write_bytes(data)
        start = time.monotonic()
        assert f"asks to run '{module}.{name}'; refused as unsafe" in refusal(path)
        assert time.monotonic() - start < 10.0
    assert not canary.exists()


def test_names_in_a_message_are_plain(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"\x80\x02cos\x1b[2J\nsys\x07tem\n.")
    text = refusal(tmp_path / "m.pt")
    assert text.isprintable() and "os?" in text


def many(text: bytes, count: int) -> bytes:
    return b"\x80\x02" + text * count + b"."


LAUGHS = b"\x80\x02" + b"]q\x00" + b"".join(b"(" + b"h\x00" * 10 + b"tq\x00" for _ in range(20)) + b"."
HASHES = b"\x80\x02}K\x01q\x00" + b"".join(b"(" + b"h\x00" * 10 + b"tq\x00" for _ in range(20)) + b"K\x01s."
BOMBS = {
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "long": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\xff" * 64 + b".",
    "bytes8": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "bytearray8": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b".",
    "deep": many(b"]", 100_000),
    "deep tuple": b"\x80\x02" + b"N" + b"\x85" * 1_000_000 + b".",
    "laughs": LAUGHS,
    "hashes": HASHES,
    "deep hash": b"\x80\x02}" + b"N" + b"\x85" * 1_000_000 + b"K\x01s.",
    "digits": b"\x80\x02I" + b"9" * 100_000 + b"\n.",
    "dup": b"\x80\x02(" + b"]" + b"2" * 200_000 + b"l.",
    "persistent": b"\x80\x02K\x01Q.",
    "text persistent": b"Pos\n.",
    "extension": b"\x80\x02\x82\x01.",
    "stop at once": b".",
    "empty": b"",
    "not a pickle": b"<!DOCTYPE html>",
    "pop nothing": b"\x80\x020000.",
    "mark only": b"\x80\x02((((.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_soon(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    for data in (BOMBS[name], torch_zip(BOMBS[name])):
        path.write_bytes(data)
        start = time.monotonic()
        refusal(path)
        assert time.monotonic() - start < 10.0  # about a second of its own; the machine may be busy


def test_zip_tricks(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    torch.save(STATE, path)
    good = path.read_bytes()

    def refused(data: bytes, why: str) -> None:
        path.write_bytes(data)
        assert why in refusal(path)

    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    root = next(name for name in content if name.endswith("data.pkl")).split("/")[0]

    def rebuilt(changes: dict[str, bytes | None], **options: bool) -> bytes:
        names = {name: value for name, value in (content | changes).items() if value is not None}
        out = io.BytesIO()
        with zipfile.ZipFile(
            out, "w", zipfile.ZIP_DEFLATED if options.get("compress") else zipfile.ZIP_STORED
        ) as archive:
            for name, value in names.items():
                archive.writestr(name, value)
        return out.getvalue()

    path.write_bytes(rebuilt({}))
    read_pickled_header(path)
    refused(rebuilt({}, compress=True), "compressed entry")
    refused(rebuilt({"../x": b"x"}), "forbidden entry name")
    refused(rebuilt({"/etc/x": b"x"}), "forbidden entry name")
    refused(rebuilt({"a\\b": b"x"}), "forbidden entry name")
    refused(rebuilt({f"{root}/constants.pkl": b"x"}), "TorchScript")
    refused(rebuilt({f"{root}/code/__torch__.py": b"x"}), "TorchScript")
    refused(rebuilt({f"{root}/byteorder": b"big"}), "big-endian")
    refused(rebuilt({f"{root}/data.pkl": None}), "data.pkl")
    refused(rebuilt({"other/data.pkl": content[f"{root}/data.pkl"]}), "data.pkl")
    refused(rebuilt({f"{root}/data/0": b"abcd"}), "outside its storage")
    refused(rebuilt({f"{root}/data/0": None}), "outside its storage")
    refused(b"#!/bin/sh\n" + good, "pickle")
    refused(good + b"tail", "behind its end")
    refused(good[:-30], "cut short")
    refused(good.replace(b"PK\x03\x04", b"PK\x03\x05"), "not a tensor storage")
    out = io.BytesIO(good)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(out, "a") as archive:
        archive.writestr(f"{root}/data/0", bytes(48))
    refused(out.getvalue(), "twice")
    encrypted = bytearray(good)
    encrypted[good.rindex(b"PK\x01\x02") + 8] |= 1
    refused(bytes(encrypted), "encrypted")
    renamed = good.replace(f"{root}/data/0".encode(), f"{root}/data/9".encode(), 1)  # the local name only
    refused(renamed, "differ")
    many_entries = io.BytesIO()
    with zipfile.ZipFile(many_entries, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        for i in range(unpickle_zip.MAX_ENTRIES):
            archive.writestr(f"a/data/{i}", b"")
    refused(many_entries.getvalue(), "over the limit")
    refused(torch_zip(bytes(unpickle_child.MAX_PICKLE + 1)), "over the limit")


def test_shapes_lie_within_their_storage(tmp_path: Path) -> None:
    def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 16) -> bytes:
        class Storage:
            pass

        class Saver(pickle.Pickler):
            def persistent_id(self, value: object) -> object:
                return (
                    ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(value, Storage) else None
                )

        class Rebuilt:
            def __reduce__(self) -> tuple[object, ...]:
                return torch._utils._rebuild_tensor_v2, (
                    Storage(),
                    offset,
                    shape,
                    stride,
                    False,
                    OrderedDict(),
                )

        out = io.BytesIO()
        Saver(out, protocol=2).dump({"w": Rebuilt()})
        return torch_zip(out.getvalue(), {"archive/data/0": bytes(64)})

    path = tmp_path / "m.pt"
    path.write_bytes(tensor((4, 4), (4, 1)))
    read_pickled_header(path)
    for shape, stride, offset in [
        ((4, 5), (5, 1), 0),
        ((4, 4), (4, 1), 1),
        ((2**40,), (0,), 0),
        ((2**62, 2**62), (0, 0), 0),
        ((4,), (-1,), 3),
        ((4,), (1,), -1),
        ((0, 4), (4, 1), 0),
        ((1,) * 9, (1,) * 9, 0),
        ((4,), (1, 1), 0),
        ((-4,), (1,), 0),
        ((2, 2), (2**61, 1), 0),
    ]:
        path.write_bytes(tensor(shape, stride, offset))
        assert "outside its storage" in refusal(path)


def test_other_files_are_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.pt")
    os.mkfifo(tmp_path / "fifo.pt")
    assert "not a regular file" in refusal(tmp_path / "fifo.pt")
    path = tmp_path / "jit.pt"
    path.write_bytes(pickle.dumps([1, 2]))
    assert "not one of weights" in refusal(path)
    assert "holds no tensors" in refusal(saved(tmp_path, {"a": 1}))


def test_the_child_cannot_open_anything() -> None:
    script = """
import os, socket
from ddgen.weights import unpickle_child
unpickle_child.give_up_rights(5.0, 2**30)
attempts = [lambda: os.open("/dev/null", os.O_RDONLY), socket.socket, os.pipe, lambda: bytearray(2**31)]
for attempt in attempts:
    try: attempt()
    except (OSError, MemoryError): continue
    raise SystemExit("a right is left")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def mutants(seeds: list[bytes], count: int, rng: random.Random) -> list[bytes]:
    """Return damaged copies: flipped bytes, cut, doubled and moved pieces, swapped opcodes."""
    made = []
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(data))
            match rng.randrange(6):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randrange(1, 40)]
                case 2:
                    data[at:at] = data[at : at + rng.randrange(1, 40)]
                case 3:
                    data = data[: max(1, at)]
                case 4:
                    data[at] = rng.choice(b"()}]lt\x85\x86Rb\x81\x93QscoiN2q\x94.")
                case _:
                    data[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**24)))
            data = data or bytearray(b".")
        made.append(bytes(data))
    return made


def test_mutated_files_only_ever_raise_refusals(tmp_path: Path) -> None:
    """In forked children with the same limits (a thousand files per process, a new one where a limit killed
    it).
    """
    rng = random.Random(7)
    seeds = []
    for zipped in (True, False):
        seeds.append(
            saved(
                tmp_path, {"state_dict": STATE, "global_step": 1}, _use_new_zipfile_serialization=zipped
            ).read_bytes()
        )
    bare = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, bare)
    files = mutants([*seeds, bare.getvalue()], 2000, rng)
    accepted = done = killed = 0
    while done < len(files):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            unpickle_child.give_up_rights(60.0, 2**36)
            for data in files[done:]:
                signal.setitimer(signal.ITIMER_PROF, 2.0)
                try:
                    unpickle_child.index(io.BytesIO(data), len(data))
                    outcome = b"a"
                except MemoryError:
                    outcome = b"m"
                except Exception:
                    outcome = b"r"
                os.write(writer, outcome)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            outcomes = pipe.read()
        status = os.waitpid(pid, 0)[1]
        accepted += outcomes.count(b"a")
        done += len(outcomes)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGPROF
            killed += 1
            done += 1
    assert done == len(files) and killed <= 5 and accepted > 50


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480])
def test_a_safetensors_header_whose_length_looks_like_a_pickle(length: int, tmp_path: Path) -> None:
    text = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = tmp_path / "m.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + text.ljust(length) + bytes(4))
    assert list(read_weights_header(path).tensors) == ["w"]


def test_parent_checks_the_answer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, STATE)
    good = {"name": "w", "dtype": "float32", "shape": [4], "stride": [1], "start": 0, "stop": 16}
    for change in (
        {"stop": 10**9},
        {"start": -4},
        {"dtype": "os"},
        {"shape": [2**40], "stride": [0], "stop": 4},
        {"stride": [-1]},
    ):
        monkeypatch.setattr(
            unpickle, "_ask", lambda path, handle, t=good | change: {"tensors": [t], "values": {}}
        )
        assert "damaged" in refusal(path)
