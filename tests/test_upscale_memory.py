"""Memory of a tiled enlargement: measured at twice and at eight times the size, through the installed command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from program import Place
from test_edit import noisy_picture

PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_grows_far_less_than_the_picture(tmp_path: Path) -> None:
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
    # 16 times as many pixels. What the network sees does not grow; the picture's own arrays and the middle of the
    # autoencoder do.
    assert eightfold < 1.6 * twice
