"""Memory: what is estimated, what is then chosen, and that parts which take turns on a device make the same
picture.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from referees import redraw
from safetensors import safe_open
from safetensors.torch import save_file
from test_additions import SPEC, model  # noqa: F401 - the fixture
from torch import Tensor, nn

from ddgen.app import memory
from ddgen.app import pipeline as pipelines
from ddgen.app.estimate import SMALL_TILE, decode_bytes, step_bytes
from ddgen.app.memory import (
    Blocks,
    Turns,
    fit_decoding,
    fitting_batch,
    free_memory,
    offload_mode,
    take_turns,
)
from ddgen.app.pipeline import Pipeline, run
from ddgen.app.plan import plan
from ddgen.errors import UsageError
from ddgen.nets.config import KLConfig, PatchConfig
from ddgen.nets.tiling import Tiling
from ddgen.nets.vae import AutoencoderKL
from ddgen.request import Request

GPU = torch.device("cuda")
CPU = torch.device("cpu")


def test_free_memory_is_a_plausible_number() -> None:
    free = free_memory(CPU)
    assert free is not None and 2**20 < free < 2**50


def test_a_container_limits_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_cgroup_room", lambda: 12345)
    assert free_memory(CPU) == 12345


@pytest.mark.parametrize(
    ("word", "device", "weights", "free", "expected"),
    [
        ("auto", GPU, (4, 3), 10, "none"),
        ("auto", GPU, (5, 4), 10, "parts"),
        ("auto", GPU, (9, 1), 10, "blocks"),
        ("parts", GPU, (1, 0), 10, "parts"),
        ("none", GPU, (90, 0), 10, "none"),
        ("auto", GPU, (9, 9), None, "none"),
        ("auto", CPU, (4, 3), 10, "none"),
        ("auto", CPU, (5, 4), 10, "blocks"),
        ("parts", CPU, (90, 0), 10, "none"),
        ("blocks", CPU, (1, 0), 10, "blocks"),
        ("blocks", GPU, (1, 0), None, "blocks"),
    ],
)
def test_what_is_offloaded(
    word: str,
    device: torch.device,
    weights: tuple[int, int],
    free: int | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    assert offload_mode(word, device, {"unet": weights[0], "text.0": weights[1]}) == expected


def test_an_unknown_word_is_answered() -> None:
    with pytest.raises(UsageError, match="unknown offload 'part'"):
        offload_mode("part", CPU, {"unet": 1})


def test_tiles_only_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = AutoencoderKL(KLConfig(model_channels=32, channel_mult=(1, 1), num_res_blocks=1))
    need = decode_bytes(stage.config, 512, 512)
    assert need == 5 * 4 * 32 * 512 * 512 and decode_bytes(PatchConfig(), 512, 512) == 0
    for free, tiled in ((None, False), (need * 2, False), (need, True)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        fit_decoding(stage, 512, 512, CPU)
        assert stage.slicing and (stage.tiling is not None) is tiled
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    for side, tile in ((256, 64), (128, SMALL_TILE), (64, SMALL_TILE)):  # 128, 64 and 32 latent cells
        fit_decoding(stage, side, side, CPU)
        assert stage.tiling is not None and stage.tiling.size == tile
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    fit_decoding(stage, 256, 256, CPU, kept_small=True)  # whatever is free
    assert stage.tiling is not None and stage.tiling.size == SMALL_TILE
    fit_decoding(stage, 256, 256, CPU, kept_small=True, ring="x")
    assert stage.tiling == Tiling(SMALL_TILE, SMALL_TILE // 4, "x")
    fit_decoding(stage, 256, 256, torch.device("cuda"), kept_small=True)
    assert stage.tiling is None
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    for side in (256, 64):
        fit_decoding(stage, side, side, CPU, ring="xy")
        assert stage.tiling is not None and stage.tiling.ring == "xy"


def test_decoding_is_fitted_before_the_first_step(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pipeline = Pipeline.load(str(model))
    (job,) = plan(Request(prompts=("a cat",), seed=3), pipeline.spec)
    order: list[str] = []
    monkeypatch.setattr(pipelines, "fit_decoding", lambda *given, **more: order.append("fitted"))
    run(pipeline, [job], lambda step, steps: order.append("step"))
    assert order == ["fitted"] + ["step"] * job.steps


def test_small_tiles_of_a_seamless_picture_go_round(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pipeline = Pipeline.load(str(model), offload="blocks")
    asked: list[tuple[bool, str]] = []
    monkeypatch.setattr(pipelines, "fit_decoding", lambda *given, kept_small, ring: asked.append((kept_small, ring)))
    for tile in ("", "xy"):
        run(pipeline, list(plan(Request(prompts=("a cat",), seed=3, steps=2, tile=tile), pipeline.spec)))
    assert asked == [(True, ""), (True, "xy")]


def test_a_batch_is_cut_to_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = plan(Request(prompts=("a cat",), seed=3), SPEC)
    each = 2 * step_bytes(SPEC.arch.unet, 8, 8)
    for free, guidance, dtype, fits in (
        (None, 4.0, None, 8),
        (each * 10, 4.0, None, 8),
        (each * 5, 4.0, None, 4),
        (each * 5, 4.0, torch.float16, 8),
        (each * 5 / 2, 1.0, torch.float32, 4),
        (1, 4.0, None, 1),
    ):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        assert fitting_batch(SPEC, replace(job, guidance=guidance), 8, CPU, dtype) == fits


def halved(path: Path, folder: Path) -> Path:
    """Write a model's file again in float16."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).half() for name in file.keys()}
        metadata = file.metadata()
    save_file(tensors, folder / "half.safetensors", metadata)
    return folder / "half.safetensors"


