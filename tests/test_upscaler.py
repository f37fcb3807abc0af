"""ESRGAN-type upscalers: random weights in the layouts that are published, through the command's own road."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from referees import redraw
from safetensors.torch import save_file
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet
from test_conditions import job
from test_edit import noisy_picture, pixel_pipeline

from ddgen.app import canvas, upscaler, verbs
from ddgen.errors import DdgenError
from ddgen.nets.tiling import Tiling
from ddgen.request import Edit

CPU = torch.device("cpu")
assert ESRGAN


def network(scale: int) -> RRDBNet:
    made = RRDBNet(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=scale)
    return redraw(made.eval(), 3)  # type: ignore[return-value]


@pytest.fixture(params=["safetensors", "pth", "params_ema"])
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    state = network(2).state_dict()
    path = tmp_path / f"x.{'safetensors' if request.param == 'safetensors' else 'pth'}"
    if request.param == "safetensors":
        save_file(state, path)
    else:
        torch.save({"params": {}, "params_ema": state} if request.param == "params_ema" else state, path)
    return path


def test_files_are_read_and_enlarge_as_the_network_does(weights: Path) -> None:
    loaded = upscaler.load(weights, CPU)
    picture = noisy_picture(20, 30)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = (network(2)(x).clamp(0, 1)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    assert loaded.scale == 2 and np.array_equal(upscaler.enlarged(loaded, picture, 60, 40), expected)
    assert upscaler.enlarged(loaded, picture, 100, 70).shape == (70, 100, 3), "twice, then to the size"


def test_where_ends_meet_the_network_looks_round_them() -> None:
    kernel = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(1)) / 9

    def blurred(x: torch.Tensor) -> torch.Tensor:
        found = torch.nn.functional.conv2d(x, kernel.expand(3, 1, 3, 3), padding=1, groups=3)
        return found.repeat_interleave(2, -1).repeat_interleave(2, -2)

    loaded, picture = upscaler.Upscaler(blurred, 2, CPU), noisy_picture(24, 40)

    def uneven(ring: str) -> int:
        one, other = (upscaler.enlarged(loaded, part, 80, 48, ring) for part in (picture, np.roll(picture, 20, 1)))
        return int(np.abs(np.roll(one, 40, 1).astype(int) - other).max())

    assert uneven("x") == 0 and uneven("") > 20


def test_tiles_bound_what_the_network_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def nearest(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape[-2:]))
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    monkeypatch.setattr(upscaler, "TILES", Tiling(32, 8))
    picture = noisy_picture(100, 80)
    found = upscaler.enlarged(upscaler.Upscaler(nearest, 2, CPU), picture, 160, 200)
    assert set(seen) == {(32, 32)} and len(seen) > 6
    assert np.array_equal(found, picture.repeat(2, 0).repeat(2, 1))


def test_other_weights_are_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(DdgenError, match="no architecture that spandrel knows") as caught:
        upscaler.load(tmp_path / "x.safetensors", CPU)
    assert caught.value.exit_code == 5 and caught.value.hint
    save_file(network(1).state_dict(), tmp_path / "y.safetensors")
    with pytest.raises(DdgenError, match="does not enlarge"):
        upscaler.load(tmp_path / "y.safetensors", CPU)


def test_an_edit_begins_from_what_the_network_made(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, picture = pixel_pipeline(), noisy_picture(64, 64)
    task = replace(job("cat", guidance=1.0, steps=2, width=128, height=128, edit=Edit("upscale", strength=0.5)))
    begun: list[np.ndarray] = []
    before = verbs.whole

    def whole(image: np.ndarray, *more: object) -> verbs.Draw:
        begun.append(image)
        return before(image, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(verbs, "whole", whole)
    fitted = canvas.fit(picture, 128, 128, "stretch")
    draw = verbs.enlarged(fitted, 120, 120, weights, picture)
    for _ in range(2):
        (found,) = draw(pipeline, [task], lambda step, steps: None)  # type: ignore[arg-type]
    assert found.shape == (120, 120, 3) and len(begun) == 1, "the network runs once"
    assert np.array_equal(begun[0], upscaler.enlarged(upscaler.load(weights, CPU), picture, 128, 128))
