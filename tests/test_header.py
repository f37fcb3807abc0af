"""Safetensors headers: every way a file can be bad gives one clean error, and no mutant anything else."""

import json
import os
import random
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ddgen.errors import DdgenError, ModelError
from ddgen.weights.checkpoint import Reader, read_tensors
from ddgen.weights.header import MAX_HEADER, MAX_TENSORS, read_header
from ddgen.weights.keymap import Take
from ddgen.weights.split import Stored


def file_bytes(entries, data=b"", pad=0):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) + pad) + text + b" " * pad + data


def entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


GOOD = {"a": entry([2], 0, 8), "b": entry([1, 2], 8, 16)}
DATA = bytes(16)

BAD = {
    "empty": (b"", "model.empty", "is empty (0 bytes)"),
    "seven bytes": (b"1234567", "model.truncated", "ends inside its header"),
    "length beyond the file": (struct.pack("<Q", 900) + b"{}", "model.truncated", "ends inside its header"),
    "huge header": (
        struct.pack("<Q", MAX_HEADER + 8) + b"{" + bytes(MAX_HEADER + 16),
        "model.limit",
        "the limit is 8388608",
    ),
    "not JSON": (file_bytes(b'{"a": }'), "model.header", "not JSON (at byte 6)"),
    "not UTF-8": (file_bytes(b'{"\xff": 1}'), "model.header", "not UTF-8"),
    "NaN": (file_bytes(b'{"a": NaN}'), "model.header", "holds NaN"),
    "long number": (file_bytes(b'{"a": %s}' % (b"9" * 5000)), "model.header", "too large"),
    "nested": (file_bytes(b'{"a":' * 90_000 + b"1" + b"}" * 90_000), "model.header", "nested too deeply"),
    "two keys": (file_bytes(b'{"a": 1, "a": 2}'), "model.header", "lists key 'a' twice"),
    "two keys inside": (
        file_bytes(b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [], "data_offsets": [0, 4]}}', bytes(4)),
        "model.header",
        "lists key 'dtype' twice",
    ),
    "metadata of numbers": (
        file_bytes({"__metadata__": {"a": 1}}),
        "model.header",
        "metadata that is not text",
    ),
    "too many": (
        file_bytes(
            {str(i): entry([1], i, i + 1, "U8") for i in range(MAX_TENSORS + 1)}, bytes(MAX_TENSORS + 1)
        ),
        "model.limit",
        "lists 32769 tensors",
    ),
    "escape in a name": (
        file_bytes({"\x1b[2J": entry([2], 0, 8)}, bytes(8)),
        "model.name",
        r"names a tensor '\x1b[2J'",
    ),
    "empty name": (file_bytes({"": entry([2], 0, 8)}, bytes(8)), "model.name", "names a tensor ''"),
    "long name": (file_bytes({"n" * 257: entry([2], 0, 8)}, bytes(8)), "model.name", "names a tensor"),
    "lone surrogate": (file_bytes(b'{"\\ud800": {}}'), "model.name", "names a tensor"),
    "no offsets": (
        file_bytes({"a": {"dtype": "F32", "shape": [1]}}),
        "model.header",
        "describes tensor 'a' wrongly",
    ),
    "a number as entry": (file_bytes({"a": 3}), "model.header", "describes tensor 'a' wrongly"),
    "unknown dtype": (
        file_bytes({"a": entry([2], 0, 8, "F31")}, bytes(8)),
        "model.dtype",
        "unknown type 'F31'",
    ),
    "rank 9": (file_bytes({"a": entry([1] * 9, 0, 4)}, bytes(4)), "model.shape", "at most 8 whole numbers"),
    "negative side": (file_bytes({"a": entry([-1], 0, 4)}, bytes(4)), "model.shape", "whole numbers"),
    "side of true": (file_bytes({"a": entry([True], 0, 4)}, bytes(4)), "model.shape", "whole numbers"),
    "side of 1.0": (file_bytes({"a": entry([1.0], 0, 4)}, bytes(4)), "model.shape", "whole numbers"),
    "zero side": (file_bytes({"a": entry([0, 2**62], 0, 0)}), "model.shape", "a side of 0"),
    "zero side, rank 1": (file_bytes({"a": entry([0], 0, 0)}), "model.shape", "a side of 0"),
    "overflowing shape": (
        file_bytes({"a": entry([2**62, 4], 0, 0)}),
        "model.offsets",
        "its shape asks for another number",
    ),
    "offsets reversed": (
        file_bytes({"a": entry([1], 4, 0)}, bytes(4)),
        "model.offsets",
        "places tensor 'a' wrongly",
    ),
    "wrong size": (
        file_bytes({"a": entry([2], 0, 4)}, bytes(4)),
        "model.offsets",
        "gives tensor 'a' 4 bytes",
    ),
    "overlap": (
        file_bytes({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "model.overlap",
        "'b' over another",
    ),
    "hole": (
        file_bytes({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, bytes(20)),
        "model.gap",
        "a gap of 4 bytes",
    ),
    "truncated": (file_bytes(GOOD, DATA[:-2]), "model.truncated", "ends 2 bytes early (tensor 'b')"),
    "trailing": (file_bytes(GOOD, DATA + b"PK"), "model.trailing", "has 2 bytes behind its last tensor"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
        "model.not-safetensors",
        "a Git LFS pointer",
    ),
    "HTML": (b"\n<!DOCTYPE html><html>...</html>", "model.not-safetensors", "a web page"),
    "zip": (b"PK\x03\x04" + bytes(60), "model.not-safetensors", "a zip archive"),
    "pickle": (b"\x80\x02}q\x00." + bytes(60), "model.not-safetensors", "a Python pickle"),
    "GGUF": (b"GGUF" + bytes(60), "model.not-safetensors", "a GGUF file"),
    "tar": (bytes(257) + b"ustar" + bytes(300), "model.not-safetensors", "a tar archive"),
    "noise": (b"\xff" * 300, "model.not-safetensors", "is not a safetensors file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_its_fault(tmp_path, name):
    data, code, words = BAD[name]
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        read_header(path)
    assert (caught.value.id, caught.value.exit_code) == (code, 5)
    assert caught.value.message.startswith("model 'm.safetensors' ") and words in caught.value.message
    assert caught.value.hint and len(str(caught.value)) < 300


def test_a_good_file(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes(GOOD | {"__metadata__": {"who": "me"}}, DATA, pad=3))
    header = read_header(path)
    assert header.metadata == {"who": "me"} and header.size == path.stat().st_size
    assert {name: (info.shape, info.stop - info.start) for name, info in header.tensors.items()} == {
        "a": ((2,), 8),
        "b": ((1, 2), 8),
    }


def test_markers_may_be_empty(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes({"v_pred": entry([0], 0, 0), "a": entry([2], 0, 8)}, bytes(8)))
    assert read_header(path).tensors["v_pred"].shape == (0,)


def test_a_name_of_256_bytes_is_allowed_and_257_are_not(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes({"é" * 128: entry([2], 0, 8)}, bytes(8)))
    assert len(read_header(path).tensors) == 1
    path.write_bytes(file_bytes({"é" * 128 + "a": entry([2], 0, 8)}, bytes(8)))
    with pytest.raises(ModelError):
        read_header(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, words in (
        (tmp_path / "fifo", "not a regular file"),
        (tmp_path, "is a directory"),
        ("/dev/zero", "not a regular file"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / ("n" * 300), "cannot be opened (file name too long)"),
        (str(tmp_path / "a\0b"), "cannot be opened (embedded null byte)"),
    ):
        with pytest.raises(ModelError) as caught:
            read_header(path)
        assert words in caught.value.message


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=20),
        st.tuples(
            st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.int64]),
            st.lists(st.integers(1, 4), max_size=4),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_what_the_formats_own_writer_writes_is_read_back(tmp_path_factory, plan):
    path = tmp_path_factory.mktemp("h") / "m.safetensors"
    tensors = {name: torch.randint(0, 9, shape).to(dtype) for name, (dtype, shape) in plan.items()}
    path.write_bytes(save(tensors))
    header = read_header(path)
    part = {name: Stored(header, Take((name,)), info.shape) for name, info in header.tensors.items()}
    back = dict(read_tensors(part))
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)


def mutate(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        kind, at = rng.randrange(6), rng.randrange(len(data))
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.randint(1, 9)]
        elif kind == 4:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 9)))
        else:
            other = rng.randrange(len(data))
            data[at : at + 8] = data[other : other + 8]
        if not data:
            return b""
    return bytes(data)


