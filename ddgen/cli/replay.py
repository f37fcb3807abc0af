"""`ddgen replay` and `ddgen verify`: a picture made again from what it says about itself, for its own sake or
to compare.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddgen.app import remade, replaying
from ddgen.app.naming import Names, parse_output
from ddgen.cli import console, flags, sample_run, settings
from ddgen.cli.meta import interpreted, read_all
from ddgen.cli.progress import make_progress
from ddgen.errors import DdgenError, InputError, ModelError
from ddgen.io import containers, metadata
from ddgen.io.foreign import Found
from ddgen.request import Job
from ddgen.weights import registry
from ddgen.weights.spec import Spec

if TYPE_CHECKING:
    from ddgen.app.produce import Saving
    from ddgen.app.render import Renderer

REPLAY = """Examples:
  ddgen replay apple.png
  ddgen replay apple.png --steps 50 --seed 8 -o again/
  ddgen replay apple.png --plan
  ddgen replay from-a1111.png --model sd15

Whichever tool wrote the picture, as far as ddgen has the same model and sampler.
"""
VERIFY = """Examples:
  ddgen verify apple.png
  ddgen verify out/*.png --json

Exit code 0: equal bytes, or equal within 1/255. 4: different, with the largest difference and a likely cause.
"""
CHANGES = (
    "seed",
    "width",
    "height",
    "steps",
    "guidance",
    "guidance_rescale",
    "guidance_interval",
    "sampler",
    "spacing",
    "sigmas",
    "eta",
    "scale",
    "prompt_syntax",
    "rng",
)
ABOUT_MODEL = ("vae", "prediction", "clip_skip", "refiner", "refiner_start")
RUNNING = ("device", "dtype", "offload", "text_backend", "progress", "color", "weights_file", "model")

Image = Annotated[
    str, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or WebP with metadata.", show_default=False)
]
Images = Annotated[
    list[str], typer.Argument(metavar="IMAGE...", help="Pictures that ddgen made.", show_default=False)
]
Prompt = Annotated[
    str | None, flags.value(flags.PICTURE, "TEXT", "Another prompt. [the picture's]", "--prompt")
]


@dataclass(frozen=True)
class Original:
    """A picture to make again: its bytes, what it says, the model and job behind it."""

    path: Path
    data: bytes
    found: Found
    spec: Spec
    job: Job


def register(app: typer.Typer) -> None:
    """Declare the commands."""
    app.command("replay", epilog=REPLAY)(replay)
    app.command("verify", epilog=VERIFY)(verify)


def replay(
    context: typer.Context,
    image: Image,
    prompt: Prompt = None,
    negative: flags.Negative = None,
    seed: flags.Seed = None,
    width: flags.Width = None,
    height: flags.Height = None,
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
    prompt_syntax: flags.PromptSyntax = None,
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
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    offload: flags.Offload = None,
    text_backend: flags.TextBackend = None,
    output: flags.Output = None,
    force: flags.Force = False,
    plan: flags.Plan = False,
    format: flags.Format = None,
    quality: flags.Quality = None,
    metadata: flags.Metadata = None,
    json: flags.Json = False,
    progress: flags.Progress = None,
    color: flags.Color = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
) -> None:
    """Make a picture again from what it says about itself, with changes if you like."""
    given = dict(context.params)
    running = {
        name: found.value
        for name, found in settings.resolve(given, (*RUNNING, "quality", "metadata")).items()
    }
    console.configure(color=running["color"], quiet=quiet, verbose=verbose, json=json)
    asked = {name: given[name] for name in CHANGES if given[name] is not None}
    changes = {name: settings.resolve({name: text}, (name,))[name].value for name, text in asked.items()}
    changes |= {"prompt": prompt} if prompt is not None else {}
    changes |= {"negative": ", ".join(negative)} if negative else {}
    target = parse_output(output, settings.resolve({"format": format}, ("format",))["format"].value)
    names = Names(target, force=force)
    original = open_original(image, model, running, changes, about_model(given))
    names.check(1, look_only=plan)
    if model is None and original.found.tool != "ddgen":
        said = original.found.rest
        theirs = said.get("model") or said.get("Model") or "unknown"
        console.warn(f"made by {original.found.tool} with model '{theirs}'; here with '{original.spec.name}'")
    if plan:
        sample_run.show_plan([original.job], None if target.kind == "stdout" else names, grid=False)
        sample_run.show_memory(original.spec, original.job, 1)
        return
    renderer = load(original.spec, running, saving(target.format, running["quality"], running["metadata"]))
    data, _ = render(renderer, original, running, "")
    if target.kind == "stdout":
        console.out_bytes(data)
        return
    from ddgen.app.produce import publish

    path = publish(names, lambda: names.path(original.job, 1), data)
    if json:
        console.out_json(
            {"type": "image", "path": str(path), "prompt": original.job.prompt, "seed": original.job.seed}
        )
    else:
        console.out(str(path))


def verify(
    context: typer.Context,
    images: Images,
    model: flags.Model = None,
    weights_file: flags.WeightsFile = None,
    lora: flags.Lora = None,
    embedding: flags.Embedding = None,
    vae: flags.Vae = None,
    refiner: flags.Refiner = None,
    refiner_start: flags.RefinerStart = None,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    offload: flags.Offload = None,
    text_backend: flags.TextBackend = None,
    quality: flags.Quality = None,
    json: flags.Json = False,
    progress: flags.Progress = None,
    color: flags.Color = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
) -> None:
    """Make pictures again and compare: equal bytes, equal within 1/255, or different and why."""
    running = {
        name: found.value
        for name, found in settings.resolve(dict(context.params), (*RUNNING, "quality")).items()
    }
    console.configure(color=running["color"], quiet=quiet, verbose=verbose, json=json)
    renderers: dict[str, Renderer] = {}
    different = 0
    about = about_model(context.params)
    originals = [open_original(image, model, running, {}, about) for image in images]
    for original in originals:
        kind = containers.kind_of(original.data)
        key = repr(original.spec)
        if key not in renderers:
            renderers[key] = load(original.spec, running, saving(kind, running["quality"], "full"))
        verdict = compare(renderers[key], original, running, kind)
        different += verdict.kind == "different"
        tell(original.path, verdict)
    if different:
        raise typer.Exit(InputError.exit_code)


def about_model(given: dict[str, Any]) -> dict[str, Any]:
    """Return what the flags say about the model, by the names of adjust(); what the environment says is not
    meant for pictures that are there already."""
    asked = {name: given[name] for name in ABOUT_MODEL if given.get(name) is not None}
    found = {name: settings.resolve({name: text}, (name,))[name].value for name, text in asked.items()}
    found |= {"ema": True} if given.get("ema") else {}
    return found | {f"{name}s": given[name] for name in ("lora", "embedding") if given.get(name)}


def open_original(
    image: str, model: str | None, running: dict[str, Any], changes: dict[str, Any], about: dict[str, Any]
) -> Original:
    """Return a picture with the model and job that it describes.

    about: what the user says about the model instead of the picture.

    Raises:
        InputError: it says nothing, or not enough. ModelError: its model is not known here.
    """
    path, data = next(read_all([image]))
    found = interpreted(path, data)
    if found is None:
        raise InputError(
            f"image '{path}' says nothing that ddgen can read", "see 'ddgen meta json'", id="input.metadata"
        )
    said = found.rest.get("model") if found.tool == "ddgen" else None
    if model is None and said is not None and not is_name(said, running["weights_file"]):
        what = f"image '{path}' was made with model '{said}', unknown here"
        raise ModelError(what, "give it with --model", id="model.unknown-name")
    spec = registry.find(model if model is not None else said, weights_file=running["weights_file"])
    try:
        spec = remade.spec_of(found, spec, about, running["weights_file"])
    except ModelError as error:
        raise ModelError(f"image '{path}': {error.message}", error.hint, id=error.id) from None
    try:
        return Original(path, data, found, spec, replaying.job_of(found, spec, changes))
    except DdgenError as error:
        raise InputError(f"image '{path}': {error.message}", error.hint, id="input.replay") from None


def is_name(model: str, weights_file: str | None) -> bool:
    """Tell whether a picture's word for its model is a name of the registry; a path is never followed."""
    known = registry.entries(weights_file)
    return model in known or any(model in entry.aliases for entry in known.values())


def saving(format: str, quality: int, level: str) -> "Saving":
    """Return how pictures are written."""
    from ddgen.app.produce import Saving

    return Saving(format, quality, level)


def load(spec: Spec, running: dict[str, Any], how: "Saving") -> "Renderer":
    """Return a warm pipeline."""
    from ddgen.app.assemble import assemble
    from ddgen.app.render import Renderer

    loaded = assemble(
        spec,
        device=running["device"],
        dtype=running["dtype"],
        text_backend=running["text_backend"],
        offload=running["offload"],
    )
    return Renderer(loaded, how, running["text_backend"])


def render(
    renderer: "Renderer", original: Original, running: dict[str, Any], id: str, *, scored: bool = False
) -> tuple[bytes, "metadata.Origin"]:
    """Return the bytes of the picture made again, and what made it. scored: it was the best of several, and says how
    good it is.

    Raises:
        DdgenError: it could not be made.
    """
    from ddgen.app.outcome import Missed
    from ddgen.app.tasks import Contest, Place, Task

    steps = original.job.steps
    with make_progress(running["progress"], steps, "steps") as bar:
        contest = Contest(1, (Place(id, original.path),)) if scored else None
        task = Task(original.job, id, original.path, contest=contest)
        outcome = next(renderer([task], lambda step, steps, images: bar.advance(1, original.job.prompt)))
    if isinstance(outcome, Missed):
        raise outcome.error
    assert outcome.data is not None
    return outcome.data, renderer.origin(original.job)


def compare(
    renderer: "Renderer", original: Original, running: dict[str, Any], kind: str
) -> replaying.Verdict:
    """Make a picture again, in its own format, and compare."""
    from ddgen.app.produce import Saving
    from ddgen.io.images import read_image

    record = original.found.record
    renderer.saving = Saving(kind, running["quality"], "full" if "prompt" in record.get("job", {}) else "min")
    data, origin = render(renderer, original, running, str(record.get("id", "")), scored="score" in record)
    causes = replaying.differences(record, origin, original.found.tool)
    old, new = (read_image(original.path, bytes_) for bytes_ in (original.data, data))
    return replaying.compare(old, new, same_bytes=data == original.data, causes=causes)


def tell(path: Path, verdict: replaying.Verdict) -> None:
    """Print a verdict."""
    if console.manners.json:
        record = {"type": "verdict", "path": str(path), "verdict": verdict.kind, "largest": verdict.largest}
        console.out_json({**record, "causes": list(verdict.causes)})
        return
    by = f", by up to {verdict.largest}/255" if verdict.kind == "different" else ""
    console.out(f"{path}: {verdict.kind}{by}")
    if verdict.kind == "different":
        for cause in verdict.causes:
            console.say(f"ddgen: likely cause: {cause}")
