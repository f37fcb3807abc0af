"""`ddgen edit`: a picture and a prompt in, the changed picture out; or an instruction, with models made for
it."""

from dataclasses import replace
from typing import Annotated

import typer

from ddgen.app import canvas, verbs
from ddgen.cli import controls, editing, flags, sample
from ddgen.cli.flags import value
from ddgen.errors import choose
from ddgen.request import Edit

EXAMPLES = """Examples:
  ddgen edit penguin.png "a red penguin" --strength 0.6
  ddgen sample "a penguin" -o - | ddgen edit - "a red penguin" -o red.png
  ddgen edit photo.jpg "make it winter" --model ip2p --image-guidance 1.4
"""

Fit = Annotated[
    str | None,
    value(
        editing.EDITING,
        "HOW",
        "For another shape: crop, pad (with white), stretch. [crop]",
        "--fit",
    ),
]


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("edit", epilog=EXAMPLES)(edit)


@editing.like_sample()
def edit(
    context: typer.Context,
    image: editing.Image,
    prompts: flags.Prompts = None,
    strength: editing.Strength = None,
    fit: Fit = None,
    image_guidance: editing.ImageGuidance = None,
    control: flags.Control = None,
    control_model: flags.ControlModel = None,
    image_prompt: flags.ImagePrompt = None,
    image_prompt_model: flags.ImagePromptModel = None,
    image_encoder: flags.ImageEncoder = None,
) -> None:
    """Change a picture by a prompt.

    It runs the last part of the steps, from the picture under noise: int(strength x steps), at least one.
    [0.75] Models that follow instructions start from noise alone and read the picture beside it.
    """
    values, spec = editing.settle(context)
    how = choose("fit", "crop" if fit is None else fit, canvas.FITS)
    guided = editing.image_guidance_of(image_guidance, spec)
    share = editing.strength_of(strength, None if guided is not None else verbs.STRENGTH)
    picture = editing.read_picture(image, prompts)
    texts = editing.words(context, values, picture, 'ddgen edit IMAGE "a red penguin"')
    request = sample.make_request(values, texts, spec, context.params["size"], context.params["ar"])
    if request.width is None and request.height is None:
        width, height = canvas.work_size(spec, *picture.size)
        request = replace(request, width=width, height=height)
    width = spec.defaults.width if request.width is None else request.width
    height = spec.defaults.height if request.height is None else request.height
    request, jobs = editing.plan_jobs(request, spec, Edit("edit"), width, height)
    fitted = canvas.fit(picture.pixels, width, height, how)
    record = Edit("edit", canvas.digest(fitted), "", share, guided)
    jobs = [replace(job, edit=record) for job in jobs]
    steered = controls.prepare(context.params, jobs, lambda pixels: canvas.fit(pixels, width, height, how))
    jobs = steered.jobs
    editing.warn_of_alpha(picture)
    draw = verbs.whole(fitted, steered.controls, steered.pictures)
    sample.deliver(context, values, spec, request, jobs, draw, verbs.steps_of(jobs))
