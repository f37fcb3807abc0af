"""Rows about batches: against one process a picture, against a warm loop, ten thousand jobs planned or found
done, what a job costs as they grow in number, memory, Ray.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.measure import ROOT, Pair, Ran, Worker, run

PYTHON = sys.executable
DDGEN = str(Path(sys.executable).with_name("ddgen"))
PICTURES = 40


def prompts(folder: str, count: int) -> str:
    path = Path(folder) / f"{count}.txt"
    path.write_text("".join(f"a red apple number {index}\n" for index in range(count)))
    return str(path)


def against_processes() -> Pair:
    folder = tempfile.TemporaryDirectory()
    batch = [DDGEN, "batch", prompts(folder.name, PICTURES), "-o", "out", "-q"]
    single = [DDGEN, "sample", "a red apple", "-q"]
    return Pair(
        f"`ddgen batch` of {PICTURES} prompts",
        lambda: run(batch).seconds,
        "one `ddgen sample` process each (one timed)",
        lambda: PICTURES * run(single).seconds,
        target=0.25,
        close=folder.cleanup,
        repeats=2,
        warmups=0,
    )


def against_loop() -> Pair:
    one, other = Worker("batch_of_eight"), Worker("loop_of_eight")

    def close() -> None:
        one.close()
        other.close()

    return Pair(
        "eight prompts in one warm batch",
        one,
        "a warm loop of single pictures",
        other,
        target=1 / 1.2,
        close=close,
        repeats=3,
    )


def plan_ten_thousand() -> Pair:
    folder = tempfile.TemporaryDirectory()
    command = [DDGEN, "batch", prompts(folder.name, 10_000), "-o", "out", "--plan", "-q"]
    return Pair(
        "`ddgen batch --plan` of 10,000 lines",
        lambda: run(command).seconds,
        '`python -c ""`',
        lambda: run([PYTHON, "-c", ""]).seconds,
        target=2.0,
        compare="difference",
        close=folder.cleanup,
        repeats=3,
    )


def find_ten_thousand_done() -> Pair:
    folder = tempfile.TemporaryDirectory()
    file, out = prompts(folder.name, 10_000), f"{folder.name}/out"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import bench.batches as b; b.fill({file!r}, {out!r})"
    )
    run([PYTHON, "-c", code])
    return Pair(
        "`ddgen batch` of 10,000 finished jobs",
        lambda: run([DDGEN, "batch", file, "-o", out, "-q"]).seconds,
        '`python -c ""`',
        lambda: run([PYTHON, "-c", ""]).seconds,
        target=5.0,
        compare="difference",
        close=folder.cleanup,
        repeats=3,
    )


def fill(file: str, out: str) -> None:
    """Write a finished batch without making a picture: each job's file has its id, and noise for pixels."""
    import numpy as np

    from ddgen.app.identity import model_key, weights_digests
    from ddgen.app.ledger import Ledger, run_seed
    from ddgen.app.naming import Target
    from ddgen.app.tasks import Planner
    from ddgen.io import images, metadata
    from ddgen.io.lines import PromptLine
    from ddgen.io.prompts import PromptFile
    from ddgen.weights import registry

    root = Path(out)
    root.mkdir()
    spec = registry.find(None)
    digests = weights_digests(spec)
    planner = Planner(
        spec, model_key(spec, digests), Target("directory", root, "", "png"), run_seed=run_seed(root, 5)
    )
    ledger, origin = Ledger(root / "ledger.jsonl"), metadata.Origin(digests=digests)
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    for line in PromptFile(file).lines():
        assert isinstance(line, PromptLine)
        for task in planner.tasks(line):
            texts = metadata.describe(task.job, origin, "full", task.id)
            task.path.write_bytes(images.encode(pixels, "png", 92, texts))
            ledger.append(task.id, task.path.name)


def memory_of_lines() -> Pair:
    folder = tempfile.TemporaryDirectory()

    def peak(count: int) -> Callable[[], float]:
        command = [DDGEN, "batch", prompts(folder.name, count), "-o", "out", "--plan", "-q"]
        return lambda: run(command).megabytes

    return Pair(
        "`ddgen batch --plan` of 100,000 lines: peak memory",
        peak(100_000),
        "the same of 100 lines",
        peak(100),
        unit="MB",
        target=100.0,
        compare="difference",
        close=folder.cleanup,
        repeats=1,
        warmups=0,
    )


class Drawn:
    """A batch of prompts run with a pipeline that costs nothing, so that what is left is the batch's own."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._folder = tempfile.TemporaryDirectory()
        file = prompts(self._folder.name, count)
        self._command = [DDGEN, "batch", file, "-o", "out", "-q", "--steps", "1", "--progress", "none"]

    def run(self) -> Ran:
        return run(self._command, PYTHONPATH=str(ROOT / "tests" / "fake_pipeline"))

    def close(self) -> None:
        self._folder.cleanup()


def growth() -> Pair:
    many, few, one = Drawn(10_000), Drawn(500), Drawn(1)

    def each(batch: Drawn) -> float:
        return (batch.run().seconds - one.run().seconds) / (batch.count - 1)

    def close() -> None:
        for batch in (many, few, one):
            batch.close()

    return Pair(
        "a job of a batch of 10,000 with a pipeline that costs nothing",
        lambda: each(many),
        "a job of 500",
        lambda: each(few),
        target=1.2,
        close=close,
        repeats=1,
        warmups=0,
    )


def memory_growth() -> Pair:
    many, few = Drawn(10_000), Drawn(100)

    def close() -> None:
        many.close()
        few.close()

    return Pair(
        "the same: peak memory of 10,000 jobs",
        lambda: many.run().megabytes,
        "of 100",
        lambda: few.run().megabytes,
        unit="MB",
        compare="difference",
        target=50.0,
        close=close,
        repeats=1,
        warmups=0,
    )


def two_ray_workers() -> Pair:
    folder = tempfile.TemporaryDirectory()
    command = [
        DDGEN,
        "batch",
        prompts(folder.name, 48),
        "-o",
        "out",
        "-q",
        "--engine",
        "ray",
        "--worker-cores",
        "1",
    ]
    return Pair(
        "48 prompts, two one-thread Ray workers",
        lambda: run([*command, "--workers", "2"]).seconds,
        "one of them",
        lambda: run([*command, "--workers", "1"]).seconds,
        target=1 / 1.4,
        close=folder.cleanup,
        repeats=1,
        warmups=0,
    )


ROWS: dict[str, Callable[[], Pair]] = {
    "batch-processes": against_processes,
    "batch-loop": against_loop,
    "batch-plan": plan_ten_thousand,
    "batch-again": find_ten_thousand_done,
    "batch-memory": memory_of_lines,
    "batch-growth": growth,
    "batch-growth-memory": memory_growth,
    "batch-ray": two_ray_workers,
}
LONG = ("batch-growth-memory",)
