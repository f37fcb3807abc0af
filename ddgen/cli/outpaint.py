"""`ddgen outpaint`: a picture on a larger canvas; the picture itself comes back as it was."""

import re
from dataclasses import replace
from typing import Annotated

import typer

from ddgen.app import canvas, plan, verbs
from ddgen.cli import console, controls, editing, flags, sample, wording
from ddgen.cli.editing import EDITING
from ddgen.cli.flags import value
from ddgen.errors import UsageError
from ddgen.request import Edit

EXAMPLES = """Examples:
  ddgen outpaint apple.png --by all25%
  ddgen outpaint table.jpg "a wooden table, books" --by left256,right256 --strength 0.9
  ddgen outpaint wide.png "mountains" --to 1024x512

A large step is made in several passes, each beside what is there.
"""
STRENGTH = 0.6
SIDES = ("left", "up", "right", "down")

By = Annotated[
    str | None,
    value(
        EDITING,
        "SIDES",
        "How far to each side, in pixels or %: up32,left16 or all25%.",
        "--by",
    ),
]
To = Annotated[
    str | None,
    value(EDITING, "WxH", "The new size, the picture in its middle.", "--to"),
]


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("outpaint", epilog=EXAMPLES)(outpaint)


@editing.like_sample("width", "height", "size", "ar", "scale", "tile")
def outpaint(
    context: typer.Context,
    image: editing.Image,
    prompts: flags.Prompts = None,
    by: By = None,
    to: To = None,
    strength: editing.Strength = None,
    control: flags.Control = None,
    control_model: flags.ControlModel = None,
    image_prompt: flags.ImagePrompt = None,
    image_prompt_model: flags.ImagePromptModel = None,
    image_encoder: flags.ImageEncoder = None,
) -> None:
    """Go on beyond the edges of a picture; the picture itself comes back bit for bit.

    What is new begins as the edge's colours under noise: less --strength keeps more of them, 1 almost nothing.
    [0.6] The prompt says what the new part shows; what stands in the picture already would be drawn there
    again. Without one, the picture alone is gone on with. A --control's picture lies over the new canvas.
    """
    values, spec = editing.settle(context)
    share = editing.strength_of(strength, STRENGTH)
    if verbs.reads(spec.arch) == "image":
        editing.refuse_special_inputs(spec, "outpaint")
    picture = editing.read_picture(image, prompts)
    margins = read_margins(by, to, *picture.size)
    editing.name_after(picture, values)
    texts = wording.dress(context.params, values, sample.read_prompts(prompts) if prompts else ("",))
    board, new = canvas.extended(picture.pixels, *margins)
    (height, width), (left, up, *_) = new.shape, margins
    known = (left, up, left + picture.size[0], up + picture.size[1])
    windows = list(canvas.passes(width, height, known, spec.defaults.width, spec.defaults.height))
    frames = verbs.frames_of(spec, windows)
    record = Edit("outpaint", canvas.digest(board), canvas.digest(new), share)
    request = sample.make_request(values, texts, spec, None, None)
    if texts == ("",) and request.negative is None and request.guidance is None:
        request = replace(request, guidance=1.0)  # no words to follow: one call a step says all
    request, jobs = editing.plan_jobs(request, spec, record, frames[0].width, frames[0].height)
    steered = controls.prepare(context.params, jobs, lambda pixels: canvas.fit(pixels, width, height, "crop"))
    editing.warn_of_alpha(picture)
    editing.warn_of_loss(context, values)
    console.detail(f"ddgen: {width}x{height} in {len(frames)} passes")
    draw = verbs.outside(board, new, frames, controls=steered.controls, pictures=steered.pictures)
    sample.deliver(context, values, spec, request, steered.jobs, draw, verbs.steps_of(jobs, len(frames)))


def read_margins(by: str | None, to: str | None, width: int, height: int) -> tuple[int, int, int, int]:
    """Return how many pixels are added left, above, right and below.

    Raises:
        UsageError: neither or both are given, cannot be read, add nothing, or too much.
    """
    if (by is None) == (to is None):
        what = "nothing says how far" if by is None else "--by and --to both say how far"
        raise UsageError(what, "give one of --by all25% and --to WxH", id="usage.outpaint")
    found = _to(to, width, height) if to is not None else _by(str(by), width, height)
    left, up, right, down = found
    if not any(found):
        raise UsageError(
            "the canvas is no larger than the picture",
            "give more, as --by all25%",
            id="usage.outpaint",
        )
    across, high = left + width + right, up + height + down
    if across * high > plan.MAX_RESULT_PIXELS:
        raise UsageError(
            f"{across}x{high} is over the 64 megapixel limit of a result",
            "go less far",
            id="usage.outpaint",
        )
    return found


def _to(text: str, width: int, height: int) -> tuple[int, int, int, int]:
    match = re.fullmatch(r"\s*(\d{1,6})x(\d{1,6})\s*", text, re.ASCII)
    if match is None:
        raise UsageError(
            f"--to '{text}' cannot be read",
            "use two numbers, as 512x768",
            id="usage.outpaint",
        )
    across, down = int(match[1]) - width, int(match[2]) - height
    if across < 0 or down < 0:
        raise UsageError(
            f"--to '{text}' is smaller than the picture of {width}x{height}",
            "give more, as --by all25%",
            id="usage.outpaint",
        )
    return across // 2, down // 2, across - across // 2, down - down // 2


def _by(text: str, width: int, height: int) -> tuple[int, int, int, int]:
    found = dict.fromkeys(SIDES, 0)
    for part in text.split(","):
        match = re.fullmatch(r"\s*([a-z]+)\s*(\d{1,5})(%?)\s*", part, re.ASCII)
        if match is None or match[1] not in (*SIDES, "all"):
            raise UsageError(
                f"--by '{text}' cannot be read",
                "use sides and pixels, as up32,left16 or all25%",
                id="usage.outpaint",
            )
        for side in SIDES if match[1] == "all" else (match[1],):
            length = width if side in ("left", "right") else height
            found[side] = round(length * int(match[2]) / 100) if match[3] else int(match[2])
    return found["left"], found["up"], found["right"], found["down"]
