"""`ddgen inpaint`: a part of a picture made anew; every other pixel comes back as it was."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from ddgen.app import canvas, inputs, verbs
from ddgen.cli import console, controls, editing, flags, sample
from ddgen.cli.editing import EDITING, Picture
from ddgen.cli.flags import switch, value
from ddgen.errors import UsageError
from ddgen.request import Edit

if TYPE_CHECKING:
    from ddgen.app.canvas import Mask

EXAMPLES = """Examples:
  ddgen inpaint table.png "a red apple" --box 64,40,48,48
  ddgen inpaint photo.jpg "a fox" --mask mask.png --mask-grow 4 --mask-crop -n 4
  ddgen inpaint cut-out.png "a garden" --mask alpha
  ddgen inpaint photo.jpg "a vase" --mask mask.png --control canny:photo.jpg --control-model canny.safetensors

White is made anew, black is kept; of a picture's alpha, what is transparent is made anew.
"""

MaskFlag = Annotated[
    str | None,
    value(
        EDITING,
        "FILE|alpha",
        "What is made anew: white in FILE, or what is transparent.",
        "--mask",
    ),
]
BoxFlag = Annotated[
    str | None,
    value(EDITING, "X,Y,W,H", "What is made anew, as a box in pixels.", "--box"),
]
Invert = Annotated[bool, switch(EDITING, "Make anew what the mask does not cover.", "--mask-invert")]
Grow = Annotated[
    str | None,
    value(
        EDITING,
        "PIXELS",
        "Widen the mask, or narrow it for a negative number. [0]",
        "--mask-grow",
    ),
]
Blur = Annotated[
    str | None,
    value(
        EDITING,
        "PIXELS",
        "How far inside the mask the new becomes full. [4]",
        "--mask-blur",
    ),
]
Crop = Annotated[
    bool,
    switch(
        EDITING,
        "Work on the mask's surroundings alone, at the model's full size.",
        "--mask-crop",
    ),
]

Padding = Annotated[
    str | None,
    value(
        EDITING,
        "PIXELS",
        "How much around the mask --mask-crop looks at. [half its larger side, at least 16]",
        "--mask-padding",
    ),
]


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("inpaint", epilog=EXAMPLES)(inpaint)


@editing.like_sample("width", "height", "size", "ar", "scale", "tile")
def inpaint(
    context: typer.Context,
    image: editing.Image,
    prompts: flags.Prompts = None,
    mask: MaskFlag = None,
    box: BoxFlag = None,
    mask_invert: Invert = False,
    mask_grow: Grow = None,
    mask_blur: Blur = None,
    mask_crop: Crop = False,
    mask_padding: Padding = None,
    strength: editing.Strength = None,
    control: flags.Control = None,
    control_model: flags.ControlModel = None,
    image_prompt: flags.ImagePrompt = None,
    image_prompt_model: flags.ImagePromptModel = None,
    image_encoder: flags.ImageEncoder = None,
) -> None:
    """Make a part of a picture anew; outside the mask every pixel comes back bit for bit.

    Without --strength that part begins as noise; with it, as what is there under noise. A --control's picture lies
    over IMAGE, whatever part of it --mask-crop looks at.
    """
    values, spec = editing.settle(context)
    grow = editing.pixels_of("--mask-grow", mask_grow, 0, -512, 512)
    blur = editing.pixels_of("--mask-blur", mask_blur, 4, 0, 256)
    share = editing.strength_of(strength, None)
    if mask_padding is not None and not mask_crop:
        raise UsageError("--mask-padding needs --mask-crop", "add it", id="usage.mask")
    padding = None if mask_padding is None else editing.pixels_of("--mask-padding", mask_padding, 0, 0, 4096)
    if verbs.reads(spec.arch) == "image":
        editing.refuse_special_inputs(spec, "inpaint")
    picture = editing.read_picture(image, prompts)
    area = canvas.grown(read_mask(picture, mask, box) != mask_invert, grow)
    texts = editing.words(context, values, picture, 'ddgen inpaint IMAGE "a red apple" --box 64,40,48,48')
    width, height = picture.size
    place = canvas.crop_box(area, padding) if mask_crop and area.any() else (0, 0, width, height)
    frame = canvas.Frame(place, *canvas.work_size(spec, place[2] - place[0], place[3] - place[1]))
    record = Edit("inpaint", canvas.digest(picture.pixels), canvas.digest(area), share)
    request = sample.make_request(values, texts, spec, None, None)
    request, jobs = editing.plan_jobs(request, spec, record, frame.width, frame.height)
    steered = controls.prepare(
        context.params, jobs, lambda pixels: frame.cut(canvas.fit(pixels, width, height, "crop"))
    )
    if mask != "alpha":
        editing.warn_of_alpha(picture)
    if not area.any():
        console.warn("the mask is empty: the picture stays as it is")
    editing.warn_of_loss(context, values)
    feather = canvas.feathered(area, blur)
    draw = verbs.inside(picture.pixels, area, frame, feather, controls=steered.controls, pictures=steered.pictures)
    sample.deliver(context, values, spec, request, steered.jobs, draw, verbs.steps_of(jobs))


def read_mask(picture: Picture, mask: str | None, box: str | None) -> "Mask":
    """Return what is made anew, of the picture's size.

    Raises:
        UsageError: no mask, or two. InputError: one that cannot be read, or of another size.
    """
    import numpy as np

    from ddgen.io import images

    if (mask is None) == (box is None):
        what = (
            "nothing says what to make anew"
            if mask is None
            else "--mask and --box both say what to make anew"
        )
        raise UsageError(
            what,
            "give one of --mask FILE, --mask alpha and --box X,Y,W,H",
            id="usage.mask",
        )
    width, height = picture.size
    if box is not None:
        left, top, wide, high = read_box(box, width, height)
        area = np.zeros((height, width), bool)
        area[top : top + high, left : left + wide] = True
        return area
    assert mask is not None
    if mask == "alpha":
        return inputs.alpha_mask(picture.name, picture.alpha, "give --mask FILE or --box X,Y,W,H")
    return inputs.read_mask(mask, images.read_image(mask, editing.read_bytes(mask)), width, height)


def read_box(text: str, width: int, height: int) -> tuple[int, int, int, int]:
    """Read `x,y,w,h` of a box inside the picture.

    Raises:
        UsageError: four numbers it is not, or not inside.
    """
    match = re.fullmatch(
        r"\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*",
        text,
        re.ASCII,
    )
    if match is None:
        raise UsageError(
            f"--box '{text}' is not four numbers",
            "use X,Y,W,H in pixels, as 64,40,48,48",
            id="usage.box",
        )
    left, top, wide, high = map(int, match.groups())
    if not wide or not high or left + wide > width or top + high > height:
        raise UsageError(
            f"--box '{text}' is not inside the picture of {width}x{height}",
            "use X,Y,W,H in pixels",
            id="usage.box",
        )
    return left, top, wide, high