def test_ten_thousand_mutants_give_clean_errors_or_whole_tensors(tmp_path):
    seed = save({"a.weight": torch.ones(3, 4), "b": torch.ones(5, dtype=torch.float16)}, {"who": "me"})
    length = 8 + int.from_bytes(seed[:8], "little")
    path = tmp_path / "m.safetensors"
    rng = random.Random(20)
    accepted = 0
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    for number in range(10_000):
        # Half of the mutants differ in the header only, where the checks are.
        data = mutate(seed[:length], rng) + seed[length:] if number % 2 else mutate(seed, rng)
        os.ftruncate(handle, os.pwrite(handle, data, 0))
        try:
            header = read_header(path)
            for name, info in header.tensors.items():
                with Reader() as reader:
                    assert reader.read(Stored(header, Take((name,)), info.shape)).shape == info.shape
            accepted += 1
        except DdgenError as error:
            assert str(error)
    os.close(handle)
    assert 100 < accepted < 6000


def test_a_file_changed_after_its_header_was_read_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes(GOOD, DATA))
    header = read_header(path)
    part = {"a": Stored(header, Take(("a",)), (2,))}
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(ModelError, match="was changed while it was read"):
        dict(read_tensors(part))


def test_a_file_truncated_while_it_is_read_is_an_error_not_a_signal(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes(GOOD, DATA))
    header = read_header(path)
    with Reader() as reader:
        reader.read(Stored(header, Take(("a",)), (2,)))
        os.truncate(path, path.stat().st_size - 4)
        with pytest.raises(ModelError, match="ends inside tensor 'b'"):
            reader.read(Stored(header, Take(("b",)), (1, 2)))
