"""The rows of the benchmark: what is measured against what, and the target where there is one.

A row is a function that prepares both sides and returns a Pair; rows that take many minutes are in LONG and
run only when named or with --all. What a row needs and does not find makes it Absent.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from bench import batches, seeing, training, warmth, whole, without
from bench.measure import ROOT, Absent, Pair, Worker, run

PYTHON = sys.executable
NETWORKS = "bench.networks:"
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
        target=1.25,
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
        target=1 / 3,
        close=folder.cleanup,
        repeats=3,
    )


def warm() -> Pair:
    return workers("the same, warm", ["sticker_sample"], "its network calls alone", ["sticker_calls"])


def memory() -> Pair:
    return Pair(
        "the same, cold: peak memory",
        lambda: run(SAMPLE).megabytes,
        "`import torch`",
        lambda: run([PYTHON, "-c", "import torch"]).megabytes,
        unit="MB",
        target=250.0,
        compare="difference",
        repeats=3,
    )


def upscale_memory() -> Pair:
    """Eight times as wide and high has 16 times the pixels of twice; only their bytes and latents grow."""
    folder = tempfile.TemporaryDirectory()
    picture = f"{folder.name}/p.png"
    run([*SAMPLE[:-1], picture])

    def peak(by: str) -> float:
        flags = ["--by", by, "--steps", "1", "--guidance", "1", "--seed", "1", "-o", "u.png"]
        return run([SAMPLE[0], "upscale", picture, "a red apple", *flags]).megabytes

    return Pair(
        "`ddgen upscale` of 128 x 128 by 8: peak memory",
        lambda: peak("8"),
        "the same by 2",
        lambda: peak("2"),
        unit="MB",
        target=30.0,
        compare="difference",
        close=folder.cleanup,
        repeats=1,
        warmups=0,
    )


def workers(
    what: str,
    ours: list[str],
    peer_name: str,
    peer: list[str],
    *,
    target: float | None = None,
    limit: str | None = None,
    repeats: int = 7,
    warmups: int = 1,
) -> Pair:
    """A Pair of two warm processes. limit: the device whose matrix product is the limit."""
    started: list[Worker] = []

    def start(name: str, *arguments: str) -> Worker:
        started.append(Worker(name, *arguments))
        return started[-1]

    def close() -> None:
        for worker in started:
            worker.close()

    try:
        one, other = start(*ours), start(*peer)
        bare = None if limit is None else start(NETWORKS + "gemm", limit)
    except BaseException:
        close()
        raise

    def needed() -> float:
        assert bare is not None and bare.work and one.work
        return min(bare() for _ in range(3)) * one.work / bare.work

    return Pair(
        what, one, peer_name, other, target=target, close=close, repeats=repeats, warmups=warmups,
        limit=None if bare is None else needed,
    )  # fmt: skip


SIZES = {"SD15": "SD1.5 shape", "SDXL": "SDXL shape"}


def step(family: str, side: int, batch: int, *, repeats: int = 3, warmups: int = 1) -> Pair:
    """A guided step on the processor. side: latent cells."""
    given = [family, str(side), str(batch)]
    several = f", batch {batch}" if batch > 1 else ""
    return workers(
        f"one guided step, {SIZES[family]}, {8 * side} x {8 * side}{several}",
        [NETWORKS + "step_ours", *given],
        "diffusers, eager",
        [NETWORKS + "step_diffusers", *given],
        target=1.0,
        limit="cpu",
        repeats=repeats,
        warmups=warmups,
    )


def step_bf16() -> Pair:
    from ddgen.app.assemble import cpu_has_bf16

    if not cpu_has_bf16():
        raise Absent("a processor that multiplies bfloat16")
    given = ["SD15", "64", "1", "cpu/bfloat16"]
    return workers(
        "one guided step, SD1.5 shape, 512 x 512, bfloat16",
        [NETWORKS + "step_ours", *given],
        "diffusers, eager",
        [NETWORKS + "step_diffusers", *given],
        target=1.0,
        limit=given[-1],
        repeats=3,
    )


def step_compiled() -> Pair:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise Absent("torch.compile needs a C++ compiler")
    given = ["SD15", "64", "1"]
    return workers(
        "one guided step, SD1.5 shape, 512 x 512",
        [NETWORKS + "step_ours", *given],
        "diffusers, torch.compile",
        [NETWORKS + "step_diffusers", *given, "cpu", "compiled"],
        limit="cpu",
        repeats=3,
    )


def step_openvino() -> Pair:
    if find_spec("openvino") is None:
        raise Absent("pip install openvino")
    given = ["SD15", "64", "1"]
    return workers(
        "one guided step, SD1.5 shape, 512 x 512",
        [NETWORKS + "step_ours", *given],
        "OpenVINO, float32",
        [NETWORKS + "step_openvino", *given],
        limit="cpu",
        repeats=3,
    )


def step_gpu(family: str, side: int, batch: int, how: str) -> Pair:
    """A guided step in bfloat16 on a GPU."""
    if shutil.which("nvidia-smi") is None:
        raise Absent("no GPU at hand")
    given = [family, str(side), str(batch), "cuda"]
    words = {"eager": "diffusers, eager", "compiled": "diffusers, torch.compile"}
    return workers(
        f"GPU: one guided step, {SIZES[family]}, {8 * side} x {8 * side}, batch {batch}",
        [NETWORKS + "step_ours", *given],
        words[how],
        [NETWORKS + "step_diffusers", *given, how],
        target={"eager": 1 / 1.2, "compiled": 1.0}[how],
        limit="cuda",
        repeats=30,
        warmups=5,
    )


def vae(what: str, words: str, tile: int = 0, *, repeats: int = 2, warmups: int = 1) -> Pair:
    given = [what, "64", str(tile)]
    return workers(
        words, [NETWORKS + "vae_ours", *given], "diffusers, eager", [NETWORKS + "vae_diffusers", *given], target=1.0,
        limit="cpu", repeats=repeats, warmups=warmups,
    )  # fmt: skip


LOADS = {"SD15": "float32", "SDXL": "float16"}
LOADER = "safetensors `load_file` and `.to(dtype, copy=True)`: tensors alone"


def written(family: str) -> tuple[tempfile.TemporaryDirectory[str], list[str]]:
    """Write a U-Net's file; return its folder, and the arguments of networks.load behind `how`."""
    folder = tempfile.TemporaryDirectory()
    path = f"{folder.name}/unet.safetensors"
    run([PYTHON, "-c", f"from bench.networks import write_unet; write_unet('{family}', '{path}')"], **HERE)
    return folder, [family, path, LOADS[family]]


