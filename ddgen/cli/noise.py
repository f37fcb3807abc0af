"""`ddgen noise`: how a picture becomes noise, step by step under a schedule: what a network learns to
undo."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddgen.cli import console, drawing, flags, settings
from ddgen.errors import UsageError
from ddgen.io.metadata import SCHEMA, canonical

if TYPE_CHECKING:
    from ddgen.app.pipeline import Pipeline
    from ddgen.diffusion.schedule import Schedule
    from ddgen.io.images import Pixels
    from ddgen.weights.spec import Spec

EXAMPLES = """Examples:
  ddgen noise cat.jpg
  ddgen noise cat.jpg --schedule cosine --times 100,500,900 -o cat-noise.png
  ddgen noise cat.jpg --from-model sticker -o cat-noise.webp

A .png is a strip, a .gif or .webp an animation.
"""
DEFAULT_SCHEDULE = "scaled_linear"

Image = Annotated[
    str, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or WebP picture.", show_default=False)
]
Schedule_ = Annotated[
    str | None,
    flags.value(
        flags.PICTURE,
        "NAME",
        "scaled_linear, linear, cosine, flow, edm. [scaled_linear, or the model's]",
        "--schedule",
    ),
]
Times = Annotated[
    str | None,
    flags.value(flags.PICTURE, "LIST", "Times of that schedule, as 0,250,999. [8, or 48 frames]", "--times"),
]
FromModel = Annotated[
    str | None,
    flags.value(
        flags.MODEL, "NAME|PATH", "Add the noise in this model's latents, under its schedule.", "--from-model"
    ),
]
Output = Annotated[
    str | None,
    flags.value(
        flags.OUTPUT,
        "FILE",
        "A .png, .gif or .webp; '-' is standard output. [IMAGE-noise.png]",
        "--output",
        "-o",
    ),
]


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("noise", epilog=EXAMPLES)(noise)


def noise(
    image: Image,
    schedule: Schedule_ = None,
    times: Times = None,
    seed: flags.Seed = None,
    from_model: FromModel = None,
    weights_file: flags.WeightsFile = None,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    output: Output = None,
    force: flags.Force = False,
    json: flags.Json = False,
    progress: flags.Progress = None,
    color: flags.Color = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
) -> None:
    """Show how noise swallows a picture: x_t with sigma, alpha_bar and SNR at a few times."""
    given = {
        "seed": seed,
        "weights_file": weights_file,
        "device": device,
        "dtype": dtype,
        "progress": progress,
        "color": color,
    }
    values: dict[str, Any] = {
        name: found.value for name, found in settings.resolve(given, tuple(given)).items()
    }
    console.configure(color=values["color"], quiet=quiet, verbose=verbose, json=json)
    first = 0 if values["seed"] is None else values["seed"]
    if not isinstance(first, int):
        raise UsageError(
            f"--seed '{seed}' is a list, one picture has one noise", "give one, as --seed 7", id="usage.seed"
        )
    wanted = None if times is None else drawing.numbers("--times", times, "0,250,999")
    path = drawing.check(
        output, f"{Path(image).stem or 'image'}-noise", (".png", ".gif", ".webp"), force=force
    )

    from ddgen.io import figures, images
    from ddgen.weights import registry

    pixels = images.read_image(image)
    spec = registry.find(from_model, weights_file=values["weights_file"]) if from_model is not None else None

    from ddgen.app import noise_strip  # torch

    trained = schedule_of(schedule, spec)
    kind = "png" if path is None else figures.KINDS[path.suffix.lower()]
    chosen = wanted or noise_strip.spread(
        trained, noise_strip.COLUMNS if kind == "png" else noise_strip.FRAMES
    )
    noise_strip.check_times(trained, chosen)
    pipeline = None if spec is None else load(spec, values)
    pixels = figures.small(pixels, noise_strip.SIDE) if spec is None else fitted(pixels, spec)
    cells = list(noise_strip.noised(pixels, trained, chosen, first, pipeline))
    where = f", in the latents of {spec.name}" if spec is not None else ""
    title = f"From picture to noise: schedule {trained.kind}{where}"
    if kind == "png":
        pages = [noise_strip.strip(cells, title, trained)]
    else:
        pages = noise_strip.frames(cells, title)
    made = canonical(
        {"schema": SCHEMA, "kind": "noise", "schedule": trained.kind, "times": list(chosen), "seed": first}
    )
    data = figures.encode(pages, kind, figure=made)
    drawing.write(
        path, data, "noise", force=force, times=list(chosen), sigmas=[trained.sigma(time) for time in chosen]
    )


def schedule_of(name: str | None, spec: "Spec | None") -> "Schedule":
    """Return the schedule of a name, else of a model, else of Stable Diffusion.

    Raises:
        UsageError: an unknown name.
    """
    from ddgen.diffusion.schedule import ALIASES, KINDS, make_schedule
    from ddgen.errors import choose

    if name is not None:
        return make_schedule({"kind": choose("schedule", ALIASES.get(name, name), KINDS)})
    return make_schedule({"kind": DEFAULT_SCHEDULE} if spec is None else spec.schedule)


def load(spec: "Spec", values: dict[str, Any]) -> "Pipeline":
    """Return the model, fetched if it is not here."""
    from ddgen.app.assemble import assemble
    from ddgen.cli import pulling

    return assemble(pulling.here(spec, values["progress"]), device=values["device"], dtype=values["dtype"])


def fitted(pixels: "Pixels", spec: "Spec") -> "Pixels":
    """Return a picture at about the size that a model is made for, its shape kept, on the model's grid."""
    import numpy as np
    from PIL import Image as Pillow

    height, width = pixels.shape[:2]
    factor = max(spec.defaults.width, spec.defaults.height) / max(height, width) / spec.divisor
    sides = [max(1, round(side * factor)) * spec.divisor for side in (width, height)]
    return np.asarray(Pillow.fromarray(pixels).resize((sides[0], sides[1]), Pillow.Resampling.LANCZOS))
