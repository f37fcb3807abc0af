"""Rows about whole pictures of a Stable Diffusion 1.5 on random weights, from a file of 2.1 GB to the PNG: a
fresh process against one of each peer. 256 x 256 and four steps, so that a processor ends with it.
"""

import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from bench.measure import ROOT, Absent, Pair, run

PYTHON = sys.executable
DDGEN = str(Path(sys.executable).with_name("ddgen"))
PEERS = Path(__file__).parent / "peers"
STEPS, SIDE = 4, 256
FLAGS = ["--size", f"{SIDE}x{SIDE}", "--steps", str(STEPS), "--sampler", "euler", "--guidance", "7.5"]


def checkpoint() -> tuple[tempfile.TemporaryDirectory[str], str]:
    """Write the file; return its folder and its path."""
    folder = tempfile.TemporaryDirectory()
    path = f"{folder.name}/sd15.safetensors"
    code = f"from bench.networks import write_checkpoint; write_checkpoint({path!r})"
    run([PYTHON, "-c", code], PYTHONPATH=str(ROOT))
    return folder, path


def sample(path: str, *more: str) -> list[str]:
    return [DDGEN, "sample", "a red apple", "--model", path, *FLAGS, "--seed", "7", "-o", "apple.png", *more]


WHAT = f"a picture of {SIDE} x {SIDE} in {STEPS} steps, SD1.5 shape, cold, to the PNG"


def against_diffusers(*, memory: bool = False) -> Pair:
    folder, path = checkpoint()
    run([DDGEN, "models", "convert", path, f"{folder.name}/diffusers"])
    script = [PYTHON, str(PEERS / "diffusers_image.py"), f"{folder.name}/diffusers", str(SIDE), str(STEPS)]
    if memory:
        return Pair(
            "the same: peak memory",
            lambda: run(sample(path)).megabytes,
            "a diffusers script",
            lambda: run(script).megabytes,
            unit="MB",
            close=folder.cleanup,
            repeats=1,
            warmups=0,
        )
    return Pair(
        WHAT,
        lambda: run(sample(path)).seconds,
        "a diffusers script",
        lambda: run(script).seconds,
        target=1.0,
        close=folder.cleanup,
        repeats=2,
        warmups=0,
    )


def against_cpp() -> Pair:
    if find_spec("stable_diffusion_cpp") is None:
        raise Absent("pip install stable-diffusion-cpp-python (it is built with cmake)")
    folder, path = checkpoint()
    script = [PYTHON, str(PEERS / "cpp_image.py"), path, str(SIDE), str(STEPS)]
    return Pair(
        WHAT,
        lambda: run(sample(path)).seconds,
        "stable-diffusion.cpp",
        lambda: run(script).seconds,
        target=1.0,
        close=folder.cleanup,
        repeats=2,
        warmups=0,
    )


def kept_small(*, memory: bool) -> Pair:
    folder, path = checkpoint()
    small, usual = [*sample(path), "--offload", "blocks"], sample(path)
    whole = Pair(
        "`--offload blocks`: a picture of 512 x 512, SD1.5 shape, one step: peak memory",
        lambda: run([*small, "--size", "512x512", "--steps", "1"]).megabytes,
        "without",
        lambda: run([*usual, "--size", "512x512", "--steps", "1"]).megabytes,
        unit="MB",
        close=folder.cleanup,
        repeats=1,
        warmups=0,
    )
    if memory:
        return whole
    return Pair(
        "`--offload blocks`: " + WHAT,
        lambda: run(small).seconds,
        "without",
        lambda: run(usual).seconds,
        close=folder.cleanup,
        repeats=2,
        warmups=0,
    )


ROWS: dict[str, Callable[[], Pair]] = {
    "image": against_diffusers,
    "image-memory": lambda: against_diffusers(memory=True),
    "image-cpp": against_cpp,
    "small": lambda: kept_small(memory=False),
    "small-memory": lambda: kept_small(memory=True),
}
LONG = ("image-memory", "image-cpp", "small", "small-memory")
