"""Rows about whole pictures of a Stable Diffusion 1.5 on random weights, from a file of 2.1 GB to the PNG: a
fresh process against one of each peer. 256 x 256 and four steps, so that a processor ends with it; once 512 x 512
and twenty, as people draw.
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
USUAL = (20, 512)


def checkpoint() -> tuple[tempfile.TemporaryDirectory[str], str]:
    """Write the file; return its folder and its path."""
    folder = tempfile.TemporaryDirectory()
    path = f"{folder.name}/sd15.safetensors"
    code = f"from bench.networks import write_checkpoint; write_checkpoint({path!r})"
    run([PYTHON, "-c", code], PYTHONPATH=str(ROOT))
    return folder, path


def sample(path: str, *more: str, steps: int = STEPS, side: int = SIDE) -> list[str]:
    flags = ["--size", f"{side}x{side}", "--steps", str(steps), "--sampler", "euler", "--guidance", "7.5", "--dtype", "float32"]
    return [DDGEN, "sample", "a red apple", "--model", path, *flags, "--seed", "7", "-o", "apple.png", *more]


def what(steps: int = STEPS, side: int = SIDE) -> str:
    return f"a picture of {side} x {side} in {steps} steps, SD1.5 shape, cold, to the PNG"


def against_diffusers(steps: int = STEPS, side: int = SIDE, *, memory: bool = False, repeats: int = 2) -> Pair:
    folder, path = checkpoint()
    run([DDGEN, "models", "convert", path, f"{folder.name}/diffusers"])
    script = [PYTHON, str(PEERS / "diffusers_image.py"), f"{folder.name}/diffusers", str(side), str(steps)]
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
        what(steps, side),
        lambda: run(sample(path, steps=steps, side=side)).seconds,
        "a diffusers script",
        lambda: run(script).seconds,
        target=1.0,
        close=folder.cleanup,
        repeats=repeats,
        warmups=0,
    )


def against_cpp() -> Pair:
    if find_spec("stable_diffusion_cpp") is None:
        raise Absent("pip install stable-diffusion-cpp-python (it is built with cmake)")
    folder, path = checkpoint()
    script = [PYTHON, str(PEERS / "cpp_image.py"), path, str(SIDE), str(STEPS)]
    return Pair(
        what(),
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
    blocks = ("--offload", "blocks")
    whole = Pair(
        "`--offload blocks`: a picture of 512 x 512, SD1.5 shape, one step: peak memory",
        lambda: run(sample(path, *blocks, steps=1, side=512)).megabytes,
        "without",
        lambda: run(sample(path, steps=1, side=512)).megabytes,
        unit="MB",
        close=folder.cleanup,
        repeats=1,
        warmups=0,
    )
    if memory:
        return whole
    return Pair(
        "`--offload blocks`: " + what(),
        lambda: run(sample(path, *blocks)).seconds,
        "without",
        lambda: run(sample(path)).seconds,
        close=folder.cleanup,
        repeats=2,
        warmups=0,
    )


ROWS: dict[str, Callable[[], Pair]] = {
    "image": against_diffusers,
    "image-memory": lambda: against_diffusers(memory=True),
    "image-20": lambda: against_diffusers(*USUAL, repeats=1),
    "image-cpp": against_cpp,
    "small": lambda: kept_small(memory=False),
    "small-memory": lambda: kept_small(memory=True),
}
LONG = ("image-20", "image-memory", "image-cpp", "small", "small-memory")
