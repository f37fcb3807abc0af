"""The rows of the benchmark: what is measured against what, and the target where there is one.

A row is a function that prepares both sides and returns a Pair; rows that take minutes are in LONG and run
only when named or with --all.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import batches, seeing, training, warmth
from bench.measure import Pair, Worker, run

PYTHON = sys.executable
DDGEN = str(Path(sys.executable).with_name("ddgen"))
SAMPLE = [DDGEN, "sample", "a red apple", "--seed", "7", "-o", "apple.png"]
PEER = Path(__file__).parent / "peers" / "diffusers_sample.py"


def help_page() -> Pair:
    return Pair(
        "`ddgen --help`",
        lambda: run([DDGEN, "--help"]).seconds,
        '`python -c "import typer, rich"`',
        lambda: run([PYTHON, "-c", "import typer, rich"]).seconds,
        target=2.0,
    )


def plan() -> Pair:
    return Pair(
        "`ddgen sample ... --plan`",
        lambda: run([*SAMPLE, "--plan"]).seconds,
        '`python -c "import typer, rich"`',
        lambda: run([PYTHON, "-c", "import typer, rich"]).seconds,
        target=3.0,
    )


def cold() -> Pair:
    calls = Worker("sticker_calls")
    return Pair(
        '`ddgen sample "a red apple"`, cold, to the PNG',
        lambda: run(SAMPLE).seconds,
        "`import torch` + the same network calls, warm",
        lambda: run([PYTHON, "-c", "import torch"]).seconds + calls(),
        target=1.5,
        close=calls.close,
    )


def cold_script() -> Pair:
    folder = tempfile.TemporaryDirectory()
    run([DDGEN, "models", "convert", "sticker", f"{folder.name}/sticker"])
    script = [PYTHON, str(PEER), f"{folder.name}/sticker", "a red apple", "apple.png"]
    return Pair(
        "the same, cold",
        lambda: run(SAMPLE).seconds,
        "a diffusers script, the same model and calls",
        lambda: run(script).seconds,
        close=folder.cleanup,
    )


def warm() -> Pair:
    sample, calls = Worker("sticker_sample"), Worker("sticker_calls")

    def close() -> None:
        sample.close()
        calls.close()

    return Pair("the same, warm", sample, "its network calls alone", calls, close=close)


def memory() -> Pair:
    return Pair(
        "the same, cold: peak memory",
        lambda: run(SAMPLE).megabytes,
        "`import torch`",
        lambda: run([PYTHON, "-c", "import torch"]).megabytes,
        unit="MB",
        target=250.0,
        compare="difference",
    )


def workers(
    what: str, ours: str, peer_name: str, peer: str, *arguments: str, target: float | None = None
) -> Pair:
    """A Pair of two warm processes."""
    one, other = Worker(ours, *arguments), Worker(peer, *arguments)

    def close() -> None:
        one.close()
        other.close()

    return Pair(what, one, peer_name, other, target=target, close=close)


def step() -> Pair:
    what = "one guided step, SD1.5 shape, 512 x 512"
    return workers(what, "step_ours", "diffusers, eager", "step_diffusers", target=1.0)


def decode() -> Pair:
    what = "VAE decode, 512 x 512"
    return workers(what, "decode_ours", "diffusers, eager", "decode_diffusers", target=1.0)


def load() -> Pair:
    folder = tempfile.TemporaryDirectory()
    path = f"{folder.name}/unet.safetensors"
    run([PYTHON, "-c", f"import sys; sys.path.insert(0, {str(PEER.parents[2])!r}); "
         f"import bench.workers as w; w.write_unet({path!r})"])  # fmt: skip
    pair = workers(
        "load an SD1.5 U-Net, fp16 file",
        "load_ours",
        "safetensors load_file + .float()",
        "load_safetensors",
        path,
    )

    def close() -> None:
        pair.close()
        folder.cleanup()

    return Pair(pair.what, pair.ours, pair.peer_name, pair.peer, close=close)


ROWS: dict[str, Callable[[], Pair]] = {
    "help": help_page,
    "plan": plan,
    "cold": cold,
    "cold-script": cold_script,
    "warm": warm,
    "memory": memory,
    "step": step,
    "decode": decode,
    "load": load,
    **warmth.ROWS,
    **batches.ROWS,
    **training.ROWS,
    **seeing.ROWS,
}
LONG = ("step", "decode", "load", *warmth.LONG, *batches.ROWS, *training.ROWS, *seeing.ROWS)
