"""The ways in which bench.fast saves arithmetic, on small random networks: exact where they save nothing, what
they should be where they do, and gone afterwards. Nothing is timed here."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from referees import distance, draw, redraw
from small import small_arch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import fast, networks
from bench.int8 import int8, multiplied, packed
from bench.merging import CELL, destinations, match, merging
from bench.reusing import reusing
from ddgen.app.pipeline import Pipeline
from ddgen.nets.attention import Attention
from ddgen.nets.unet import UNet
from ddgen.weights import arch

CHANGES = {
    "reuse": partial(reusing, every=2, keep=1),
    "int8": int8,
    "merge": partial(merging, ratio=0.5),
}
SIZE = (16, 12)


@pytest.fixture(scope="module")
def network() -> UNet:
    return redraw(UNet(small_arch("SD15").unet).eval(), seed=0)


@torch.inference_mode()
def called(network: nn.Module, seed: int = 1, *, texts: int = 2) -> Tensor:
    """Return what the network makes of one x_t and so many texts."""
    x, context = draw(1, 4, *SIZE, seed=seed).float(), draw(texts, 7, network.config.context_dim, seed=2).float()
    return network(x, torch.full((1,), 700.0 - seed), context)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_felt_and_taken_back(network: UNet, name: str) -> None:
    before = [called(network, seed) for seed in (1, 2)]
    with CHANGES[name](network):
        assert not torch.equal(called(network, 1), before[0]) or not torch.equal(called(network, 2), before[1])
    with pytest.raises(KeyError), CHANGES[name](network):
        raise KeyError
    assert all(torch.equal(called(network, seed), was) for seed, was in zip((1, 2), before, strict=True))


@pytest.mark.parametrize("keep", [1, 3])
def test_reuse_at_every_call_is_exact(network: UNet, keep: int) -> None:
    before = [called(network, seed) for seed in (1, 2, 3)]
    with reusing(network, 1, keep):
        assert all(torch.equal(called(network, seed), was) for seed, was in zip((1, 2, 3), before, strict=True))


def test_reuse_computes_the_deep_part_every_other_call_and_when_the_rows_change(network: UNet) -> None:
    ran: list[int] = []
    hook = network.middle_block[0].register_forward_hook(lambda module, inputs, output: ran.append(len(output)))
    exact, single = called(network, 3), called(network, 4, texts=1)
    ran.clear()
    with reusing(network, 2, 1):
        first, second, third = (called(network, seed) for seed in (1, 2, 3))
        assert ran == [2, 2] and torch.equal(third, exact)
        assert torch.equal(called(network, 4, texts=1), single) and ran == [2, 2, 1]
    hook.remove()
    assert distance(first, second) > 0, "the ends are computed always"


def test_kept_blocks_see_the_step_they_are_in(network: UNet) -> None:
    """With the same x_t and time twice, what is reused is what would be computed."""
    exact = called(network)
    with reusing(network, 2, 2):
        called(network)
        assert torch.equal(called(network), exact)


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_each_whole_cell_has_one_destination(size: tuple[int, int]) -> None:
    for generator in (None, torch.Generator().manual_seed(1)):
        marks = destinations(size, generator).view(size)
        down, right = size[0] // CELL, size[1] // CELL
        cells = marks[: down * CELL, : right * CELL].float()
        assert torch.equal(F.avg_pool2d(cells[None], CELL)[0] * CELL**2, torch.ones(down, right))
        assert marks.sum() == down * right
    assert not torch.equal(marks, destinations(size).view(size))


def test_the_most_similar_are_averaged_into_their_destination() -> None:
    """Place by place, in one picture of 4 x 4."""
    tokens, ratio = draw(1, 16, 5, seed=1), 0.25
    marks = destinations((4, 4))
    to = [i for i in range(16) if marks[i]]
    cosine = F.cosine_similarity(tokens[0, :, None], tokens[0, None], dim=-1)
    nearest = {i: max(to, key=lambda j: cosine[i, j].item()) for i in range(16) if i not in to}
    gone = sorted(nearest, key=lambda i: cosine[i, nearest[i]].item())[-4:]
    expected = draw(1, 16, 3, seed=2)
    found = match(tokens, marks, ratio)
    shown = found.copied(found.merge(expected))[0]
    for place in range(16):
        group = [place]
        if place in to or place in gone:
            goal = place if place in to else nearest[place]
            group = [goal, *(i for i in gone if nearest[i] == goal)]
        assert torch.allclose(shown[place], expected[0, group].mean(0), atol=1e-12)


@pytest.mark.parametrize(("ratio", "left"), [(0.0, 48), (0.25, 36), (0.5, 24), (1.0, 12)])
def test_so_many_tokens_are_left(ratio: float, left: int) -> None:
    found = match(draw(2, 48, 6, seed=1), destinations((6, 8)), ratio)
    x = draw(2, 48, 3, seed=2)
    assert found.merge(x).shape == (2, left, 3)
    if ratio == 0:
        assert torch.equal(found.copied(found.merge(x)), x)


def test_merging_is_of_the_finest_level_and_of_self_attention(network: UNet) -> None:
    seen: set[tuple[bool, int]] = set()  # (no text, tokens)

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.add((len(inputs) == 1, inputs[0].shape[1]))

    places = SIZE[0] * SIZE[1]
    with merging(network, 0.25):
        hooks = [m.register_forward_pre_hook(note) for m in network.modules() if isinstance(m, Attention)]
        called(network)
    for hook in hooks:
        hook.remove()
    coarser = {(alone, places // 4**level) for alone in (True, False) for level in (1, 2)}
    assert (True, places * 3 // 4) in seen and (True, places) not in seen and (False, places) in seen
    assert coarser <= seen
    exact = called(network)
    with merging(network, 0.0):
        assert torch.equal(called(network), exact)


@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_near_and_scaled_by_channel(bias: bool) -> None:
    layer = redraw(nn.Linear(64, 24, bias=bias), seed=0)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-3, 0, 24)[:, None])  # one scale for all would lose the first rows
        x = draw(3, 5, 64, seed=1).float()
        found, exact = multiplied(packed(layer.weight, layer.bias), x), layer(x)
    error = (found - exact).flatten(0, 1).square().mean(0).sqrt() / exact.flatten(0, 1).std(0)
    assert 0 < error.min() and error.max() < 0.05


def test_psnr_and_ssim() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 240, (32, 32, 3), dtype=np.uint8)
    assert fast.psnr(picture, picture) == 99 and fast.ssim(picture, picture) == pytest.approx(1)
    assert fast.psnr(picture, picture + np.uint8(10)) == pytest.approx(10 * np.log10(255**2 / 100))
    assert fast.ssim(picture, rng.integers(0, 240, (32, 32, 3), dtype=np.uint8)) < 0.2


def test_the_curve_is_straight_between_what_was_measured() -> None:
    fewer = [fast.Way("", seconds, psnr, 1.0, 1.0) for seconds, psnr in ((0.8, 50.0), (0.4, 30.0), (0.2, 20.0))]
    assert fast.curve_at(fewer, 0.6) == pytest.approx(40)
    assert fast.curve_at(fewer, 0.25) == pytest.approx(22.5)
    assert fast.curve_at(fewer, 0.9) == 50, "beyond what was measured: the nearest"


def test_pictures_are_judged_beside_the_exact() -> None:
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)

    def pictures(rows: list[np.ndarray]) -> Tensor:
        return torch.stack([torch.tensor([1.0, 0.0] if row[0, 0, 0] else [0.6, 0.8]) for row in rows])

    made = [black, white, white], [1.0, 2.0, 4.0]
    way = fast.judged("x", made, ([black] * 3, [2.0] * 3), SimpleNamespace(pictures=pictures))
    assert (way.seconds, way.psnr, way.clip) == (1.0, 0.0, pytest.approx(0.6))


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = small_arch("SD15")
    monkeypatch.setitem(arch.FAMILIES, "SD15", family)
    monkeypatch.setattr(networks, "place_of", lambda device: (torch.device("cpu"), torch.float32))
    monkeypatch.setattr(fast, "RESULTS", tmp_path / "results" / "fast")
    few = {"STEPS": (3,), "INTERVALS": ((0.0, 0.5),), "REUSES": ((2, 1),), "RATIOS": (0.5,), "TURNS": 1}
    for name, value in few.items():
        monkeypatch.setattr(fast, name, value)
    monkeypatch.setattr(sys, "argv", ["fast", "--prompts", "1", "--shape", "SD15", "--side", "8", "--save"])
    monkeypatch.setattr(Pipeline, "load", _short(Pipeline.load))
    fast.main()
    (path,) = (tmp_path / "results" / "fast").iterdir()
    saved = json.loads(path.read_text())
    names = ["reuse 2, keep 1", "int8", "merge 0.5"]
    assert [way["name"] for way in saved["ways"]] == ["steps 3", "interval 0:0.5", *names]
    assert all(way["psnr"] < 99 and 0 < way["clip"] < 1.001 for way in saved["ways"])
    assert [step["name"] for step in saved["shape"]["steps"]] == names
    assert all(step["seconds"] > 0 and step["exact"] > 0 for step in saved["shape"]["steps"])
    assert "CLIP" in capsys.readouterr().out


def _short(load: Callable[[], Pipeline]) -> Callable[[], Pipeline]:
    def loaded() -> Pipeline:
        pipeline = load()
        pipeline.spec = replace(pipeline.spec, defaults=replace(pipeline.spec.defaults, steps=6))
        return pipeline

    return loaded
