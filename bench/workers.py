"""The calls that are timed inside a warm process; each function prepares one and returns it.

    python -m bench.workers NAME [ARGUMENT...]          NAME: a function here, or MODULE:FUNCTION

prints the operations of a call (or null) when it is prepared, then, for every line on standard input, runs
the call and prints its seconds.
"""

import importlib
import json
import sys
import time
from typing import Any

import torch

from bench.networks import Call


def sticker_calls() -> Call:
    """The network calls of one default sample of the embedded model, both branches in a batch, and nothing
    else."""
    from ddgen.app.pipeline import Pipeline

    pipeline = Pipeline.load()
    network, arch, defaults = pipeline.denoiser.network, pipeline.spec.arch, pipeline.spec.defaults
    stage = arch.first_stage
    x = torch.randn(2, stage.channels, defaults.height // stage.factor, defaults.width // stage.factor)
    cond = pipeline.text.encode(["a red apple", ""])
    time_ = torch.full((2,), 500.0)
    return lambda: [network(x, time_, cond.context, cond.vector) for _ in range(defaults.steps)]


def sticker_sample() -> Call:
    """One default sample from a loaded pipeline, to a picture in memory."""
    from ddgen.app.pipeline import Pipeline, generate
    from ddgen.request import Request

    pipeline = Pipeline.load()
    return lambda: generate(pipeline, Request(prompts=("a red apple",), seed=7))


def batch_of_eight() -> Call:
    """Eight prompts through a loaded pipeline in one tensor batch."""
    jobs, pipeline = _eight_jobs()
    from ddgen.app.pipeline import run

    return lambda: run(pipeline, jobs)


def loop_of_eight() -> Call:
    """The same eight prompts one after the other."""
    jobs, pipeline = _eight_jobs()
    from ddgen.app.pipeline import run

    return lambda: [run(pipeline, [job]) for job in jobs]


def _eight_jobs() -> tuple[list[Any], Any]:
    from ddgen.app.pipeline import Pipeline
    from ddgen.app.plan import plan
    from ddgen.request import Request

    pipeline = Pipeline.load()
    prompts = tuple(f"a red apple number {index}" for index in range(8))
    return list(plan(Request(prompts=prompts, seed=7), pipeline.spec)), pipeline


def main(name: str, *arguments: str) -> None:
    module, _, function = name.rpartition(":")
    prepare: Any = getattr(importlib.import_module(module), function) if module else globals()[name]
    with torch.inference_mode():
        prepared = prepare(*arguments)
        call, work = prepared if isinstance(prepared, tuple) else (prepared, None)
        print(json.dumps(work), flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            kept = call()
            seconds = time.perf_counter() - start
            del kept
            print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
