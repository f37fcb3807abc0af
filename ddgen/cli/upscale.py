"""`ddgen upscale`: a larger picture whose detail the model draws: enlarged, then image to image in
windows."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddgen.app import canvas, plan, verbs
from ddgen.cli import console, controls, editing, flags, sample
from ddgen.cli.editing import EDITING, Picture
from ddgen.cli.flags import value
from ddgen.errors import ModelError, UsageError
from ddgen.request import Edit, Steer
from ddgen.weights.digest import digest
from ddgen.weights.spec import Spec
from ddgen.weights.unpickle import read_weights_header

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

EXAMPLES = """Examples:
  ddgen upscale apple.png
  ddgen upscale photo.jpg "a harbour, sharp" --by 4 --strength 0.3
  ddgen upscale photo.jpg "a harbour" --by 4 --upscaler 4x-UltraSharp.pth --strength 0.2
  ddgen upscale photo.jpg -m sd15 --strength 0.6 --control tile:photo.jpg --control-model tile.safetensors
"""

By = Annotated[
    str | None,
    value(EDITING, "N", "How many times as wide and high, as 2 or 1.5. [2]", "--by"),
]
Window = Annotated[
    str | None,
    value(
        EDITING,
        "PIXELS",
        "Side of the windows that the network sees, 0 = all at once. [the model's]",
        "--window",
    ),
]

Upscaler = Annotated[
    str | None,
    value(EDITING, "FILE", "An ESRGAN-type network that enlarges, in place of Lanczos.", "--upscaler"),
]


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("upscale", epilog=EXAMPLES)(upscale)


@editing.like_sample("width", "height", "size", "ar", "scale")
def upscale(
    context: typer.Context,
    image: editing.Image,
    prompts: flags.Prompts = None,
    by: By = None,
    strength: editing.Strength = None,
    window: Window = None,
    upscaler: Upscaler = None,
    control: flags.Control = None,
    control_model: flags.ControlModel = None,
    image_prompt: flags.ImagePrompt = None,
    image_prompt_model: flags.ImagePromptModel = None,
    image_encoder: flags.ImageEncoder = None,
) -> None:
    """Make a picture larger and draw its detail anew.

    The network works in overlapping windows, so what it needs does not grow with the picture. Without a prompt, the
    picture's own is used, or none. [--strength 0.35] A --control's picture lies over IMAGE. A picture that says it
    is a tile stays one.
    """
    values, spec = editing.settle(context)
    editing.refuse_special_inputs(spec, "upscale")
    share = editing.strength_of(strength, 0.35)
    picture = editing.read_picture(image, prompts)
    wide, high = enlarged_size(by, *picture.size)
    width, height = (-(-side // spec.divisor) * spec.divisor for side in (wide, high))
    texts = editing.words(context, values, picture)
    if context.params["tile"] is None:
        values["tile"] = tile_of(picture) or values["tile"]
    fitted = canvas.resize(picture.pixels, width, height, values["tile"])
    record = Edit("upscale", canvas.digest(fitted), "", share, None, window_of(window, spec, width, height))
    request = sample.make_request(values, texts, spec, None, None)
    request, jobs = editing.plan_jobs(request, spec, record, width, height)
    steered = controls.prepare(
        context.params, jobs, lambda pixels: canvas.resize(pixels, width, height, values["tile"])
    )
    jobs = steered.jobs
    if upscaler is not None:
        said = record_upscaler(upscaler, picture.pixels)
        jobs = [replace(job, controls=(*job.controls, said)) for job in jobs]
    editing.warn_of_alpha(picture)
    network = None if upscaler is None else Path(upscaler)
    draw = verbs.enlarged(
        fitted, wide, high, network, picture.pixels, controls=steered.controls, pictures=steered.pictures
    )
    sample.deliver(context, values, spec, request, jobs, draw, verbs.steps_of(jobs))


def tile_of(picture: Picture) -> str:
    """Return along which axes a picture's ends meet, by its own word."""
    found = picture.says()
    said = "" if found is None else str(found.settings.get("tile") or "")
    if said not in plan.TILES:
        return ""
    if said:
        console.detail(f"ddgen: the picture is a tile ({said})")
    return said


def record_upscaler(path: str, pixels: "Pixels") -> Steer:
    """Return what a job says of the network that enlarges.

    Raises:
        ModelError: a file that holds no weights; spandrel is not installed.
    """
    from importlib.util import find_spec

    if find_spec("spandrel") is None:
        raise ModelError(
            "--upscaler needs spandrel", "install it: pip install 'ddgen[upscale]'", id="model.upscaler"
        )
    read_weights_header(Path(path))
    return Steer("upscaler", canvas.digest(pixels), digest(Path(path)))


def enlarged_size(by: str | None, width: int, height: int) -> tuple[int, int]:
    """Return the size of the result.

    Raises:
        UsageError: no number, or one out of range.
    """
    if by is not None and re.fullmatch(r"\d{1,2}(\.\d{1,4})?", by, re.ASCII) is None:
        raise UsageError(f"--by '{by}' is not a number", "use one as 2 or 1.5", id="usage.upscale")
    times = 2.0 if by is None else float(by)
    if not 1 <= times <= 16:
        raise UsageError(f"--by {times:g} is out of range", "use 1 to 16", id="usage.upscale")
    return round(width * times), round(height * times)


def window_of(text: str | None, spec: Spec, width: int, height: int) -> int:
    """Return the side of the windows, on the network's grid; 0 where the picture needs none.

    Raises:
        UsageError: no whole number, or one out of range.
    """
    usual = max(spec.defaults.width, spec.defaults.height)
    side = editing.pixels_of("--window", text, usual, 0, 4096)
    if 0 < side < plan.smallest(spec):
        raise UsageError(
            f"--window {side} is out of range",
            f"use 0, or {plan.smallest(spec)} to 4096",
            id="usage.range",
        )
    needed = width * height > verbs.TILED_FROM * usual**2 or text is not None
    return side // spec.divisor * spec.divisor if needed else 0
