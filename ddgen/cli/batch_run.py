"""What `ddgen batch` does once its flags are read: check everything, take the directory, make what is
missing, tell of it.
"""

import gc
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from ddgen.app import estimate
from ddgen.app import plan as planning
from ddgen.app.adjust import adjust
from ddgen.app.batch import Batch, Interrupted, Runner, local, look
from ddgen.app.contests import Contests
from ddgen.app.identity import model_key, weights_digests
from ddgen.app.ledger import FailedList, Ledger, Lock, Shard, run_seed
from ddgen.app.named import Networks
from ddgen.app.naming import Target
from ddgen.app.styles import load_styles
from ddgen.app.tasks import Planner, Task
from ddgen.cli import console, picking, process, pulling, wording
from ddgen.cli.batch_input import Reading, check_files, open_source
from ddgen.cli.batch_talk import Talk
from ddgen.cli.progress import make_progress
from ddgen.errors import InputError, OutputError, ResourceError, UsageError
from ddgen.io import files
from ddgen.io.prompts import PromptFile, shown_name
from ddgen.io.settings import Settings
from ddgen.weights import registry
from ddgen.weights.spec import Spec


@dataclass(frozen=True)
class Options:
    """What only `batch` knows, read and checked. Fields as the flags of cli/batch.py."""

    files: tuple[str, ...]
    base: Settings
    shard: Shard
    input_format: str
    encoding: str
    styles_file: str | None
    expand: bool
    wildcards: str | None
    max_expansions: int | None
    check: bool
    fail_fast: bool
    engine: str
    address: str | None
    workers: int | None
    worker_cores: int | None
    shared_output: bool
    strict_tokens: bool
    events: bool
    end: str
    look_only: bool
    loras: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    inputs: str | None = None
    networks: Networks = Networks()
    scorer: str = ""


def run(options: Options, values: dict[str, Any], target: Target) -> None:
    """Make the batch.

    Raises:
        DdgenError: what is wrong with the input, the model or the output; exit code 3 is typer.Exit.
    """
    gc.freeze()  # what is imported stays
    gc.enable()  # off since the start of the program; this command works for long
    spec = adjust(
        registry.find(values["model"], weights_file=values["weights_file"]),
        loras=options.loras,
        embeddings=options.embeddings,
        vae=values["vae"],
        prediction=values["prediction"],
        clip_skip=values["clip_skip"],
        ema=values["ema"],
        refiner=values["refiner"],
        refiner_start=values["refiner_start"],
        weights_file=values["weights_file"],
    )
    planner = make_planner(options, values, spec, target)
    planner.check_base()
    if options.look_only:
        show_plan(options, planner)
        return
    files.probe_directory(target.root)
    lock = Lock(target.root, options.shard)
    try:
        if "seed" not in options.base:
            planner.run_seed = run_seed(target.root, planning.draw_seed())
        files.sweep(target.root)
        work(options, values, spec, planner)
    finally:
        lock.release()


def make_planner(options: Options, values: dict[str, Any], spec: Spec, target: Target) -> Planner:
    """Return the planner of this run; its run seed is set when the directory is ours."""
    return Planner(
        spec,
        model_key(spec, weights_digests(spec)),
        target,
        base=options.base,
        expand=expander(options) if options.expand else lambda text: (text,),
        styles=load_styles(options.styles_file),
        shard=options.shard,
        folder=folders(options),
        networks=options.networks,
    )


def folders(options: Options) -> Callable[[str], Path]:
    """Return where the pictures that a line names are looked for: beside its prompt file, or where --inputs
    says."""
    if options.inputs is not None:
        given = Path(options.inputs).absolute()
        if not given.is_dir():
            raise InputError(f"--inputs '{options.inputs}' is no directory", "check the path", id="input.inputs")
        return lambda source: given
    beside = {shown_name(path): Path(path).absolute().parent for path in options.files if path != "-"}
    here = Path.cwd()
    return lambda source: beside.get(source, here)


def expander(options: Options) -> Callable[[str], Iterable[str]]:
    """Return what turns {a|b} and __name__ into prompts.

    Wildcard files lie beside the first prompt file, or where --wildcards says.
    """
    from ddgen.text.expand import MAX_TEXTS, Expander
    from ddgen.text.wildcards import Wildcards

    beside = Path(options.files[0]).parent / "wildcards" if options.files != ("-",) else None
    folder = beside if options.wildcards is None else Path(options.wildcards)
    limit = MAX_TEXTS if options.max_expansions is None else options.max_expansions
    mend = "take options out, or allow more: --max-expansions N"
    found = Expander(None if folder is None else Wildcards(folder), limit, mend)
    if folder is not None:
        return found.expand
    told = False

    def expand(text: str) -> Iterable[str]:
        nonlocal told
        texts = found.expand(text)
        if not told:
            wording.remark_plain(found.plain)
            told = bool(found.plain)
        return texts

    return expand


