"""`ddgen vary`: more pictures like one: by its own seed where it says it, else by the picture alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from ddgen.app import canvas, replaying, verbs
from ddgen.cli import console, editing, flags, sample, settings
from ddgen.cli.editing import EDITING, Picture
from ddgen.cli.flags import switch, value
from ddgen.errors import DdgenError, InputError, choose
from ddgen.io.foreign import Found
from ddgen.request import Edit, Job, Request
from ddgen.weights import registry
from ddgen.weights.spec import Spec

EXAMPLES = """Examples:
  ddgen vary apple.png -n 4
  ddgen vary apple.png --strong -n 4 --grid
  ddgen vary photo.jpg "a harbour" --like picture --strength 0.4
"""
WAYS = ("auto", "seed", "picture")
NOISE = {False: 0.2, True: 0.5}  # subtle, strong: --variation
CHANGE = {False: 0.35, True: 0.65}  # --strength
SETTINGS = (
    "steps",
    "guidance",
    "guidance_rescale",
    "guidance_interval",
    "sampler",
    "spacing",
    "sigmas",
    "eta",
    "negative",
    "scale",
    "tile",
    "rng",
    "prompt_syntax",
)

Strong = Annotated[bool, switch(EDITING, "Vary strongly; without it, subtly.", "--strong")]
Like = Annotated[
    str | None,
    value(
        EDITING,
        "WAY",
        "seed: its own settings, other noise; picture: its pixels; auto: seed if it says it. [auto]",
        "--like",
    ),
]


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("vary", epilog=EXAMPLES)(vary)


@editing.like_sample("width", "height", "size", "ar", "variation_seed")
def vary(
    context: typer.Context,
    image: editing.Image,
    prompts: flags.Prompts = None,
    strong: Strong = False,
    like: Like = None,
    strength: editing.Strength = None,
    num: flags.Num = None,
    seed: flags.Seed = None,
) -> None:
    """Make pictures like a picture.

    One that ddgen made says its prompt and seed: the same with noise a little way toward that of other
    seeds. [--variation 0.2, strong 0.5] Any other: image to image. [--strength 0.35, strong 0.65]
    """
    values, spec = editing.settle(context)
    share = editing.strength_of(strength, CHANGE[strong])
    way = choose("way", "auto" if like is None else like, WAYS)
    picture = editing.read_picture(image, prompts)
    found = picture.says()
    known = None if found is None else known_model(found, context, values)
    if way == "seed" and known is None:
        mend = "use --like picture"
        raise InputError(
            f"image '{picture.name}' does not say how ddgen made it",
            mend,
            id="input.vary",
        )
    reworded = prompts or context.params["style"] is not None or context.params["expand"]
    if way == "picture" or known is None or strength is not None or reworded:
        by_picture(context, values, spec, picture, share)
        return
    assert found is not None
    amount = values["variation"] if context.params["variation"] is not None else NOISE[strong]
    changes = {name: values[name] for name in SETTINGS if context.params.get(name) is not None}
    job = replaying.job_of(found, known, changes)
    request = sample.make_request(values, (job.prompt,), known, None, None)
    request = replace(request, width=job.width, height=job.height, tile=job.tile)
    jobs = by_seed(job, request, known, amount)
    console.detail(f"ddgen: varying seed {job.seed} by {amount:g}")
    sample.deliver(context, values, known, request, jobs)


def known_model(found: Found, context: typer.Context, values: Mapping[str, Any]) -> Spec | None:
    """Return the model that a picture says made it; None where ddgen did not, not from a prompt alone, or
    not with a model known here."""
    if found.tool != "ddgen" or "seed" not in found.settings or found.record["job"].get("edit"):
        return None
    said = str(found.rest.get("model", ""))
    if "prompt" not in found.record["job"] or context.params["model"] not in (
        None,
        said,
    ):
        return None
    try:
        return registry.find(said, weights_file=values["weights_file"])
    except DdgenError:
        return None


def by_seed(job: Job, request: Request, spec: Spec, amount: float) -> list[Job]:
    """Return the job with its noise moved toward that of each seed of the request."""
    from ddgen.app import plan

    others = [
        planned.seed for planned in plan.plan(replace(request, variation=0.0, variation_seed=None), spec)
    ]
    return [replace(job, variation=float(amount), variation_seed=other) for other in others]


def by_picture(
    context: typer.Context,
    values: dict[str, Any],
    spec: Spec,
    picture: Picture,
    share: float | None,
) -> None:
    """Make pictures from the picture alone."""
    editing.refuse_special_inputs(spec, "vary")
    values["variation"] = settings.SETTINGS["variation"].default
    texts = editing.words(context, values, picture)
    width, height = canvas.work_size(spec, *picture.size)
    fitted = canvas.fit(picture.pixels, width, height, "crop")
    record = Edit("vary", canvas.digest(fitted), "", share)
    request = sample.make_request(values, texts, spec, None, None)
    request, jobs = editing.plan_jobs(request, spec, record, width, height)
    editing.warn_of_alpha(picture)
    sample.deliver(context, values, spec, request, jobs, verbs.whole(fitted), verbs.steps_of(jobs))
