"""Less arithmetic against fewer steps: how much quicker each is, and how far its pictures are from the exact.

    python -m bench.fast [--prompts N] [--shape SD15 [--side 64]] [--save]

Draws the same jobs with the embedded model in every way, and says for each its time beside the exact way's
(processor seconds), PSNR and SSIM to the exact pictures, the cosine of both pictures' vectors by the embedded
image tower (CLIP), and the PSNR that fewer steps would reach in the same time. A way that does not lie above
that curve is not worth a switch.

    steps K           the plain sampler with K steps
    interval A:B      guidance only in that part of the steps (--guidance-interval)
    reuse N, keep B   the deep part of the U-Net is computed every N steps only; B blocks at both ends always
                      (bench/reusing.py)
    int8              the U-Net's linear layers in 8 bits (bench/int8.py)
    merge R           self-attention over fewer tokens (bench/merging.py)

The embedded model is small, and what is gained hangs on shape: with --shape, the last three also take guided
steps of a published shape with random weights, in turn with the exact one.
"""

import argparse
import datetime
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench import networks
from bench.int8 import int8
from bench.merging import merging
from bench.reusing import reusing

if TYPE_CHECKING:
    from ddgen.app.scoring import Scorer
    from ddgen.request import Job

RESULTS = Path(__file__).parent / "results" / "fast"
SUBJECTS = ("a red apple", "a penguin", "a tulip", "a car", "a house", "a fox", "the moon", "a rocket")
STEPS = (20, 16, 13, 10, 8, 6, 5)
INTERVALS = ((0.0, 0.8), (0.0, 0.6), (0.1, 0.7), (0.0, 0.4))
REUSES = ((2, 1), (2, 2), (3, 1), (3, 2), (5, 2))
RATIOS = (0.25, 0.5)
SEED = 11
TURNS = 2  # of a step of a published shape, exact and not

Pixels = NDArray[np.uint8]
Drawn = tuple[list[Pixels], list[float]]
Change = Callable[[Any], AbstractContextManager[None]]
"""What is done to a U-Net while it makes one picture."""


@dataclass(frozen=True)
class Way:
    """A way to draw, as measured. seconds: beside the exact way's. All are medians over the pictures."""

    name: str
    seconds: float
    psnr: float
    ssim: float
    clip: float


@dataclass(frozen=True)
class Step:
    """Processor seconds of a guided step, and of the exact ones taken in turn with it: means."""

    name: str
    seconds: float
    exact: float


def changes() -> dict[str, tuple[Change, int]]:
    """Return what each way does to a U-Net, and the steps after which it does the same again."""
    found: dict[str, tuple[Change, int]] = {
        f"reuse {every}, keep {keep}": (partial(reusing, every=every, keep=keep), every) for every, keep in REUSES
    }
    found["int8"] = int8, 1
    return found | {f"merge {ratio:g}": (partial(merging, ratio=ratio), 1) for ratio in RATIOS}


def drawn(pipeline: Any, jobs: "Iterable[Job]", change: Change = nullcontext) -> Drawn:
    """Return the pictures and the processor seconds of each, without those of the change."""
    from ddgen.app.pipeline import run

    pictures, seconds = [], []
    for job in jobs:
        with change(pipeline.denoiser.network):
            start = time.process_time()
            pictures += run(pipeline, [job])
            seconds.append(time.process_time() - start)
    return pictures, seconds


def judged(name: str, made: Drawn, exact: Drawn, scorer: "Scorer") -> Way:
    """Return how the pictures of a way and their times compare with the exact ones."""
    pairs = list(zip(made[0], exact[0], strict=True))
    vectors, others = scorer.pictures(made[0]), scorer.pictures(exact[0])
    return Way(
        name,
        median(a / b for a, b in zip(made[1], exact[1], strict=True)),
        median(psnr(a, b) for a, b in pairs),
        median(ssim(a, b) for a, b in pairs),
        median((vectors * others).sum(-1).tolist()),
    )


