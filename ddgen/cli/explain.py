"""`ddgen explain`: which word acts where, and what guidance does, in one picture."""

import gc
import os
from typing import Annotated, Any

import typer

from ddgen.app import plan as planning
from ddgen.cli import console, drawing, flags, keeping, pulling, sample_run, settings
from ddgen.cli.progress import make_progress
from ddgen.cli.sample import adjusted, make_request, read_prompts
from ddgen.errors import UsageError
from ddgen.text import words as texts
from ddgen.weights import registry

EXAMPLES = """Examples:
  ddgen explain "a red apple with a green leaf"
  ddgen explain "a red apple with a green leaf" --words apple,leaf --at 3 -o leaf.png
"""

Words = Annotated[
    str | None,
    flags.value(flags.PICTURE, "LIST", "The words to show, as red,apple. [all, 24 at most]", "--words"),
]
At = Annotated[
    str | None,
    flags.value(
        flags.SAMPLING, "STEP", "The step whose estimates are shown, from 1. [an eighth of all]", "--at"
    ),
]
Output = Annotated[
    str | None,
    flags.value(
        flags.OUTPUT, "FILE", "A .png; '-' is standard output. [PROMPT-explain.png]", "--output", "-o"
    ),
]


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("explain", epilog=EXAMPLES)(explain)


def explain(
    context: typer.Context,
    prompts: flags.Prompts = None,
    words: Words = None,
    at: At = None,
    negative: flags.Negative = None,
    prompt_syntax: flags.PromptSyntax = None,
    seed: flags.Seed = None,
    width: flags.Width = None,
    height: flags.Height = None,
    steps: flags.Steps = None,
    guidance: flags.Guidance = None,
    guidance_rescale: flags.GuidanceRescale = None,
    sampler: flags.Sampler = None,
    spacing: flags.Spacing = None,
    eta: flags.Eta = None,
    rng: flags.Rng = None,
    model: flags.Model = None,
    weights_file: flags.WeightsFile = None,
    lora: flags.Lora = None,
    vae: flags.Vae = None,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    text_backend: flags.TextBackend = None,
    offline: flags.Offline = False,
    output: Output = None,
    force: flags.Force = False,
    metadata: flags.Metadata = None,
    json: flags.Json = False,
    progress: flags.Progress = None,
    color: flags.Color = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
) -> None:
    """Show what each word of a prompt does, and what guidance does.

    Heat maps tell where the picture reads each word; then the picture at one step without the prompt, with
    it, and guided.
    """
    given = dict(context.params)
    given["negative"] = ", ".join(negative) if negative else None
    given["offline"] = "1" if offline else None
    values: dict[str, Any] = {name: found.value for name, found in settings.resolve(given).items()}
    console.configure(color=values["color"], quiet=quiet, verbose=verbose, json=json)
    found = read_prompts(prompts)
    if len(found) != 1:
        raise UsageError(f"explain reads one prompt, not {len(found)}", "quote it", id="usage.explain")
    spec = adjusted(registry.find(values["model"], weights_file=values["weights_file"]), values, lora, None)
    job, *others = planning.plan(
        make_request({**values, "num": 1, "scale": 1}, found, spec, None, None), spec
    )
    if others:
        raise UsageError("explain shows one picture", "give one --seed", id="usage.explain")
    shown, tokens, states = texts.read(job.prompt, job.steps, job.prompt_syntax)
    shown = texts.choose_words(shown, None if words is None else words.split(","))
    step = read_step(at, job.steps)
    from ddgen.app.naming import slug

    path = drawing.check(output, f"{slug(job.prompt)}-{job.seed}-explain", (".png",), force=force)
    console.say(f"ddgen: {spec.name}, {sample_run.describe(job)}, seed {job.seed}")
    if values["offline"]:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
    spec = pulling.here(spec, values["progress"])
    keeping.ask(values["keep_alive"])

    from ddgen.app import explain as looking
    from ddgen.app.assemble import assemble
    from ddgen.io import figures
    from ddgen.io import metadata as marks

    if len(shown) > looking.MAX_WORDS:
        console.warn(
            f"the first {looking.MAX_WORDS} of {len(shown)} words are shown; choose some with --words"
        )
        shown = shown[: looking.MAX_WORDS]
    loaded = assemble(
        spec, device=values["device"], dtype=values["dtype"], text_backend=values["text_backend"]
    )
    gc.freeze()
    gc.enable()
    with make_progress(values["progress"], job.steps, "steps") as bar:
        seen = looking.watch(loaded, job, shown, states, step, lambda step, steps: bar.advance(1, job.prompt))
    plain = values["metadata"] == "none"
    mark = marks.Metadata() if plain else marks.Metadata(xmp=marks.xmp_packet(""))
    data = figures.encode([looking.figure(job, shown, tokens, seen, step)], "png", mark)
    shares = [
        {"word": word.text, "percent": round(share, 1)}
        for word, share in zip(shown, seen.shares, strict=True)
    ]
    drawing.write(
        path, data, "explain", force=force, tokens=tokens, words=shares, step=step, sigma=seen.sigma
    )


def read_step(text: str | None, steps: int) -> int:
    """Return the step whose estimates are shown.

    Raises:
        UsageError: no whole number, or not a step of the run.
    """
    if text is None:
        return max(1, round(steps / 8))
    step = drawing.whole_numbers("--at", text, "3")
    if len(step) != 1 or not 1 <= step[0] <= steps:
        raise UsageError(
            f"--at {text} is out of range of a run of {steps} steps", f"use 1 to {steps}", id="usage.range"
        )
    return step[0]
