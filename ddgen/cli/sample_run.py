"""What `ddgen sample` does once everything is checked: show the plan, or load the model, make and tell."""

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ddgen.app import plan as planning
from ddgen.app.naming import Names, parse_output
from ddgen.cli import console, keeping, picking, process
from ddgen.cli.progress import make_progress
from ddgen.diffusion.samplers import SAMPLERS
from ddgen.errors import ResourceError
from ddgen.io import files, metadata
from ddgen.request import Job
from ddgen.weights.spec import Spec

if TYPE_CHECKING:
    from ddgen.app.pipeline import OnStep, Pipeline
    from ddgen.app.produce import Result
    from ddgen.diffusion.samplers import Step


def show_plan(jobs: Sequence[Job], names: Names | None, *, grid: bool) -> None:
    """Print each job with its token count and file name: a line of text, or of JSON."""
    rules = jobs[0].prompt_syntax, jobs[0].steps
    counts = {
        prompt: planning.token_count(prompt, *rules) for prompt in dict.fromkeys(job.prompt for job in jobs)
    }
    for index, job in enumerate(jobs, 1):
        path = str(names.path(job, index)) if names is not None else "-"
        if console.manners.json:
            console.out_json({"type": "job", "path": path, "tokens": counts[job.prompt], **asdict(job)})
        else:
            console.out(
                f"{path}  {describe(job)}  seed {job.seed}  {counts[job.prompt]} tokens  {job.prompt!r}"
            )
    if grid and names is not None:
        path = str(names.sheet(jobs[0]))
        if console.manners.json:
            console.out_json({"type": "grid", "path": path})
        else:
            console.out(f"{path}  all {len(jobs)} in one sheet")


def show_memory(spec: Spec, job: Job, batch: int | None) -> None:
    """Say what memory a run of a large model will take."""
    from ddgen.app import estimate

    line = estimate.memory_line(spec, job, batch or 1)
    if line is not None:
        console.say(f"ddgen: {line}")


Draw = Callable[["Pipeline", Sequence[Job], "OnStep"], list[Any]]
"""(pipeline, batch of jobs, on_step) -> one picture a job."""


def make(
    jobs: Sequence[Job],
    names: Names | None,
    spec: Spec,
    values: Mapping[str, Any],
    *,
    grid: bool,
    end: str,
    draw: Draw | None = None,
    steps: int | None = None,
    pick: picking.Choice | None = None,
) -> None:
    """Load the model and make the pictures, telling of each as soon as it is safe on disk.

    draw: what makes a batch, where that is not the jobs alone; steps: how many all take then. pick: only the best
    of each prompt are kept.
    """
    seeds = sorted({job.seed for job in jobs})
    shown = ", ".join(map(str, seeds)) if len(seeds) < 4 else f"{seeds[0]} ... {seeds[-1]}"
    console.say(f"ddgen: {spec.name}, {len(jobs)} x {describe(jobs[0])}, seed {shown}")
    saved = 0
    wanted = len(jobs) if pick is None else len(jobs) // pick.of * pick.keep
    if pick is not None:
        console.say(f"ddgen: of each prompt's {pick.of} pictures the best {pick.keep} will be kept")
    process.at_end(lambda: f"ddgen: interrupted; {saved} of {wanted} images saved\n")
    if names is not None:
        files.sweep(names.target.root)
    loaded = load(spec, values)
    chosen = None if pick is None else picking.load(pick, spec)

    from ddgen.app import estimate, pipeline, produce

    warning = estimate.forecast(spec, Counter(jobs), loaded.device.type, steps)
    if warning is not None:
        console.say(f"ddgen: {warning}")
    kind = names.target.format if names is not None else parse_output("-", values["format"]).format
    saving = produce.Saving(kind, values["quality"], values["metadata"])
    batches = planning.batches(iter(jobs), batch_size(spec, jobs[0], values["batch_size"], loaded))
    results = []
    total = sum(job.steps for job in jobs) if steps is None else steps
    with make_progress(values["progress"], total, "steps") as bar:

        def work(batch: Sequence[Job]) -> list[Any]:
            def advance(step: "Step", steps: int) -> None:
                bar.advance(len(batch), batch[0].prompt)

            with in_memory(batch, loaded):
                return (draw or pipeline.run)(loaded, batch, advance)

        origin = origin_of(loaded, jobs[0], values)
        for result in produce.produce(batches, work, names, saving, origin, chosen):
            saved += result.path is not None
            tell(result, end=end, to_output=names is None and not grid)
            if grid:
                results.append(result)
    if grid:
        data = produce.sheet(results, saving)
        if names is None:
            console.out_bytes(data)
        else:
            path = produce.publish(names, lambda: names.sheet(jobs[0]), data)
            if console.manners.json:
                console.out_json({"type": "grid", "path": str(path), "images": len(results)})
            else:
                console.out(str(path), end=end)


