"""`ddgen morph`: from one prompt to another in a number of frames, as one animation or as pictures."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddgen.app import plan as planning
from ddgen.app.naming import Names, Target, slug, taken
from ddgen.cli import console, editing, flags, process, sample, sample_run, wording
from ddgen.cli.editing import EDITING
from ddgen.cli.flags import switch, value
from ddgen.cli.progress import make_progress
from ddgen.errors import UsageError, choose
from ddgen.io import files, metadata
from ddgen.request import Job
from ddgen.weights.spec import Spec

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

EXAMPLES = """Examples:
  ddgen morph "a red apple" "a penguin"
  ddgen morph "a fox" "an owl" "a fox" --frames 48 --seed 7,8,7 -o fox.gif
  ddgen morph "a fox" "an owl" -o frames/

With a list of seeds, one a prompt, the noise goes from seed to seed, too; with one, from it to the next.
"""
FORMATS = ("webp", "gif", "png")
MAX_FRAMES = 1000

Frames = Annotated[str | None, value(EDITING, "N", "Pictures in all. [24]", "--frames")]
Rate = Annotated[str | None, value(EDITING, "N", "Pictures a second. [12]", "--fps")]
Back = Annotated[bool, switch(EDITING, "Go back to the beginning, too.", "--bounce")]
Kind = Annotated[
    str | None,
    value(
        flags.OUTPUT,
        "NAME",
        "webp, gif, or png: each picture a file. [by the output's name, else webp]",
        "--format",
    ),
]


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("morph", epilog=EXAMPLES)(morph)


@editing.like_sample("num", "best", "scorer", "format", "grid", "preview", "variation", "variation_seed")
def morph(
    context: typer.Context,
    prompts: flags.Prompts = None,
    frames: Frames = None,
    fps: Rate = None,
    bounce: Back = False,
    kind: Kind = None,
    output: flags.Output = None,
    force: flags.Force = False,
    plan: flags.Plan = False,
) -> None:
    """Make a picture turn into another.

    The noise goes along a great circle, the states of the text along a line. The first and last pictures are
    what `sample` makes.
    """
    context.params |= {"grid": False, "preview": False}
    values, spec = editing.settle(context)
    editing.refuse_special_inputs(spec, "morph")
    values |= {"num": 1, "format": None}
    count = editing.pixels_of("--frames", frames, 24, 2, MAX_FRAMES)
    rate = editing.pixels_of("--fps", fps, 12, 1, 60)
    texts = wording.dress(context.params, values, sample.read_prompts(prompts))
    if len(texts) < 2:
        raise UsageError(
            "a morph needs two prompts",
            'write both: ddgen morph "a red apple" "a penguin"',
            id="usage.morph",
        )
    given = values["seed"] if values["seed"] is not None else planning.draw_seed()
    seeds = given if isinstance(given, tuple) else tuple(range(given, given + len(texts)))
    if len(seeds) != len(texts):
        raise UsageError(
            f"{len(seeds)} seeds do not fit {len(texts)} prompts",
            "give one --seed, or one a prompt",
            id="usage.morph",
        )
    size, ar = context.params["size"], context.params["ar"]
    request = sample.make_request({**values, "seed": seeds[0]}, texts, spec, size, ar)
    ends = [replace(job, seed=seed) for job, seed in zip(planning.plan(request, spec), seeds, strict=True)]
    jobs = between(ends, count)
    jobs += jobs[-2:0:-1] if bounce else []
    form, path = place_of(values["output"], kind, ends)
    if form == "png":
        root = str(path).replace("{", "{{").replace("}", "}}")
        values["output"] = f"{root}/{{index:04}}.png"
    if form == "png" or plan:
        sample.deliver(context, values, spec, request, jobs)
        return
    check_place(values, path, force=force)
    pictures, origin = draw(jobs, spec, values)
    publish(pictures, jobs[-1], origin, values, path, form, rate, force=force)
    end = "\0" if context.params["null"] else "\n"
    if console.manners.json:
        console.out_json({"type": "animation", "path": str(path), "frames": len(pictures)})
    elif str(path) != "-":
        console.out(str(path), end=end)


def between(ends: Sequence[Job], count: int) -> list[Job]:
    """Return `count` jobs that lead from each job to the next; the first and the last are the ends
    themselves."""
    found = []
    for index in range(count):
        at = index * (len(ends) - 1) / (count - 1)
        here = min(math.floor(at), len(ends) - 2)
        weight, there = at - here, ends[here + 1]
        moved = replace(
            ends[here],
            toward=there.prompt,
            toward_weight=weight,
            variation=weight,
            variation_seed=there.seed,
        )
        found.append(ends[here] if weight == 0 else there if weight == 1 else moved)
    return found


def place_of(output: str | None, kind: str | None, ends: Sequence[Job]) -> tuple[str, Path]:
    """Return the format and the file of the animation, "-" for standard output; for "png" the directory.

    Raises:
        UsageError: an unknown or contradicting format.
    """
    form = None if kind is None else choose("format", kind, FORMATS)
    path = Path("." if output is None else output)
    suffix = path.suffix.lower().removeprefix(".")
    if suffix in ("webp", "gif"):
        if form not in (None, suffix):
            raise UsageError(
                f"--format {form} does not fit --output '{output}'",
                "drop --format",
                id="usage.format",
            )
        return suffix, path
    if output == "-":
        if form == "png":
            raise UsageError(
                "several pictures do not fit into standard output",
                "use --format webp or gif",
                id="usage.output-several",
            )
        return form or "webp", path
    if suffix or "{" in str(output):
        raise UsageError(
            f"--output '{output}' is no place for a morph",
            "use a .webp, a .gif or a directory",
            id="usage.output",
        )
    if form == "png" or (form is None and output is not None):
        return "png", path
    # The current directory, or one that was named with a format: a name as `sample` gives them.
    form = form or "webp"
    name = f"{slug(ends[0].prompt)}-to-{slug(ends[-1].prompt)}-{ends[0].seed}"
    number = 1
    while files.exists(found := path / f"{name}{f'-{number}' if number > 1 else ''}.{form}"):
        number += 1
    return form, found


def check_place(values: dict[str, Any], path: Path, *, force: bool) -> None:
    """Find what stands against writing the animation, before it is made.

    Raises:
        OutputError: the name is taken, or the place cannot be written. UsageError: a terminal.
    """
    planning.check_quality(values["quality"])
    if str(path) == "-":
        if console.manners.json:
            mend = "drop one of them"
            raise UsageError("--json and --output '-' both want standard output", mend, id="usage.stdout")
        if process.is_terminal(1):
            raise UsageError(
                "refusing to write a picture to a terminal",
                "redirect it with '>FILE'",
                id="usage.stdout-terminal",
            )
        return
    Names(Target("file", path.parent, path.name, "webp"), force=force).check(1)


def draw(jobs: Sequence[Job], spec: Spec, values: dict[str, Any]) -> "tuple[list[Pixels], metadata.Origin]":
    """Make the frames."""
    console.say(
        f"ddgen: {spec.name}, {len(jobs)} frames of {sample_run.describe(jobs[0])}, seed {jobs[0].seed}"
    )
    process.at_end(lambda: "ddgen: interrupted; nothing was saved\n")
    loaded = sample_run.load(spec, values)
    from ddgen.app import pipeline

    pictures: list[Pixels] = []
    with make_progress(values["progress"], sum(job.steps for job in jobs), "steps") as bar:
        for batch in planning.batches(iter(jobs), values["batch_size"]):
            with sample_run.in_memory(batch, loaded):
                pictures += pipeline.run(loaded, batch, lambda step, steps: bar.advance(len(batch)))  # noqa: B023
    return pictures, sample_run.origin_of(loaded, jobs[0], values)


def publish(
    pictures: "Sequence[Pixels]",
    job: Job,
    origin: metadata.Origin,
    values: dict[str, Any],
    path: Path,
    form: str,
    rate: int,
    *,
    force: bool,
) -> None:
    """Write the animation.

    Raises:
        OutputError: the name was taken meanwhile, or the system refuses.
    """
    from ddgen.io import images

    texts = metadata.describe(job, origin, values["metadata"])
    data = images.animate(pictures, form, [round(1000 / rate)] * len(pictures), texts, values["quality"])
    if str(path) == "-":
        console.out_bytes(data)
        return
    try:
        files.publish(path, data, force=force)
    except FileExistsError as error:
        raise taken(path) from error
