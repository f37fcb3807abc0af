"""Put on PYTHONPATH, this gives `ddgen` a pipeline that draws noise from the job, at once and without torch.

FAKE_DELAY: seconds a step. FAKE_FAIL: "memory", "nan" or "bug". FAKE_NOISE: it prints. FAKE_LOG: a file that
gets a line when the model loads.
"""

import hashlib
import os
import sys
import time
import types


class Device:
    """Stands for torch.device."""

    type = "cpu"

    def __str__(self) -> str:
        return self.type


class Loaded:
    """Stands for app.pipeline.Pipeline."""

    def __init__(self, spec) -> None:
        self.spec = spec
        self.digests = {"model": "ab" * 32}
        self.device = Device()
        self.denoiser = types.SimpleNamespace(dtype=None)
        self.first_stage = None
        self.notes: list[str] = []


class OutOfMemoryError(RuntimeError):
    """Stands for torch.OutOfMemoryError."""


def assemble(spec, *, device="auto", dtype="auto", text_backend="native", offload="auto"):
    if os.environ.get("FAKE_LOG"):
        with open(os.environ["FAKE_LOG"], "a") as log:
            log.write(f"loaded {spec.name} {device} {dtype} {text_backend}\n")
    return Loaded(spec)


def run(pipeline, jobs, on_step=None, source=None):
    import numpy as np

    from ddgen.errors import NumericsError
    from ddgen.io.images import enlarge

    fail = os.environ.get("FAKE_FAIL")
    if fail == "memory":
        raise OutOfMemoryError("CUDA out of memory")
    if fail == "nan":
        raise NumericsError(f"seed {jobs[0].seed}: non-finite values", "run with --dtype float32")
    if fail == "bug":
        raise KeyError("oops")
    if os.environ.get("FAKE_NOISE"):
        os.write(1, b"a library talks\n")
        print("and again")
    for step in range(jobs[0].steps):
        time.sleep(float(os.environ.get("FAKE_DELAY", "0")))
        if on_step is not None:
            on_step(types.SimpleNamespace(index=step), jobs[0].steps)
    pictures = []
    for job in jobs:
        draw = np.random.default_rng(
            int(hashlib.sha256(f"{job.seed}{job.prompt}".encode()).hexdigest()[:12], 16)
        )
        pixels = draw.integers(0, 256, (job.height, job.width, 3), dtype=np.uint8)
        pictures.append(enlarge(pixels, job.scale))
    return pictures


for name, members in {"assemble": {"assemble": assemble}, "pipeline": {"run": run}}.items():
    module = types.ModuleType(f"ddgen.app.{name}")
    module.__dict__.update(members)
    sys.modules[f"ddgen.app.{name}"] = module
