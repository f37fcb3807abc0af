"""Tensors are read whole and in order, whatever they are stored as, by one thread or by several."""

import os
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from ddgen.errors import ModelError
from ddgen.weights import reader
from ddgen.weights.checkpoint import save_tensors, unfilled
from ddgen.weights.header import read_header
from ddgen.weights.keymap import Take
from ddgen.weights.reader import PIECE, Reader, read_all
from ddgen.weights.split import Stored

KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
SIZES = (1, 7, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5)


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    return request.param


def file_of(path, tensors):
    save_tensors(path, tensors, {})
    return read_header(path)


def whole(header, *names, **how):
    take = Take(names, **how)
    return Stored(header, take, take.shape(header.tensors[name].shape for name in names))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_tensors_are_of_the_mode_they_are_asked_for_in(mode, threads, tmp_path):
    tensors = {f"t{i}": torch.full((PIECE + i,), float(i)).half() for i in range(5)}
    header = file_of(tmp_path / "a.safetensors", tensors)
    with mode():
        found = read_all({name: whole(header, name) for name in tensors}, dtype=torch.float32)
        assert all(torch.equal(found[name], value.float()) for name, value in tensors.items())
    assert {value.is_inference() for value in found.values()} == {mode is torch.inference_mode}


@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_and_size_is_converted_to_the_last_element(wanted, threads, tmp_path):
    tensors = {
        f"{kind}.{size}": torch.linspace(-3, 3, size).to(kind) for kind in KINDS for size in SIZES
    } | {"whole": torch.arange(5), "single": torch.tensor(2.5), "flags": torch.tensor([True, False])}
    header = file_of(tmp_path / "a.safetensors", tensors)
    found = read_all({name: whole(header, name) for name in tensors}, dtype=wanted)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.to(wanted) if tensor.is_floating_point() else tensor
        assert found[name].dtype == expected.dtype and torch.equal(found[name], expected), name


def test_rows_stacks_and_transposes_are_made_as_they_are_read(threads, tmp_path):
    fused, other = torch.randn(384, 100).half(), torch.randn(128, 100).half()
    header = file_of(tmp_path / "a.safetensors", {"fused": fused, "other": other})
    part = {f"rows.{k}": whole(header, "fused", rows=(k, 3)) for k in range(3)} | {
        "stack": whole(header, "other", "fused"),
        "stacked rows": whole(header, "other", "fused", rows=(1, 4)),
        "turned": whole(header, "other", transpose=True),
        "convolution": whole(header, "other", rank=4),
    }
    expected = {f"rows.{k}": fused[128 * k : 128 * (k + 1)] for k in range(3)} | {
        "stack": torch.cat([other, fused]),
        "stacked rows": torch.cat([other, fused])[128:256],
        "turned": other.T,
        "convolution": other[:, :, None, None],
    }
    for dtype in (torch.float16, torch.float32):
        found = read_all(part, dtype=dtype)
        assert all(torch.equal(found[name], value.to(dtype)) for name, value in expected.items())
        assert all(value.is_contiguous() for value in found.values())


def test_scaled_eighths_are_multiplied(threads, tmp_path):
    small = torch.linspace(-2, 2, PIECE + 3).to(torch.float8_e4m3fn)
    header = file_of(tmp_path / "a.safetensors", {"w": small, "s": torch.tensor(0.37)})
    stored = Stored(header, Take(("w",)), (PIECE + 3,), scale="s")
    found = read_all({"w": stored}, dtype=torch.float32)["w"]
    assert torch.equal(found, small.float() * torch.tensor(0.37))
    with Reader() as reader_:
        alone = reader_.read(stored)
    assert alone.dtype == torch.float32 and torch.equal(alone, found), "what a LoRA is added to is not rounded again"


def test_a_file_that_is_cut_or_changed_meanwhile_is_told(threads, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    tensors = {f"t{i}": torch.zeros(PIECE * 2).half() for i in range(6)}
    header = file_of(path, tensors)
    part = {name: whole(header, name) for name in tensors}
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelError, match="was changed while it was read"):
        read_all(part, dtype=torch.float32)

    header = file_of(path, tensors)
    part = {name: whole(header, name) for name in tensors}
    open_regular = reader.open_regular

    @contextmanager
    def cutting(opened):
        with open_regular(opened) as found:
            os.truncate(path, header.size - 1000)
            yield found

    monkeypatch.setattr(reader, "open_regular", cutting)
    with pytest.raises(ModelError, match="ends inside tensor 't5'"):
        read_all(part, dtype=torch.float32)


def test_one_reader_serves_several_files(threads, tmp_path):
    files = [file_of(tmp_path / f"{i}.safetensors", {"w": torch.full((PIECE,), float(i))}) for i in range(4)]
    part = {f"w{i}": whole(header, "w") for i, header in enumerate(files)}
    found = read_all(part, dtype=torch.float16)
    assert [float(found[f"w{i}"].mean()) for i in range(4)] == [0.0, 1.0, 2.0, 3.0]
    with Reader() as one:
        assert float(one.read(part["w3"]).sum()) == 3.0 * PIECE


def test_a_module_built_unfilled_has_the_shapes_of_any_other_and_no_values(monkeypatch):
    drawn = []
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *_, **__: drawn.append(self) or self)
    with unfilled():
        made = nn.Sequential(nn.Linear(3, 5), nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Embedding(7, 3))
    assert not drawn and all(value.is_meta for value in made.state_dict().values())
    monkeypatch.undo()
    usual = nn.Sequential(nn.Linear(3, 5), nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Embedding(7, 3))
    shapes = [(name, value.shape) for name, value in made.state_dict().items()]
    assert shapes == [(name, value.shape) for name, value in usual.state_dict().items()]
