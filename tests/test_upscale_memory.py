"""Memory of a tiled enlargement does not grow with the picture: counted array by array, and measured at twice and at
eight times the size through the installed command."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from program import Place
from test_edit import noisy_picture
from test_parity_pipelines import FAMILIES, build, in_double, jobs_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddgen.app import canvas, verbs, windows
from ddgen.io import images
from ddgen.request import Edit

__all__ = ["in_double"]

PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


class Largest(TorchDispatchMode):
    """Remembers the most bytes of one tensor that is made while inside."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return made


def held(side: int, window: int, patch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Return the bytes of the largest tensor of an enlargement, and the most pixels that are made into numbers, or
    out of them, at once."""
    family = FAMILIES["sd1 ddim"]
    pipeline = build(family)
    record = Edit("upscale", strength=0.2, window=window)
    job = replace(jobs_of(family, pipeline)[0], steps=5, width=side, height=side, guidance=1.0, edit=record)
    picture = canvas.fit(noisy_picture(side // 4, side // 4), side, side, "stretch")
    converted: list[int] = []

    def counting(convert):
        def counted(given):
            found = convert(given)
            converted.append(max(np.prod(given.shape), found.size) // 3)
            return found

        return counted

    with patch.context() as patched, Largest() as largest:
        for name in ("to_unit", "to_uint8"):
            patched.setattr(images, name, counting(getattr(images, name)))
        verbs.enlarged(picture, side, side)(pipeline, [job], lambda step, steps: None)
    return largest.bytes, max(converted)


def test_nothing_but_the_bytes_and_the_latents_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "LEAST", 64)
    (small, some), (large, more) = held(128, 64, monkeypatch), held(256, 64, monkeypatch)
    assert small == large == 32 * 65 * 65 * 8, "a padded window in the first layers of the autoencoder"
    assert (some, more) == (64 * 128, 64 * 256), "a row of windows, the last"
    whole, every = held(256, 0, monkeypatch)
    assert whole > 15 * large and every == 256 * 256, "without windows it all grows"


def test_windows_give_what_the_whole_gives_where_nothing_looks_far() -> None:
    """Where a first stage is local, windows are exact: rows and columns end up where they belong."""
    from ddgen.nets.config import PatchConfig
    from ddgen.nets.patch import PatchStage
    from ddgen.nets.tiling import Tiling

    stage = PatchStage(PatchConfig(factor=8))
    picture = noisy_picture(88, 152)
    latents = windows.encode(stage, picture, 8, Tiling(4, 1), torch.device("cpu"), torch.float32)
    whole = stage.encode(torch.from_numpy(np.moveaxis(picture, 2, 0).copy())[None].float() / 127.5 - 1)
    assert torch.allclose(latents, whole, atol=1e-6)
    assert (windows.decode(stage, latents, 8, Tiling(4, 1)) == picture).all()
    latents[0, 0, -1, -1] = float("nan")
    assert windows.decode(stage, latents, 8, Tiling(4, 1)) is None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_grows_by_the_bytes_of_the_picture_alone(tmp_path: Path) -> None:
    place = Place(tmp_path)
    Image.fromarray(noisy_picture(128, 128)).save(place.path / "p.png")
    ddgen = str(Path(sys.executable).with_name("ddgen"))

    def peak(by: str) -> int:
        """Return the largest resident size in MB."""
        words = ("upscale", "p.png", "cat", "--by", by, "--steps", "1", "--guidance", "1", "-s", "1", "-q", "-f", "-o", "u.png")
        done = subprocess.run(
            [sys.executable, "-c", PEAK, ddgen, *words], cwd=place.path, capture_output=True, text=True, check=True
        )
        return int(done.stdout.split()[-1])

    twice, eightfold = peak("2"), peak("8")
    print(f"peak memory: {twice} MB at 2 x, {eightfold} MB at 8 x")
    # 983,040 pixels more: their bytes before and after, Pillow's copies of 4 bytes each, the file, the latents.
    assert eightfold - twice < 35