HERE = {"PYTHONPATH": str(ROOT)}


def load(family: str) -> Pair:
    """The first load of a process, as a command does it: later ones find memory that is already theirs."""
    folder, given = written(family)

    def first(how: str) -> float:
        worker = Worker(NETWORKS + "load", how, *given)
        try:
            return worker()
        finally:
            worker.close()

    return Pair(
        f"load a U-Net of {SIZES[family]} in {LOADS[family]} from a float16 file, ready to run",
        lambda: first("ours"),
        LOADER,
        lambda: first("safetensors"),
        target=1.3,
        close=folder.cleanup,
        repeats=5,
    )


def load_memory(family: str) -> Pair:
    folder, given = written(family)

    def peak(how: str) -> float:
        words = ", ".join(repr(word) for word in [how, *given])
        code = f"from bench.networks import load; kept = load({words})()"
        return run([PYTHON, "-c", code], **HERE).megabytes

    return Pair(
        f"the same, {SIZES[family]}: peak memory",
        lambda: peak("ours"),
        LOADER,
        lambda: peak("safetensors"),
        unit="MB",
        close=folder.cleanup,
        repeats=1,
        warmups=0,
    )


ROWS: dict[str, Callable[[], Pair]] = {
    "help": help_page,
    "plan": plan,
    "cold": cold,
    "cold-script": cold_script,
    "warm": warm,
    "memory": memory,
    "upscale-memory": upscale_memory,
    "load": partial(load, "SD15"),
    "load-memory": partial(load_memory, "SD15"),
    "load-xl": partial(load, "SDXL"),
    "load-xl-memory": partial(load_memory, "SDXL"),
    "step": partial(step, "SD15", 64, 1),
    "step-4": partial(step, "SD15", 64, 4, repeats=1, warmups=0),
    "step-8": partial(step, "SD15", 64, 8, repeats=1, warmups=0),
    "step-1024": partial(step, "SD15", 128, 1, repeats=1, warmups=0),
    "step-xl": partial(step, "SDXL", 128, 1, repeats=1, warmups=0),
    "step-bf16": step_bf16,
    "step-compiled": step_compiled,
    "step-openvino": step_openvino,
    "decode": partial(vae, "decode", "VAE decode, 512 x 512"),
    "decode-tiled": partial(vae, "decode", "VAE decode, 512 x 512, tiles of 256", 32, repeats=1),
    "encode": partial(vae, "encode", "VAE encode, 512 x 512"),
    "encode-tiled": partial(vae, "encode", "VAE encode, 512 x 512, tiles of 256", 32, repeats=1),
    **without.ROWS,
    **warmth.ROWS,
    **whole.ROWS,
    **batches.ROWS,
    **training.ROWS,
    **seeing.ROWS,
    **{
        f"gpu-{family.lower()}-{batch}-{how}": partial(step_gpu, family, side, batch, how)
        for family, side in (("SD15", 64), ("SDXL", 128))
        for batch in (1, 4, 8)
        for how in ("eager", "compiled")
    },
}
LONG = (
    "upscale-memory", "load-xl", "load-xl-memory", "step-8", "step-bf16", "step-1024", "step-xl", "step-compiled", "step-openvino",
    "decode-tiled", "encode-tiled",
    *warmth.LONG, *whole.LONG, *batches.LONG, *training.ROWS, *seeing.ROWS, *without.ROWS,
)  # fmt: skip
