"""Rows about warm calls: a call that a worker runs, from the shell's point of view.

The worker has a directory of its own, so that none of the user's is used or stopped; it is left by a first
call, and asked for until it takes calls.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import ROOT, Pair, Worker, run

PYTHON = sys.executable
DDGEN = str(Path(sys.executable).with_name("ddgen"))
APPLE = ["sample", "a red apple", "--seed", "7", "-o", "apple.png"]
SMALL = ["--size", "64x64", "--steps", "1", "--guidance", "1", "--seed", "7", "-o", "apple.png"]
PATIENCE = 120  # seconds that a worker may take to load


class Warm:
    """A worker's directory, and calls that use it."""

    def __init__(self, *first: str) -> None:
        """Leave a worker behind the call `ddgen FIRST`, and wait until it takes calls."""
        self.folder = tempfile.TemporaryDirectory(prefix="ddgen-bench-", dir="/tmp")
        self.prefix = ["env", f"XDG_RUNTIME_DIR={self.folder.name}", DDGEN]
        self(*first, "--keep-alive", "30m")
        end = time.monotonic() + PATIENCE
        while not self.answers():
            if time.monotonic() > end:
                raise RuntimeError("no worker came")
            time.sleep(0.1)

    def __call__(self, *arguments: str) -> float:
        """Return the seconds of a call."""
        return run([*self.prefix, *arguments]).seconds

    def answers(self) -> bool:
        """Tell whether the worker takes calls."""
        shown = subprocess.run([*self.prefix, "warm", "status", "--json"], capture_output=True, text=True, check=True)
        return any(json.loads(line)["pid"] for line in shown.stdout.splitlines())

    def close(self) -> None:
        subprocess.run([*self.prefix, "warm", "stop"], check=True, capture_output=True)
        self.folder.cleanup()


def warm_call() -> Pair:
    warm, calls = Warm(*APPLE), Worker("sticker_calls")

    def close() -> None:
        warm.close()
        calls.close()

    return Pair(
        '`ddgen sample "a red apple"`, a later call beside `--keep-alive`',
        lambda: warm(*APPLE),
        "its network calls alone",
        calls,
        target=0.4,
        compare="difference",
        close=close,
    )


def warm_plan() -> Pair:
    """What a user without a worker pays for there being such a thing: nothing that can be seen."""
    with_look = [DDGEN, *APPLE, "--plan"]
    return Pair(
        "`ddgen sample ... --plan`, no worker there",
        lambda: run(with_look).seconds,
        "the same with `--keep-alive 0`, which does not look",
        lambda: run([*with_look, "--keep-alive", "0"]).seconds,
        target=1.05,
    )


def warm_load() -> Pair:
    folder = tempfile.TemporaryDirectory()
    path = f"{folder.name}/sd15.safetensors"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import bench.warmth as w; w.write_checkpoint({path!r})"
    run([PYTHON, "-c", code])
    call = ["sample", "a red apple", "--model", path, *SMALL]
    warm = Warm(*call)

    def close() -> None:
        warm.close()
        folder.cleanup()

    return Pair(
        "one step of an SD1.5-sized model at 64 x 64, a later call beside `--keep-alive`",
        lambda: warm(*call),
        "the same, cold",
        lambda: run([DDGEN, *call, "--keep-alive", "0"]).seconds,
        target=0.25,
        close=close,
    )


def write_checkpoint(path: str | os.PathLike[str], family: str = "SD15") -> None:
    """Write a whole checkpoint of a family with random weights, in float16 under LDM names."""
    import torch

    from ddgen.app.assemble import part_modules
    from ddgen.weights.arch import FAMILIES
    from ddgen.weights.checkpoint import write_file

    prefixes = {
        "unet": "model.diffusion_model.",
        "first_stage": "first_stage_model.",
        "text.0": "cond_stage_model.transformer.text_model.",
    }
    with torch.device("meta"):
        parts = part_modules(FAMILIES[family])
    shapes = {
        prefixes[part] + name: tuple(value.shape)
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    generator = torch.Generator().manual_seed(0)

    def produce(name: str) -> torch.Tensor:
        shape = shapes[name]
        if len(shape) < 2:
            return torch.ones(shape, dtype=torch.float16)
        reach = (3 / (torch.Size(shape).numel() / shape[0])) ** 0.5  # keeps activations near unit size
        return torch.empty(shape).uniform_(-reach, reach, generator=generator).to(torch.float16)

    write_file(Path(path), {name: (torch.float16, shape) for name, shape in shapes.items()}, produce, {})


ROWS: dict[str, Callable[[], Pair]] = {
    "warm-call": warm_call,
    "warm-plan": warm_plan,
    "warm-load": warm_load,
}
LONG = ("warm-load",)