def batch_size(spec: Spec, job: Job, asked: int | None, loaded: "Pipeline") -> int | None:
    """Return how many pictures go at once: as many as were asked for, or as fit."""
    if asked is None or asked == 1:
        return asked
    from ddgen.app.memory import fitting_batch

    fits = fitting_batch(spec, job, asked, loaded.device, loaded.denoiser.dtype)
    if fits < asked:
        console.warn(f"--batch-size {asked} does not fit into memory; {fits} at once")
    return fits


def load(spec: Spec, values: Mapping[str, Any]) -> "Pipeline":
    """Fetch the model if it is not here, and load it."""
    keeping.ask(values["keep_alive"])
    if values["offline"]:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
    from ddgen.cli import pulling

    spec = pulling.here(spec, values["progress"])

    from ddgen.app.assemble import assemble

    begun = time.monotonic()
    loaded = assemble(
        spec,
        device=values["device"],
        dtype=values["dtype"],
        text_backend=values["text_backend"],
        offload=values["offload"],
    )
    console.detail(f"ddgen: loaded in {time.monotonic() - begun:.2f} s on {loaded.device}")
    for note in loaded.notes:
        console.warn(note)
    gc.freeze()
    gc.enable()
    return loaded


@contextmanager
def in_memory(batch: Sequence[Job], loaded: "Pipeline") -> Iterator[None]:
    """Name the batch that did not fit into memory.

    Raises:
        ResourceError: it did not.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise too_large(batch, str(loaded.device)) from error
        raise


def tell(result: "Result", *, end: str, to_output: bool) -> None:
    """Announce a picture that is safe: its path, its JSON, or its bytes."""
    if to_output:
        console.out_bytes(result.data)
    elif console.manners.json:
        record = {
            "type": "image",
            "path": str(result.path),
            "sha256": result.sha256,
            "seconds": round(result.seconds, 3),
        }
        if result.score is not None:
            record["score"] = result.score
        console.out_json(record | asdict(result.job))
    elif result.path is not None:
        console.out(str(result.path), end=end)
    if console.manners.preview:
        from ddgen.cli import preview

        preview.show(result.pixels)
    if result.pixels.min() == result.pixels.max():
        console.warn(f"the picture of seed {result.job.seed} is one flat colour")


def origin_of(loaded: "Pipeline", job: Job, values: Mapping[str, Any]) -> metadata.Origin:
    """Return what made the pictures of this run, for their metadata."""
    from importlib.metadata import version

    return metadata.Origin(
        digests=loaded.digests,
        sampler=SAMPLERS[job.sampler].label,
        device=loaded.device.type,
        dtype=str(loaded.denoiser.dtype or "float32").removeprefix("torch."),
        torch=".".join(version("torch").split(".")[:2]),
        text_backend=values["text_backend"],
        changes=loaded.spec.changes,
    )


def too_large(batch: Sequence[Job], device: str) -> ResourceError:
    """Return the error for a batch that does not fit into memory."""
    job = batch[0]
    what = (
        f"{len(batch)} images of {job.width}x{job.height}" if len(batch) > 1 else f"{job.width}x{job.height}"
    )
    mend = (
        "try --batch-size 1" if len(batch) > 1 else f"try --width {job.width // 2} --height {job.height // 2}"
    )
    return ResourceError(f"out of memory at {what} on {device}", mend, id="resource.memory")


def describe(job: Job) -> str:
    """Return a job's size and sampling in a few words."""
    larger = f" x{job.scale}" if job.scale != 1 else ""
    strength = job.edit.strength if job.edit is not None else None
    share = f" at strength {strength:g}" if strength is not None else ""
    return f"{job.width}x{job.height}{larger}, {job.sampler} {job.steps} steps{share}, guidance {job.guidance:g}"
