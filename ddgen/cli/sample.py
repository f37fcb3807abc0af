"""`ddgen sample`: prompts in, pictures out.

Everything that can be checked is checked before a model, or torch, is loaded.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from ddgen.app import plan as planning
from ddgen.app.naming import Names, parse_output
from ddgen.cli import console, flags, picking, process, sample_run, settings, wording
from ddgen.errors import InputError, UsageError
from ddgen.io import metadata
from ddgen.request import Job, Request
from ddgen.weights import registry
from ddgen.weights.spec import Spec

EXAMPLES = """Examples:
  ddgen sample "a red apple"
  ddgen sample "a fox" "a penguin" -n 4 --seed 7 --grid
  ddgen sample "a penguin" -n 8 --best 2
  ddgen sample "a tulip" --sampler euler --steps 40 --scale 4 -o tulip.png
  ddgen sample "a tulip" --sampler ddpm --steps 1000 --filmstrip film.png
  echo "a tulip" | ddgen sample - -o - > tulip.png
  ddgen sample "a fox" -n 100 -o "out/{prompt:.40}/{seed}.png" --plan

A flag --a-b with a value can also be set as DDGEN_A_B or in config.toml; see 'ddgen config show --origin'.
"""


SWITCHES = ("ema", "offline", "transparent")  # flags without a value that are settings too


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("sample", epilog=EXAMPLES)(sample)


def sample(
    context: typer.Context,
    prompts: flags.Prompts = None,
    negative: flags.Negative = None,
    prompt_syntax: flags.PromptSyntax = None,
    style: flags.Style = None,
    styles_file: flags.StylesFile = None,
    expand: flags.Expand = False,
    wildcards: flags.Wildcards = None,
    strict_tokens: flags.StrictTokens = False,
    num: flags.Num = None,
    best: flags.Best = None,
    scorer: flags.Scorer = None,
    seed: flags.Seed = None,
    width: flags.Width = None,
    height: flags.Height = None,
    size: flags.Size = None,
    ar: flags.Ratio = None,
    scale: flags.Scale = None,
    steps: flags.Steps = None,
    guidance: flags.Guidance = None,
    guidance_rescale: flags.GuidanceRescale = None,
    guidance_interval: flags.GuidanceInterval = None,
    sampler: flags.Sampler = None,
    spacing: flags.Spacing = None,
    sigmas: flags.Sigmas = None,
    eta: flags.Eta = None,
    rng: flags.Rng = None,
    tile: flags.Tile = None,
    transparent: flags.Transparent = False,
    variation: flags.Variation = None,
    variation_seed: flags.VariationSeed = None,
    model: flags.Model = None,
    weights_file: flags.WeightsFile = None,
    lora: flags.Lora = None,
    embedding: flags.Embedding = None,
    vae: flags.Vae = None,
    prediction: flags.Prediction = None,
    clip_skip: flags.ClipSkip = None,
    ema: flags.Ema = False,
    refiner: flags.Refiner = None,
    refiner_start: flags.RefinerStart = None,
    control: flags.Control = None,
    control_model: flags.ControlModel = None,
    image_prompt: flags.ImagePrompt = None,
    image_prompt_model: flags.ImagePromptModel = None,
    image_encoder: flags.ImageEncoder = None,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    offload: flags.Offload = None,
    text_backend: flags.TextBackend = None,
    batch_size: flags.BatchSize = None,
    offline: flags.Offline = False,
    keep_alive: flags.KeepAlive = None,
    output: flags.Output = None,
    force: flags.Force = False,
    format: flags.Format = None,
    quality: flags.Quality = None,
    grid: flags.Grid = False,
    metadata: flags.Metadata = None,
    filmstrip: flags.Filmstrip = None,
    filmstrip_steps: flags.FilmstripSteps = None,
    plan: flags.Plan = False,
    json: flags.Json = False,
    null: flags.Null = False,
    progress: flags.Progress = None,
    preview: flags.Preview = False,
    color: flags.Color = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
    version: flags.Version = False,
) -> None:
    """Make pictures from prompts.

    The paths of the pictures go to standard output, everything else to standard error.
    """
    values, spec = settle(context)
    words = wording.dress(context.params, values, read_prompts(prompts))
    request = make_request(values, words, spec, size, ar)
    jobs = list(planning.plan(request, spec))
    draw = None
    if filmstrip is not None or filmstrip_steps is not None:
        from ddgen.cli import filming

        draw = filming.prepare(filmstrip, filmstrip_steps, jobs, values, force=force)
    if any((control, control_model, image_prompt, image_prompt_model, image_encoder)):
        from ddgen.app import canvas, verbs
        from ddgen.cli import controls

        if draw is not None:
            other = "--control" if control or control_model else "--image-prompt"
            raise UsageError(f"--filmstrip does not go with {other}", "drop one of them", id="usage.control")
        width, height = jobs[0].width, jobs[0].height
        steered = controls.prepare(context.params, jobs, lambda pixels: canvas.fit(pixels, width, height, "crop"))
        jobs, draw = steered.jobs, verbs.whole(None, steered.controls, steered.pictures)
    deliver(context, values, spec, request, jobs, draw=draw)


def show_pictures() -> None:
    """Have finished pictures shown in the terminal.

    Raises:
        UsageError: there is none, or what draws them is not installed.
    """
    from ddgen.cli import preview

    preview.check()
    console.manners.preview = True


def settle(context: typer.Context) -> tuple[dict[str, Any], Spec]:
    """Return the settings of a command with the flags of `sample`, and the model with what they change about it.

    Raises:
        DdgenError: a flag that cannot be read, or goes against another; a model or file that is not there.
    """
    # Most parameters are settings, read by their names from the context; `debug` was seen before the parsing.
    given = dict(context.params)
    given["negative"] = ", ".join(given["negative"]) if given["negative"] else None
    for name in SWITCHES:
        given[name] = "1" if given.get(name) else None
    values: dict[str, Any] = {name: found.value for name, found in settings.resolve(given).items()}
    console.configure(color=values["color"], quiet=given["quiet"], verbose=given["verbose"], json=given["json"])
    if given["preview"]:
        show_pictures()
    size, ar = given.get("size"), given.get("ar")
    sides = given.get("width") is not None or given.get("height") is not None
    if (size is not None or ar is not None) and (sides or (size is not None and ar is not None)):
        raise UsageError(
            "--size, --ar and --width/--height say the same thing", "keep one of them", id="usage.size"
        )
    spec = registry.find(values["model"], weights_file=values["weights_file"])
    return values, adjusted(spec, values, given["lora"], given["embedding"])


def deliver(
    context: typer.Context,
    values: dict[str, Any],
    spec: Spec,
    request: Request,
    jobs: list[Job],
    draw: sample_run.Draw | None = None,
    steps: int | None = None,
) -> None:
    """Make the pictures of the jobs, or show what would be made.

    draw, steps: what makes a batch, and how many steps all take; None: from the prompts alone.
    """
    given = context.params
    if given["strict_tokens"]:
        wording.check_length(request.prompts, request.prompt_syntax, request.steps or spec.defaults.steps)
    each = len(jobs) // len(request.prompts)
    pick = picking.read(given.get("best"), given.get("scorer"), each)
    made = len(jobs) if pick is None else pick.keep * len(request.prompts)
    names = check_output(
        values, jobs, force=given["force"], grid=given["grid"], look_only=given["plan"], images=made
    )
    for remark in planning.remarks(request, spec):
        console.warn(remark)
    if given["plan"]:
        sample_run.show_plan(jobs, names, grid=given["grid"])
        sample_run.show_memory(spec, jobs[0], values["batch_size"])
    else:
        end = "\0" if given["null"] else "\n"
        sample_run.make(jobs, names, spec, values, grid=given["grid"], end=end, draw=draw, steps=steps, pick=pick)


def read_prompts(words: Sequence[str] | None) -> tuple[str, ...]:
    """Return the prompts: as given, '-' replaced by standard input, which is also read when nothing is given
    and it is piped.

    Raises:
        UsageError: there is none.
        InputError: standard input cannot be read.
    """
    given = list(words or (["-"] if process.input_is_piped() else []))
    if not given:
        raise UsageError(
            "no prompt is given", 'write one, as in: ddgen sample "a red apple"', id="usage.prompt"
        )
    if given.count("-") > 1:
        raise UsageError("standard input is named twice", "give '-' once", id="usage.prompt")
    return tuple(read_input(asked=bool(words)) if word == "-" else word for word in given)


def read_input(*, asked: bool) -> str:
    """Return standard input as one prompt, without the line's end; `asked`: the user wrote '-'.

    Raises:
        UsageError: it is a terminal, or holds nothing and nobody named it.
        InputError: it is closed, or not UTF-8.
    """
    if process.is_closed(0):
        raise InputError(
            "standard input is closed", 'give the prompt itself: ddgen sample "a red apple"', id="input.stdin"
        )
    if process.is_terminal(0):
        raise UsageError(
            "standard input is a terminal",
            'pipe a prompt in, or give it itself: ddgen sample "a red apple"',
            id="usage.stdin",
        )
    data = process.read_input()
    try:
        text = data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input: invalid UTF-8 at byte {error.start} (\\x{data[error.start]:02x})",
            "convert it: iconv -f latin1 -t utf-8 FILE | ddgen sample -",
            id="input.encoding",
        ) from error
    if not text and not asked:
        raise UsageError(
            "no prompt is given", 'write one, as in: ddgen sample "a red apple"', id="usage.prompt"
        )
    return text


def make_request(
    values: Mapping[str, Any], prompts: tuple[str, ...], spec: Spec, size: str | None, ratio: str | None
) -> Request:
    """Return what was typed as a Request, its random seed drawn.

    Raises:
        UsageError: a size or ratio that cannot be read.
    """
    width, height = values["width"], values["height"]
    if size is not None:
        width, height = map(int, _two(size, "--size", "x", r"[0-9]{1,6}", "512x768"))
    if ratio is not None:
        width, height = planning.size_of_ratio(
            spec, *map(float, _two(ratio, "--ar", ":", r"[0-9]{1,4}(?:\.[0-9]{1,4})?", "16:9"))
        )
    plain = (
        "negative", "num", "steps", "guidance", "guidance_rescale", "guidance_interval", "sampler", "spacing",
        "sigmas", "eta", "scale", "prompt_syntax", "rng", "tile", "transparent", "variation", "variation_seed",
    )  # fmt: skip
    seed = values["seed"] if values["seed"] is not None else planning.draw_seed()
    return Request(prompts, seed=seed, width=width, height=height, **{name: values[name] for name in plain})


def adjusted(
    spec: Spec, values: Mapping[str, Any], loras: Sequence[str] | None, embeddings: Sequence[str] | None
) -> Spec:
    """Return the Spec with what the flags change about the model.

    Raises:
        UsageError: a value out of range. ModelError: a file that is not there, or of no use to the model.
    """
    names = ("vae", "prediction", "clip_skip", "refiner", "refiner_start")
    if not loras and not embeddings and not values["ema"] and all(values[name] is None for name in names):
        return spec
    from ddgen.app.adjust import adjust

    return adjust(
        spec,
        loras=loras or (),
        embeddings=embeddings or (),
        vae=values["vae"],
        prediction=values["prediction"],
        clip_skip=values["clip_skip"],
        ema=values["ema"],
        refiner=values["refiner"],
        refiner_start=values["refiner_start"],
        weights_file=values["weights_file"],
    )


def check_output(
    values: Mapping[str, Any],
    jobs: Sequence[Job],
    *,
    force: bool,
    grid: bool,
    look_only: bool,
    images: int | None = None,
) -> Names | None:
    """Return the names of the pictures' files (None: they go to standard output) after looking for all that
    stands against them. images: how many will be written, None = one a job.

    Raises:
        UsageError: contradicting flags.
        OutputError: a place that cannot be written, a name that is taken.
    """
    target = parse_output(values["output"], values["format"])
    planning.check_quality(values["quality"])
    planning.check_alpha(jobs, target.format)
    if values["batch_size"] is not None:
        planning.check_batch_size(values["batch_size"])
    for job in {job.prompt: job for job in jobs}.values():
        metadata.check_fits(metadata.describe(job, metadata.Origin(), values["metadata"]), target.format)
    names = Names(target, force=force, unnamed=values.get("unnamed", ""))
    count = len(jobs) if images is None else images
    names.check(1 if grid and target.kind == "stdout" else count, look_only=look_only)
    if target.kind != "stdout":
        return names
    if console.manners.json:
        raise UsageError(
            "--json and --output '-' both want standard output", "drop one of them", id="usage.stdout"
        )
    if process.is_terminal(1) and not look_only:
        raise UsageError(
            "refusing to write a picture to a terminal",
            "redirect it with '>FILE' or use --output FILE",
            id="usage.stdout-terminal",
        )
    return None


def _two(text: str, flag: str, mark: str, pattern: str, example: str) -> tuple[str, str]:
    match = re.fullmatch(rf"\s*({pattern}){mark}({pattern})\s*", text)
    if match is None or not float(match[1]) or not float(match[2]):
        raise UsageError(f"{flag} '{text}' cannot be read", f"use two numbers, as {example}", id="usage.size")
    return match[1], match[2]