def work(options: Options, values: dict[str, Any], spec: Spec, planner: Planner) -> None:
    """Check the input, make what is missing, and tell how it went."""
    root = planner.target.root
    ledger = Ledger(root / f"ledger{options.shard.suffix}.jsonl")
    if ledger.bad_lines:
        what = f"{ledger.bad_lines} lines of '{ledger.path}' are torn or of another version"
        console.warn(f"{what}; the pictures are looked at instead")
    failures = FailedList(root / f"failed{options.shard.suffix}.jsonl")
    talk = Talk(events=options.events, end=options.end)
    batch = Batch(
        ledger,
        failures,
        emit=talk.event,
        stop=talk.stopping,
        thorough=options.check,
        marked=values["metadata"] != "none",
        fail_fast=options.fail_fast,
        batch_size=values["batch_size"],
    )
    reading = Reading(
        options.files, options.input_format, options.encoding, options.strict_tokens, options.scorer
    )
    source = open_source(reading, values, planner, talk)
    process.at_first_signal(talk.stop)
    with make_progress(values["progress"], talk.total, "images") as bar:
        talk.bar = bar
        try:
            batch.run(source, make_runner(options, values, spec, talk, root))
        except Interrupted:
            interrupted = True
        except (OutputError, ResourceError):
            kept = f"{batch.tally.saved + batch.tally.skipped} of {talk.wanted or 'the'} images saved"
            console.say(f"ddgen: {kept}; when that is mended, the same command continues")
            raise
        else:
            interrupted = False
    tally = batch.tally
    of = f" of {talk.wanted}" if talk.total else ""
    if interrupted:
        kept = f"{tally.saved + tally.skipped}{of} images saved"
        console.say(f"ddgen: interrupted; {kept}; run the same command to continue")
        process.end_by(talk.signal)
    listed = f" (see {failures.path})" if tally.failed else ""
    console.say(f"ddgen: {tally.saved} saved, {tally.skipped} skipped, {tally.failed} failed{listed}")
    if tally.exit_code:
        raise typer.Exit(tally.exit_code)


def make_runner(options: Options, values: dict[str, Any], spec: Spec, talk: Talk, root: Path) -> Runner:
    """Return what makes groups of tasks: this process, or a Ray cluster."""
    if values["offline"]:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
    spec = pulling.here(spec, values["progress"])
    form = values["format"] if values["format"] is not None else "png"
    if options.engine == "ray":
        from ddgen.app import ray_runner, ray_worker

        cluster = ray_runner.Cluster(
            options.address,
            options.workers,
            options.shared_output,
            {"auto": None, "cpu": False}.get(values["device"], True),
            options.worker_cores,
        )
        recipe = ray_worker.ModelRecipe(
            spec,
            weights_digests(spec),
            values["device"],
            values["dtype"],
            values["text_backend"],
            form,
            values["quality"],
            values["metadata"],
            values["offload"],
            options.scorer,
        )
        return ray_runner.runner(cluster, recipe, talk.stopping)

    def load() -> Any:
        from ddgen.app.assemble import assemble
        from ddgen.app.produce import Saving
        from ddgen.app.render import Renderer

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
        warning = estimate.forecast(spec, talk.ahead, loaded.device.type, each=options.files == ("-",))
        if warning is not None:
            console.say(f"ddgen: {warning}")
        saving = Saving(form, values["quality"], values["metadata"])
        return Renderer(loaded, saving, values["text_backend"], scorer=options.scorer)

    return local(load, talk.step)


def show_plan(options: Options, planner: Planner) -> None:
    """Print every picture that the batch would make, and whether it is there; touch nothing."""
    if options.files == ("-",):
        raise UsageError(
            "--plan reads files, not a stream", "give a file: ddgen batch prompts.txt --plan", id="usage.plan"
        )
    seed_file = planner.target.root / "run.json"
    drawn = "seed" not in options.base and not seed_file.exists()
    if "seed" not in options.base:
        planner.run_seed = 0 if drawn else run_seed(planner.target.root, 0)
    opened = [PromptFile(path, options.input_format, options.encoding) for path in options.files]
    counts = {"missing": 0, "done": 0, "other": 0, "dropped": 0}

    contests = Contests(look)

    def show(task: Task) -> None:
        state = look(task)
        if state == "missing" and task.contest is not None and contests.closed(task.contest):
            state = "dropped"
        counts[state] += 1
        if console.manners.json:
            record = {"type": "job", "path": str(task.path), "state": state, "id": task.id, "line": task.line}
            console.out_json({**record, **asdict(task.job)})
        else:
            job = task.job
            how = f"{job.width}x{job.height} {job.sampler} {job.steps} steps guidance {job.guidance:g}"
            console.out(f"{task.path}  {state}  {how}  seed {job.seed}  {job.prompt!r}")

    check_files(opened, planner, show)
    if drawn:
        console.warn("no --seed is given: the seeds, and so the names, are drawn anew when the batch begins")
    console.say(f"ddgen: {counts['missing']} to make, {counts['done']} done")
