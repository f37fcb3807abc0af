"""What the editing commands share: `sample`'s flags, the picture that is worked on, its prompt and its
size."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddgen.app import plan as planning
from ddgen.app import verbs
from ddgen.cli import console, process, sample, settings, wording
from ddgen.cli.flags import value
from ddgen.errors import DdgenError, InputError, UsageError
from ddgen.io import containers, foreign
from ddgen.request import Edit, Job, Request
from ddgen.weights.spec import Spec

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

EDITING = "Editing"
SAMPLE_ALONE = (
    "filmstrip", "filmstrip_steps", "transparent", "control", "control_model", "image_prompt", "image_prompt_model",
    "image_encoder",
)  # fmt: skip

Image = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="A PNG, JPEG or WebP; '-' reads standard input.",
        show_default=False,
    ),
]
Strength = Annotated[
    str | None,
    value(
        EDITING,
        "0..1",
        "How much may change: the part of the steps that is run.",
        "--strength",
    ),
]
ImageGuidance = Annotated[
    str | None,
    value(
        EDITING,
        "SCALE",
        "How closely a model that follows instructions keeps to the picture. [1.5]",
        "--image-guidance",
    ),
]


@dataclass(frozen=True)
class Picture:
    """The picture that is worked on. name: as messages call it; alpha: (H, W), 0 = transparent, or None;
    data: the file."""

    name: str
    pixels: "Pixels"
    alpha: "Pixels | None"
    data: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def says(self) -> foreign.Found | None:
        """Return what the picture says about itself, if anything."""
        try:
            return foreign.interpret(containers.read_texts(self.data))
        except DdgenError:
            return None


def like_sample(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command all flags of `sample` but a few; it reads them from its context."""

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function).parameters
        shared = inspect.signature(sample.sample).parameters
        left_out = {*without, *SAMPLE_ALONE}
        more = [found for name, found in shared.items() if name not in own and name not in left_out]
        together = sorted(
            [*own.values(), *more],
            key=lambda found: found.default is not inspect.Parameter.empty,
        )

        def command(**given: Any) -> None:
            function(**{name: given[name] for name in own})

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(together)  # type: ignore[attr-defined]
        command.__annotations__ = {found.name: found.annotation for found in together}
        return command

    return wrap


def settle(context: typer.Context) -> tuple[dict[str, Any], Spec]:
    """Return the settings and the model; what this command has no flag for is not taken from elsewhere
    either."""
    values, spec = sample.settle(context)
    for name in ("tile", "transparent", "variation", "scale", "width", "height"):
        if name not in context.params:
            values[name] = settings.SETTINGS[name].default
    return values, spec


def read_picture(path: str, prompts: Sequence[str] | None = None) -> Picture:
    """Return a picture from a file, or from standard input for '-'.

    Raises:
        UsageError: standard input is a terminal, or wanted twice. InputError: no picture that can be read.
    """
    from ddgen.io import images

    name = path
    data: bytes | None = None
    if path == "-":
        if prompts and "-" in prompts:
            raise UsageError("standard input is named twice", "give '-' once", id="usage.prompt")
        if process.is_closed(0):
            raise InputError("standard input is closed", "give the picture's path", id="input.stdin")
        if process.is_terminal(0):
            raise UsageError(
                "standard input is a terminal",
                "pipe a picture in, or give its path",
                id="usage.stdin",
            )
        name, data = "-", process.read_input()
    else:
        data = read_bytes(path)
    pixels, alpha = images.read_layers(name, data)
    return Picture(name, pixels, alpha, data)


