"""Less arithmetic against fewer steps: how much quicker each is, and how far its pictures are from the exact.

    python -m bench.fast [--prompts N] [--save]

Draws the same jobs with the embedded model in every way, and says for each its time beside the exact way's
(processor seconds), PSNR and SSIM to the exact pictures, and the PSNR that fewer steps would reach in the
same time. A way that does not lie above that curve is not worth a switch.

    steps K           the plain sampler with K steps
    interval A:B      guidance only in that part of the steps (--guidance-interval)
    reuse N, keep B   the deep part of the U-Net is computed every N steps only; B blocks at both ends always.
                      Ref: Ma et al. 2023 (DeepCache), arXiv 2312.00858, section 3.2.
"""

import argparse
import copy
import datetime
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "fast"
STEPS = (20, 16, 13, 10, 8, 6, 5)
INTERVALS = ((0.0, 0.8), (0.0, 0.6), (0.1, 0.7), (0.0, 0.4))
REUSES = ((2, 1), (2, 2), (3, 1), (3, 2), (5, 2))
SEED = 11


@dataclass(frozen=True)
class Way:
    """A way to draw, as measured. seconds: beside the exact way's, the median over the pictures."""

    name: str
    seconds: float
    psnr: float
    ssim: float


def reusing(network: Any, every: int, keep: int) -> Callable[..., Tensor]:
    """Return the network with its deep part computed at every `every`-th call only; make one for each picture."""
    from ddgen.nets.layers import position_channels
    from ddgen.nets.unet import run_parts

    kept: list[Tensor] = []
    calls = 0

    def forward(x: Tensor, time_: Tensor, context: Tensor, vector: Tensor | None = None) -> Tensor:
        nonlocal calls
        fresh = calls % every == 0 or kept[0].shape[0] != x.shape[0]
        calls += 1
        embedding = network._embed(time_, vector, None, x.dtype)
        if network.config.position_channels:
            grid = position_channels(*x.shape[-2:], device=x.device, dtype=x.dtype)
            x = torch.cat([x, grid.expand(x.shape[0], -1, -1, -1)], dim=1)
        skips = []
        for parts in network.input_blocks if fresh else network.input_blocks[:keep]:
            x = run_parts(parts, x, embedding, context)
            skips.append(x)
        blocks = list(network.output_blocks)
        if fresh:
            x = run_parts(network.middle_block, x, embedding, context)
        else:
            x, blocks = kept[0], blocks[-keep:]
        for left, parts in zip(range(len(blocks), 0, -1), blocks, strict=True):
            if fresh and left == keep:
                kept[:] = [x]
            x = torch.cat([x, skips.pop()], dim=1)
            x = run_parts(parts, x, embedding, context, size=skips[-1].shape[-2:] if skips else None)
        return network.out(x)

    return forward


def drawn(pipeline: Any, jobs: Iterable[Any]) -> tuple[list[NDArray[np.uint8]], list[float]]:
    """Return the pictures and the processor seconds of each."""
    from ddgen.app.pipeline import run

    pictures, seconds = [], []
    for job in jobs:
        start = time.process_time()
        pictures += run(pipeline, [job])
        seconds.append(time.process_time() - start)
    return pictures, seconds


def drawn_reusing(pipeline: Any, jobs: Iterable[Any], every: int, keep: int) -> Any:
    network = pipeline.denoiser.network
    pictures, seconds = [], []
    for job in jobs:
        other = copy.copy(pipeline)
        other.denoiser = copy.copy(pipeline.denoiser)
        other.denoiser.network = reusing(network, every, keep)
        made, took = drawn(other, [job])
        pictures += made
        seconds += took
    return pictures, seconds


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return 10 log10(255^2 / mean square difference), at most 99."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 99.0 if error == 0 else min(99.0, 10 * np.log10(255**2 / error))


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8], window: int = 8) -> float:
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fast")
    parser.add_argument("--prompts", type=int, default=8, help="how many of the model's subjects (8)")
    parser.add_argument("--save", action="store_true", help="write bench/results/fast/DATE.json")
    arguments = parser.parse_args()
    from ddgen.app.pipeline import Pipeline
    from ddgen.app.plan import plan
    from ddgen.request import Request

    words = ("a red apple", "a penguin", "a tulip", "a car", "a house", "a fox", "the moon", "a rocket")
    pipeline = Pipeline.load()
    prompts = words[: arguments.prompts]
    jobs = list(plan(Request(prompts=prompts, seed=SEED), pipeline.spec))
    drawn(pipeline, jobs[:1])
    exact, base = drawn(pipeline, jobs)

    def way(name: str, made: tuple[list[NDArray[np.uint8]], list[float]]) -> Way:
        pictures, seconds = made
        return Way(
            name,
            median(a / b for a, b in zip(seconds, base, strict=True)),
            median(psnr(a, b) for a, b in zip(pictures, exact, strict=True)),
            median(ssim(a, b) for a, b in zip(pictures, exact, strict=True)),
        )

    fewer = [
        way(f"steps {count}", drawn(pipeline, [replace(job, steps=count) for job in jobs])) for count in STEPS
    ]
    others = [
        way(f"interval {a:g}:{b:g}", drawn(pipeline, [replace(job, guidance_interval=(a, b)) for job in jobs]))
        for a, b in INTERVALS
    ] + [
        way(f"reuse {every}, keep {keep}", drawn_reusing(pipeline, jobs, every, keep))
        for every, keep in REUSES
    ]
    print(f"{'way':18}{'time':>7}{'PSNR':>8}{'SSIM':>8}{'fewer steps in that time':>27}")
    for found in fewer + others:
        beside = "" if found in fewer else f"{curve_at(fewer, found.seconds):.1f} dB"
        print(f"{found.name:18}{found.seconds:6.2f}x{found.psnr:8.1f}{found.ssim:8.3f}{beside:>27}")
    if arguments.save:
        from bench.machine import describe

        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.json"
        record = {"machine": describe(), "prompts": prompts, "ways": [asdict(way) for way in fewer + others]}
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
