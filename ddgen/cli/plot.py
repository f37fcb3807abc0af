"""`ddgen plot`: schedules and spacings as curves, in the terminal or as a PNG or SVG."""

import shutil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddgen.cli import console, drawing, flags, settings
from ddgen.diffusion.samplers import SAMPLERS, parse_sampler
from ddgen.diffusion.spacing import SPACINGS, make_spacing, spacing_name
from ddgen.errors import DdgenError, UsageError, nearest
from ddgen.request import MAX_STEPS
from ddgen.weights import registry

if TYPE_CHECKING:
    from ddgen.diffusion.schedule import Schedule

EXAMPLES = """Examples:
  ddgen plot schedule
  ddgen plot schedule scaled_linear cosine sticker -o schedules.svg
  ddgen plot spacing --steps 10
  ddgen plot spacing karras linspace --model sticker --steps 20 -o spacings.png

Without --output the curves are drawn in the terminal.
"""
USUAL_SCHEDULES = ("scaled_linear", "linear", "cosine", "flow")
USUAL_SPACINGS = ("karras", "exponential", "linspace", "sgm_uniform", "leading", "trailing", "beta")
USUAL_STEPS = 12
MAX_NAMES = 10

Schedules = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME...",
        help="Schedules (scaled_linear, linear, cosine, flow, edm) or models. [all but edm]",
        show_default=False,
    ),
]
Spacings = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME...", help="Spacings. [the seven common ones]", show_default=False),
]
Output = Annotated[
    str | None,
    flags.value(
        flags.OUTPUT, "FILE", "A .png or .svg, drawn by matplotlib. [the terminal]", "--output", "-o"
    ),
]


def register(app: typer.Typer) -> None:
    """Declare the commands."""
    group = typer.Typer(help="Draw schedules and spacings as curves.", rich_markup_mode=None, epilog=EXAMPLES)
    group.command("schedule")(schedule)
    group.command("spacing")(spacing)
    app.add_typer(group, name="plot")


def schedule(
    names: Schedules = None,
    weights_file: flags.WeightsFile = None,
    output: Output = None,
    force: flags.Force = False,
    json: flags.Json = False,
    color: flags.Color = None,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Draw sigma and SNR over the trained time: how fast schedules turn pictures into noise."""
    values = prepare({"weights_file": weights_file, "color": color}, quiet=quiet, json=json)
    chosen = tuple(dict.fromkeys(names or USUAL_SCHEDULES))
    check_count(chosen)
    path = place(output, "schedule", force=force)
    from ddgen.app import plots

    curves = [plots.curve(name, schedule_named(name, values["weights_file"])) for name in chosen]
    if path is not None or output == "-":
        kind = "png" if path is None else path.suffix[1:].lower()
        drawing.write(path, plots.schedule_figure(curves, kind), "plot", force=force, schedules=list(chosen))
    elif json:
        for name, item in zip(chosen, curves, strict=True):
            console.out_json(
                {"type": "schedule", "name": name, "times": item.times[::20], "sigmas": item.sigmas[::20]}
            )
    else:
        for line in plots.schedule_text(curves, columns()):
            console.out(line)


def spacing(
    names: Spacings = None,
    steps: flags.Steps = None,
    sampler: flags.Sampler = None,
    model: flags.Model = None,
    weights_file: flags.WeightsFile = None,
    output: Output = None,
    force: flags.Force = False,
    json: flags.Json = False,
    color: flags.Color = None,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Draw where the steps of a run fall between noise and picture, spacing by spacing."""
    given = {"steps": steps, "sampler": sampler, "model": model, "weights_file": weights_file, "color": color}
    values = prepare(given, quiet=quiet, json=json)
    count = USUAL_STEPS if values["steps"] is None else values["steps"]
    if not 1 <= count <= MAX_STEPS:
        raise UsageError(f"--steps {count} is out of range", f"use 1 to {MAX_STEPS}", id="usage.range")
    discard = values["sampler"] is not None and SAMPLERS[parse_sampler(values["sampler"])[0]].discard
    chosen = tuple(dict.fromkeys(spacing_name(name) for name in names or USUAL_SPACINGS))
    check_count(chosen)
    spec = registry.find(values["model"], weights_file=values["weights_file"])
    path = place(output, "spacing", force=force)
    from ddgen.app import plots
    from ddgen.diffusion.schedule import make_schedule

    trained = make_schedule(spec.schedule)
    grids = []
    for name in chosen:
        try:
            grids.append((name, make_spacing(name, trained, count, discard=discard)))
        except DdgenError as error:
            if names:
                raise
            console.warn(f"left out: {error.message}")
    if not grids:
        raise UsageError(
            f"no spacing has {count} steps on model '{spec.name}'", "use --steps 10", id="usage.range"
        )
    reach = f"sigma {trained.sigma_max:.4g} to {trained.sigma_min:.2g}"
    title = f"{count} steps on {spec.name} ({trained.kind}, {reach})"
    if path is not None or output == "-":
        kind = "png" if path is None else path.suffix[1:].lower()
        data = plots.spacing_figure(grids, trained, kind, title)
        drawing.write(path, data, "plot", force=force, spacings=[name for name, _ in grids])
    elif json:
        for name, grid in grids:
            console.out_json({"type": "spacing", "name": name, "sigmas": grid.sigmas})
    else:
        console.out(title)
        for line in plots.spacing_text(grids, trained, columns()):
            console.out(line)


def prepare(given: dict[str, str | None], *, quiet: bool, json: bool) -> dict[str, Any]:
    """Return the settings that a plot needs."""
    values = {name: found.value for name, found in settings.resolve(given, tuple(given)).items()}
    console.configure(color=str(values["color"]), quiet=quiet, verbose=0, json=json)
    return values


def place(output: str | None, name: str, *, force: bool) -> Any:
    """Return the file to draw, after looking whether it can be drawn; None: the terminal, or standard output.

    Raises:
        UsageError: another format. OutputError: a place that cannot be written. ResourceError: no matplotlib.
    """
    if output is None:
        return None
    from ddgen.app.plots import check_matplotlib

    path = drawing.check(output, name, (".png", ".svg"), force=force)
    check_matplotlib()
    return path


def schedule_named(name: str, weights_file: str | None) -> "Schedule":
    """Return a schedule by its name, or that of a model.

    Raises:
        UsageError: neither is known.
    """
    from ddgen.diffusion.schedule import ALIASES, KINDS, make_schedule

    kind = ALIASES.get(name, name)
    if kind in KINDS:
        return make_schedule({"kind": kind})
    if name in registry.entries(weights_file) or registry.looks_like_path(name):
        return make_schedule(registry.find(name, weights_file=weights_file).schedule)
    close = nearest(name, [*KINDS, *registry.entries(weights_file)])
    mend = f"did you mean '{close}'?" if close is not None else "one of: " + ", ".join(KINDS) + ", or a model"
    raise UsageError(f"'{name}' is no schedule and no model", mend, id="usage.schedule")


def check_count(names: tuple[str, ...]) -> None:
    """Refuse more curves than anybody can tell apart.

    Raises:
        UsageError: more than ten.
    """
    if len(names) > MAX_NAMES:
        raise UsageError(
            f"{len(names)} curves are over the limit of {MAX_NAMES}", "name fewer", id="usage.plot"
        )


def columns() -> int:
    """Return how wide the terminal is, or 100 columns where there is none."""
    return min(140, shutil.get_terminal_size((100, 24)).columns)
