"""`ddgen vary`: more pictures like one: by its own seed where it says it, else by the picture alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from ddgen.app import canvas, remade, replaying, verbs
from ddgen.cli import console, controls, editing, flags, replay, sample, settings
from ddgen.cli.editing import EDITING, Picture
from ddgen.cli.flags import switch, value
from ddgen.errors import DdgenError, InputError, ModelError, UsageError, choose
from ddgen.io.foreign import Found
from ddgen.request import Edit, Job, Request
from ddgen.weights import registry
from ddgen.weights.spec import Spec

EXAMPLES = """Examples:
  ddgen vary apple.png -n 4
  ddgen vary apple.png --subtle -n 4 --grid
  ddgen vary photo.jpg "a harbour" --like picture --strength 0.4
"""
WAYS = ("auto", "seed", "picture")
NOISE = {"subtle": 0.3, "": 0.6, "strong": 0.8}  # --variation; the noise keeps 0.89, 0.59, 0.31 of the picture's own
CHANGE = {"subtle": 0.35, "": 0.6, "strong": 0.8}  # --strength
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

Subtle = Annotated[bool, switch(EDITING, "Keep the picture and vary its details.", "--subtle")]
Strong = Annotated[bool, switch(EDITING, "Keep little but the idea.", "--strong")]
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
    subtle: Subtle = False,
    strong: Strong = False,
    like: Like = None,
    strength: editing.Strength = None,
    num: flags.Num = None,
    seed: flags.Seed = None,
    control: flags.Control = None,
    control_model: flags.ControlModel = None,
    image_prompt: flags.ImagePrompt = None,
    image_prompt_model: flags.ImagePromptModel = None,
    image_encoder: flags.ImageEncoder = None,
) -> None:
    """Make pictures like a picture.

    One that ddgen made says its prompt and seed: the same with noise part of the way toward that of other seeds.
    [--variation 0.6, subtle 0.3, strong 0.8] Any other: image to image. [--strength 0.6, subtle 0.35, strong 0.8]
    """
    values, spec = editing.settle(context)
    if subtle and strong:
        raise UsageError("--subtle and --strong do not go together", "drop one of them", id="usage.vary")
    level = "subtle" if subtle else "strong" if strong else ""
    share = editing.strength_of(strength, CHANGE[level])
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
    if way == "seed" and (reworded or strength is not None):
        what = "--like seed keeps the picture's prompt" if reworded else "--like seed has no --strength"
        raise UsageError(what, "use --like picture, or --variation 0.4", id="usage.vary")
    if way == "picture" or known is None or strength is not None or reworded:
        if context.params["variation"] is not None:
            mend = "use --strength, which says how much of the picture may change"
            raise UsageError("--variation moves a seed, and this varies the pixels", mend, id="usage.vary")
        by_picture(context, values, spec, picture, share)
        return
    assert found is not None
    known = as_made(picture, found, context, known, values["weights_file"])
    amount = values["variation"] if context.params["variation"] is not None else NOISE[level]
    changes = {name: values[name] for name in SETTINGS if context.params.get(name) is not None}
    job = replaying.job_of(found, known, changes)
    request = sample.make_request(values, (job.prompt,), known, None, None)
    request = replace(request, width=job.width, height=job.height, tile=job.tile)
    jobs = by_seed(job, request, known, amount)
    steered = controls.prepare(
        context.params, jobs, lambda pixels: canvas.fit(pixels, job.width, job.height, "crop")
    )
    console.detail(f"ddgen: varying seed {job.seed} by {amount:g}")
    draw = verbs.whole(None, steered.controls, steered.pictures)
    sample.deliver(context, values, known, request, steered.jobs, draw)


def known_model(found: Found, context: typer.Context, values: Mapping[str, Any]) -> Spec | None:
    """Return the model that a picture says made it; None where ddgen did not, not from a prompt alone, or
    not with a model known here."""
    past = found.record["job"] if found.tool == "ddgen" else {}
    if "seed" not in found.settings or not past or past.get("edit") or past.get("controls"):
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


def as_made(
    picture: Picture, found: Found, context: typer.Context, spec: Spec, weights_file: str | None
) -> Spec:
    """Return a model as the picture's run had it, with its LoRAs and the like, or as the flags say instead.

    Raises:
        ModelError: a file that the picture was made with is not here.
    """
    try:
        return remade.spec_of(found, spec, replay.about_model(context.params), weights_file)
    except ModelError as error:
        mend = f"{error.hint}, or use --like picture"
        raise ModelError(f"image '{picture.name}': {error.message}", mend, id=error.id) from None


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
    values["variation"] = settings.SETTINGS["variation"].default  # what a config says is not meant here
    texts = editing.words(context, values, picture)
    width, height = canvas.work_size(spec, *picture.size)
    fitted = canvas.fit(picture.pixels, width, height, "crop")
    record = Edit("vary", canvas.digest(fitted), "", share)
    request = sample.make_request(values, texts, spec, None, None)
    request, jobs = editing.plan_jobs(request, spec, record, width, height)
    steered = controls.prepare(context.params, jobs, lambda pixels: canvas.fit(pixels, width, height, "crop"))
    editing.warn_of_alpha(picture)
    draw = verbs.whole(fitted, steered.controls, steered.pictures)
    sample.deliver(context, values, spec, request, steered.jobs, draw, verbs.steps_of(jobs))