def test_weights_kept_in_16_bits_make_the_same_picture(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """Of a file in float16; and no two layers are wide at once."""
    path = str(halved(model, tmp_path))
    plain, small = Pipeline.load(path), Pipeline.load(path, offload="blocks")
    modules = [small.denoiser.network, small.first_stage, small.text.towers]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    assert len(parameters) > 100 and {parameter.dtype for parameter in parameters} == {torch.float16}
    wide: list[int] = []
    for layer in small.denoiser.network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda *_: wide.append(
                    sum(found.dtype == torch.float32 for found in small.denoiser.network.parameters())
                )
            )
    (job,) = plan(Request(prompts=("a cat",), seed=3), plain.spec)
    assert (run(plain, [job])[0] == run(small, [job])[0]).all()
    assert wide and max(wide) == 0  # taken away before any hook behind it
    after = [parameter for module in modules for parameter in module.parameters()]
    assert all(a is b for a, b in zip(parameters, after, strict=True))


def test_weights_are_taken_away_when_a_layer_fails() -> None:
    layer = nn.Linear(2, 2).half()
    Blocks(CPU, torch.float32).add(layer)
    seen: list[torch.dtype] = []
    layer.forward = lambda x: seen.append(layer.weight.dtype) or 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        layer(torch.zeros(1, 2))
    assert seen == [torch.float32] and layer.weight.dtype == torch.float16


class Part(nn.Module):
    """Notes where it is sent, and what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.sent: list[str] = []

    def to(self, device: object) -> "Part":  # type: ignore[override]
        self.sent.append(str(device))
        return self

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        return x if context is None else x + context

    def decode(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_one_part_at_a_time_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(torch.device("meta"))
    monkeypatch.setattr(turns, "_bring", lambda value: value + 1 if isinstance(value, Tensor) else value)
    first, second = Part(), Part()
    turns.add(first)
    turns.add(second, [second.inner])
    assert first(torch.zeros(2), context=torch.zeros(2)).tolist() == [2.0, 2.0]  # both were brought
    first(torch.zeros(2))
    assert (first.sent, second.sent) == (["meta"], [])
    second.decode(torch.zeros(2))
    assert (first.sent, second.sent) == (["meta", "cpu"], ["meta"])
    first(torch.zeros(2))
    assert (first.sent, second.sent) == (["meta", "cpu", "meta"], ["meta", "cpu"])


def test_taking_turns_changes_no_picture(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    plain, turning = Pipeline.load(str(model)), Pipeline.load(str(model))
    order: list[str] = []
    take = Turns.take
    monkeypatch.setattr(
        Turns, "take", lambda self, part: (order.append(type(part).__name__), take(self, part))[1]
    )
    take_turns([turning], CPU)
    (job,) = plan(Request(prompts=("a cat",), seed=3), plain.spec)
    assert (run(plain, [job])[0] == run(turning, [job])[0]).all()
    assert [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name] == [
        "CLIPTextModel",
        "UNet",
        "AutoencoderKL",
    ]


def test_slices_give_the_same_pictures() -> None:
    stage = redraw(
        AutoencoderKL(KLConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1)), 1
    ).double()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        whole = stage.decode(latents)
        fit_decoding(stage, 16, 16, CPU)
        assert (stage.decode(latents) - whole).abs().max() < 1e-10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device to take turns on")
def test_parts_take_turns_on_a_real_device(model: Path) -> None:  # noqa: F811
    plain = Pipeline.load(str(model), device="cuda", dtype="float32", offload="none")
    turning = Pipeline.load(str(model), device="cuda", dtype="float32", offload="parts")
    (job,) = plan(Request(prompts=("a cat",), seed=3), plain.spec)
    assert abs(run(plain, [job])[0].astype(int) - run(turning, [job])[0].astype(int)).max() <= 1
