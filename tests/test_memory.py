"""Memory: what is estimated, what is then chosen, and that parts which take turns on a device make the same
picture.
"""

from pathlib import Path

import pytest
import torch
from referees import redraw
from test_additions import model  # noqa: F401 - the fixture
from torch import Tensor, nn

from ddgen.app import memory
from ddgen.app.memory import Turns, decode_bytes, fit_decoding, free_memory, offloads, take_turns
from ddgen.app.pipeline import Pipeline, run
from ddgen.app.plan import plan
from ddgen.errors import UsageError
from ddgen.nets.config import KLConfig, PatchConfig
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
        ("auto", GPU, 7, 10, False),
        ("auto", GPU, 9, 10, True),
        ("parts", GPU, 1, 10, True),
        ("none", GPU, 90, 10, False),
        ("auto", GPU, 9, None, False),
        ("auto", CPU, 90, 10, False),
        ("parts", CPU, 90, 10, False),
    ],
)
def test_when_parts_take_turns(
    word: str,
    device: torch.device,
    weights: int,
    free: int | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    assert offloads(word, device, weights) is expected


def test_an_unknown_word_is_answered() -> None:
    with pytest.raises(UsageError, match="unknown offload 'part'"):
        offloads("part", CPU, 1)


def test_tiles_only_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = AutoencoderKL(KLConfig(model_channels=32, channel_mult=(1, 1), num_res_blocks=1))
    need = decode_bytes(stage.config, 512, 512)
    assert need == 3 * 4 * 32 * 512 * 512 and decode_bytes(PatchConfig(), 512, 512) == 0
    for free, tiled in ((None, False), (need * 2, False), (need, True)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        fit_decoding(stage, 512, 512, CPU)
        assert stage.slicing and (stage.tiling is not None) is tiled


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