def psnr(a: Pixels, b: Pixels) -> float:
    """Return 10 log10(255^2 / mean square difference), at most 99."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 99.0 if error == 0 else min(99.0, float(10 * np.log10(255**2 / error)))


def ssim(a: Pixels, b: Pixels, window: int = 8) -> float:
    """Return the mean structural similarity of grey values in windows. Ref: Wang et al. 2004, eq. 13."""
    first, second = (torch.tensor(x.astype(np.float64).mean(-1))[None, None] for x in (a, b))

    def mean(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, window, stride=1)

    m1, m2 = mean(first), mean(second)
    v1, v2, both = mean(first**2) - m1**2, mean(second**2) - m2**2, mean(first * second) - m1 * m2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(((2 * m1 * m2 + c1) * (2 * both + c2) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2))).mean())


def curve_at(fewer: list[Way], seconds: float) -> float:
    """Return the PSNR that fewer steps reach in a time: between the neighbours in a straight line."""
    points = sorted((way.seconds, way.psnr) for way in fewer)
    return float(np.interp(seconds, [s for s, _ in points], [p for _, p in points]))


def steps_of(family: str, side: int) -> Iterator[Step]:
    """Yield what a guided step of a published shape takes in each way that changes the network. side: latent cells."""
    from ddgen.diffusion.guidance import guided
    from ddgen.nets.attention import remembering

    place, dtype = networks.place_of("cpu")
    network = networks.random_unet(family, place, dtype)
    given = networks.told(family, side, 1, place, dtype)
    denoiser, cond, uncond = networks.bound(network, given, dtype)
    denoise = guided(denoiser, cond, uncond, scale=networks.SCALE)

    def seconds(count: int) -> float:
        start = time.process_time()
        for _ in range(count):
            denoise(given["x"], networks.SIGMA)
        return (time.process_time() - start) / count

    with torch.inference_mode(), remembering([network]):
        seconds(1)
        for name, (change, cycle) in changes().items():
            exact, own = [], []
            for _ in range(TURNS):
                exact.append(seconds(1))
                with change(network):
                    own.append(seconds(cycle))
            yield Step(name, mean(own), mean(exact))


def ways(pipeline: Any, prompts: Sequence[str]) -> tuple[list[Way], list[Way]]:
    """Return fewer steps, and all others, as measured."""
    from ddgen.app import scoring
    from ddgen.app.plan import plan
    from ddgen.request import Request

    jobs = list(plan(Request(prompts=tuple(prompts), seed=SEED), pipeline.spec))
    drawn(pipeline, jobs[:1])
    judge = partial(judged, exact=drawn(pipeline, jobs), scorer=scoring.embedded())
    fewer = [judge(f"steps {n}", drawn(pipeline, [replace(job, steps=n) for job in jobs])) for n in STEPS]
    others = [
        judge(f"interval {a:g}:{b:g}", drawn(pipeline, [replace(job, guidance_interval=(a, b)) for job in jobs]))
        for a, b in INTERVALS
    ]
    others += [judge(name, drawn(pipeline, jobs, change)) for name, (change, _) in changes().items()]
    return fewer, others


def main() -> None:
    from ddgen.app.pipeline import Pipeline
    from ddgen.weights.arch import FAMILIES

    plain = [name for name, arch in FAMILIES.items() if arch.unet.in_channels == arch.unet.out_channels]
    parser = argparse.ArgumentParser(prog="python -m bench.fast")
    counts = range(1, len(SUBJECTS) + 1)
    told = "how many of the model's subjects (8)"
    parser.add_argument("--prompts", type=int, default=len(SUBJECTS), choices=counts, metavar="N", help=told)
    parser.add_argument("--shape", choices=plain, help="also take steps of this shape, random weights")
    parser.add_argument("--side", type=int, default=64, metavar="N", help="latent cells of its pictures (64)")
    parser.add_argument("--save", action="store_true", help="write bench/results/fast/DATE.json")
    arguments = parser.parse_args()
    if arguments.side < 1:
        parser.error("--side must be at least 1")

    prompts = SUBJECTS[: arguments.prompts]
    fewer, others = ways(Pipeline.load(), prompts)
    print(f"{'way':18}{'time':>7}{'PSNR':>8}{'SSIM':>8}{'CLIP':>8}{'fewer steps in that time':>27}")
    for found in fewer + others:
        beside = "" if found in fewer else f"{curve_at(fewer, found.seconds):.1f} dB"
        figures = f"{found.seconds:6.2f}x{found.psnr:8.1f}{found.ssim:8.3f}{found.clip:8.3f}"
        print(f"{found.name:18}{figures}{beside:>27}")
    record: dict[str, Any] = {"prompts": prompts, "ways": [asdict(way) for way in fewer + others]}
    if arguments.shape:
        print(f"\n{f'a step, {arguments.shape}, {arguments.side} cells':25}{'seconds':>9}{'exact':>9}{'ratio':>8}")
        steps = []
        for step in steps_of(arguments.shape, arguments.side):
            print(f"{step.name:25}{step.seconds:9.3f}{step.exact:9.3f}{step.seconds / step.exact:7.2f}x", flush=True)
            steps.append(asdict(step))
        record["shape"] = {"family": arguments.shape, "side": arguments.side, "steps": steps}
    if arguments.save:
        from bench.machine import describe

        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.json"
        path.write_text(json.dumps({"machine": describe(), **record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