def read_bytes(path: str) -> bytes:
    """Return a picture's file.

    Raises:
        InputError: it cannot be read, or is no plain file.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            what = "is a directory" if Path(path).is_dir() else "is not a plain file"
            raise InputError(f"image '{path}': {what}", "check the path", id="input.image-missing")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        words = ((error.strerror if isinstance(error, OSError) else None) or str(error)).lower()
        raise InputError(f"image '{path}': {words}", "check the path", id="input.image-missing") from error


def warn_of_alpha(picture: Picture) -> None:
    """Say that what is transparent became white."""
    if picture.alpha is not None and picture.alpha.min() < 255:
        console.warn(f"image '{picture.name}': its transparent parts are laid on white")


def name_after(picture: Picture, values: dict[str, Any]) -> None:
    """Have results without a prompt named after the picture."""
    values["unnamed"] = "" if picture.name == "-" else Path(picture.name).stem


def words(
    context: typer.Context,
    values: dict[str, Any],
    picture: Picture,
    command: str | None = None,
) -> tuple[str, ...]:
    """Return the prompts; where none is given, the picture's own; else an empty one, where the command may
    do without.

    Raises:
        UsageError: there is none, and a `command`, the example of a right one, is given.
    """
    prompts, found = context.params["prompts"], picture.says()
    if prompts:
        texts = sample.read_prompts(prompts)
    elif found is not None and found.prompt:
        console.detail(f"ddgen: the picture's own prompt: {found.prompt}")
        texts = (found.prompt,)
    elif command is not None:
        raise UsageError(
            "no prompt is given, and the picture says none",
            f"write one, as in: {command}",
            id="usage.prompt",
        )
    else:
        texts = ("",)
        name_after(picture, values)
    return wording.dress(context.params, values, texts)


def strength_of(text: str | None, default: float | None) -> float | None:
    """Read --strength.

    Raises:
        UsageError: no number, or one out of range.
    """
    if text is None:
        return default
    found = float(settings.read_flag("--strength", text, settings.number))  # type: ignore[arg-type]
    verbs.check_strength(found)
    return found


def pixels_of(flag: str, text: str | None, default: int, low: int, high: int) -> int:
    """Read a number of pixels.

    Raises:
        UsageError: no whole number, or one out of range.
    """
    found = default if text is None else int(settings.read_flag(flag, text, settings.whole))  # type: ignore[arg-type]
    if not low <= found <= high:
        raise UsageError(f"{flag} {found} is out of range", f"use {low} to {high}", id="usage.range")
    return found


def image_guidance_of(text: str | None, spec: Spec) -> float | None:
    """Read --image-guidance; None for models that have no use for it.

    Raises:
        UsageError: out of range, or given for such a model.
    """
    if verbs.reads(spec.arch) != "image":
        if text is not None:
            mend = "drop it, or choose an InstructPix2Pix --model"
            raise UsageError(
                f"model '{spec.name}' has no --image-guidance",
                mend,
                id="usage.image-guidance",
            )
        return None
    found = (
        verbs.INSTRUCTED if text is None else float(settings.read_flag("--image-guidance", text, settings.number))
    )  # type: ignore[arg-type]
    if not 0 <= found <= planning.MAX_GUIDANCE:
        raise UsageError(
            f"--image-guidance {found:g} is out of range",
            "use 1 to 2",
            id="usage.range",
        )
    return found


def refuse_special_inputs(spec: Spec, verb: str) -> None:
    """Refuse a model whose network reads a picture or a mask where a verb has none of its own for it.

    Raises:
        UsageError: it does.
    """
    kind = verbs.reads(spec.arch)
    if kind:
        made_for = {"mask": "inpainting", "image": "instructions"}[kind]
        raise UsageError(
            f"model '{spec.name}' is made for {made_for}, not to {verb}",
            "choose another --model",
            id="usage.model",
        )


def plan_jobs(request: Request, spec: Spec, edit: Edit, width: int, height: int) -> tuple[Request, list[Job]]:
    """Return the jobs of an edit at the network's size.

    Raises:
        UsageError: a setting out of range.
    """
    sized = replace(request, width=width, height=height)
    return sized, [replace(job, edit=edit) for job in planning.plan(sized, spec)]


def warn_of_loss(context: typer.Context, values: dict[str, Any]) -> None:
    """Say that a lossy format does not keep what is to be kept bit for bit."""
    from ddgen.app.naming import parse_output

    kind = parse_output(values["output"], values["format"]).format
    if kind == "jpeg" or (kind == "webp" and values["quality"] != 100):
        console.warn(f"{kind} changes every pixel a little; PNG keeps what is outside the mask as it is")
