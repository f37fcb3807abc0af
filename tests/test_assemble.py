"""Spec -> Pipeline: the right device and dtype, each weight read once, and the same network as diffusers'
folder."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from referees import TOLERANCE, distance, draw
from small import small_file, small_spec

from ddgen.app import assemble as assembling
from ddgen.app.assemble import assemble, choose_device, choose_dtype, load_unet
from ddgen.app.pipeline import Pipeline
from ddgen.errors import ModelError, ResourceError, UsageError
from ddgen.nets.config import PatchConfig
from ddgen.weights import arch as archs
from ddgen.weights import convert, registry
from ddgen.weights.checkpoint import open_checkpoint
from ddgen.weights.spec import Source, Spec


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.fixture
def small(tmp_path):
    """A small SD15 with its Spec, as a file."""
    small_file(tmp_path / "raw.safetensors", "SD15", vocab=49408)
    path = tmp_path / "m.safetensors"
    convert.to_file(open_checkpoint(tmp_path / "raw.safetensors"), small_spec("SD15", 49408), path)
    return path


def test_the_embedded_model_is_assembled_by_default():
    pipeline = Pipeline.load()
    assert pipeline.spec.name == "sticker" and pipeline.denoiser.dtype == torch.float32
    found = registry.find()
    assert (
        pipeline.digests["model"] == __import__("hashlib").sha256(found.source.path.read_bytes()).hexdigest()
    )
    assert not any(parameter.requires_grad for parameter in pipeline.denoiser.network.parameters())


def test_assembling_imports_nothing_slow():
    """Drawing an embedding on `meta` made torch import its compiler: more than a second of every start."""
    code = (
        "import sys; from ddgen.app.pipeline import Pipeline; Pipeline.load(); "
        "slow = ('torch._dynamo', 'sympy', 'transformers', 'open_clip', 'safetensors', 'scipy'); "
        "print([name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_every_byte_of_the_weights_is_read_once(small, monkeypatch):
    read = {"bytes": 0}
    preadv = os.preadv

    def counted(*arguments):
        got = preadv(*arguments)
        read["bytes"] += got
        return got

    monkeypatch.setattr(os, "preadv", counted)
    assemble(registry.find(str(small)))
    header = open_checkpoint(small).headers[0]
    assert read["bytes"] == sum(info.stop - info.start for info in header.tensors.values())


def test_a_network_with_position_channels_is_diffusers_with_them_concatenated(tmp_path):
    """The embedded model's kind: patches, positions, the pooled text as class embedding; from a folder that
    diffusers wrote."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=48 + 16, out_channels=48, block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, cross_attention_dim=24, class_embed_type="projection",
        projection_class_embeddings_input_dim=40,
    ).double().eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path / "unet")
    (tmp_path / "ddgen.json").write_text(
        '{"prediction": "x0", "first_stage": {"kind": "patch", "factor": 4, "channels": 3}, '
        '"position_channels": {"count": 16}}'
    )
    found = open_checkpoint(tmp_path)
    assert found.arch.first_stage == PatchConfig(factor=4) and found.arch.unet.position_channels == 16
    network = load_unet(Spec("m", found.arch), found, torch.float64, torch.device("cpu"))
    x, context, vector = draw(2, 48, 16, 16, seed=1), draw(2, 7, 24, seed=2), draw(2, 40, seed=3)
    time = torch.tensor([999.0, 20.5], dtype=torch.float64)
    centres = (torch.arange(16, dtype=torch.float64) + 0.5) / 16 * 2 - 1
    down, across = torch.meshgrid(centres, centres, indexing="ij")
    places = [across, down, across * down, across**2 + down**2]
    for k in (1, 2, 3):
        places += [f(math.pi * k * axis) for axis in (across, down) for f in (torch.sin, torch.cos)]
    grid = torch.stack(places).expand(2, -1, -1, -1)
    with torch.no_grad():
        expected = theirs(torch.cat([x, grid], dim=1), time, context, class_labels=vector).sample
        assert distance(network(x, time, context, vector), expected) < TOLERANCE
        # The test can fail: without the positions the result is another.
        without = theirs(torch.cat([x, 0 * grid], dim=1), time, context, class_labels=vector).sample
        assert distance(without, expected) > 1e-3


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ResourceError) as caught:
        choose_device("cuda")
    assert str(caught.value) == "--device cuda: no CUDA device found; use --device cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda") and choose_device("cuda:1") == torch.device(
        "cuda", 1
    )
    with pytest.raises(ResourceError, match="no CUDA device 2"):
        choose_device("cuda:2")
    for word in ("tpu", "cuda:x", "cpu:1", ""):
        with pytest.raises(UsageError, match=f"unknown device '{word}'"):
            choose_device(word)


def test_the_dtype_is_what_the_device_does_natively(small, monkeypatch):
    found, latent = open_checkpoint(small), Spec("m", archs.SD15)
    pixels = replace(latent, arch=replace(archs.SD15, first_stage=PatchConfig()))
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for capability, expected in (((9, 0), torch.bfloat16), ((7, 5), torch.float16), ((5, 2), torch.float32)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert choose_dtype("auto", cuda, latent, found) == expected
        assert choose_dtype("auto", cuda, pixels, found) == torch.float32
        assert choose_dtype("float16", cuda, pixels, found) == torch.float16
    monkeypatch.setattr(assembling, "cpu_has_bf16", lambda: True)
    assert choose_dtype("auto", cpu, latent, found) == torch.float32  # too small to pay
    monkeypatch.setattr(assembling, "LARGE", 1000)
    assert choose_dtype("auto", cpu, latent, found) == torch.bfloat16
    monkeypatch.setattr(assembling, "cpu_has_bf16", lambda: False)
    assert choose_dtype("auto", cpu, latent, found) == torch.float32
    with pytest.raises(UsageError, match="unknown dtype 'half'"):
        choose_dtype("half", cpu, latent, found)


def test_half_precision_networks_keep_their_first_stage_in_float32(small):
    pipeline = assemble(registry.find(str(small)), dtype="bfloat16")
    assert {parameter.dtype for parameter in pipeline.denoiser.network.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in pipeline.first_stage.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in pipeline.text.parameters()} == {torch.float32}


def test_what_is_not_there_or_does_not_fit_is_told(small):
    spec = registry.find(str(small))
    with pytest.raises(ModelError, match="is not on this machine"):
        assemble(replace(spec, source=Source(repo="a/b")))
    with pytest.raises(ModelError, match="'input_blocks.0.0.weight' is 32x4x3x3, expected 32x9x3x3"):
        assemble(replace(spec, arch=replace(spec.arch, unet=replace(spec.arch.unet, in_channels=9))))
    with pytest.raises(ModelError, match="holds no text.1"):
        assemble(replace(spec, arch=replace(spec.arch, text=spec.arch.text * 2)))
    with pytest.raises(UsageError, match="unknown text backend 'keras'"):
        assemble(spec, text_backend="keras")
