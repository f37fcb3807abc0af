"""`ddgen compare`: one prompt under every combination of several settings, as one labelled table."""

import gc
import json as jsons
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddgen.app import compare as tables
from ddgen.app import plan as planning
from ddgen.cli import console, drawing, flags, keeping, pulling, sample_run, settings
from ddgen.cli.progress import make_progress
from ddgen.cli.sample import adjusted, make_request, read_prompts
from ddgen.request import Job
from ddgen.weights import registry
from ddgen.weights.spec import Spec

if TYPE_CHECKING:
    from ddgen.app.pipeline import Pipeline
    from ddgen.io.images import Pixels

EXAMPLES = """Examples:
  ddgen compare "a red apple" --guidance 1,3,7 --steps 4,10,25
  ddgen compare "a fox" --sampler ddim,euler_ancestral,dpmpp_2m --steps 5,10,20 --guidance 1,4
  ddgen compare "a fox" "a penguin" --seed 1-4 -o animals.png

The first list runs down, the second across, the third makes blocks. The command of every cell stands in the
PNG, in the text 'ddgen-figure', which 'ddgen meta json' prints; -v prints the commands.
"""
RUNNING = ("device", "dtype", "text_backend", "vae", "weights_file")

Output = Annotated[
    str | None,
    flags.value(
        flags.OUTPUT, "FILE", "A .png; '-' is standard output. [PROMPT-compare.png]", "--output", "-o"
    ),
]


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("compare", epilog=EXAMPLES)(compare)


def compare(
    context: typer.Context,
    prompts: flags.Prompts = None,
    negative: flags.Negative = None,
    prompt_syntax: flags.PromptSyntax = None,
    seed: flags.Seed = None,
    width: flags.Width = None,
    height: flags.Height = None,
    steps: flags.Steps = None,
    guidance: flags.Guidance = None,
    guidance_rescale: flags.GuidanceRescale = None,
    guidance_interval: flags.GuidanceInterval = None,
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
    batch_size: flags.BatchSize = None,
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
    """Make one picture under many settings, as a labelled table.

    Give two or three settings a list: --guidance, --steps, --sampler, --spacing, --seed, --eta,
    --guidance-rescale or --rng, or give several prompts.
    """
    given = dict(context.params)
    axes, single = read_axes(given)
    given |= single
    given["negative"] = ", ".join(negative) if negative else None
    given["offline"] = "1" if offline else None
    values: dict[str, Any] = {name: found.value for name, found in settings.resolve(given).items()}
    console.configure(color=values["color"], quiet=quiet, verbose=verbose, json=json)
    words = read_prompts(prompts)
    if len(words) > 1:
        axes = [tables.Axis("prompt", words), *axes]
    tables.check(axes)
    spec = adjusted(registry.find(values["model"], weights_file=values["weights_file"]), values, lora, None)
    jobs = plan(axes, words, values, spec)
    if values["batch_size"] is not None:
        planning.check_batch_size(values["batch_size"])
    from ddgen.app.naming import slug

    path = drawing.check(output, f"{slug(words[0])}-{jobs[0].seed}-compare", (".png",), force=force)
    size = " x ".join(str(len(axis.values)) for axis in axes)
    console.say(f"ddgen: {spec.name}, {size} cells, seed {jobs[0].seed}")
    if values["offline"]:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
    spec = pulling.here(spec, values["progress"])
    keeping.ask(values["keep_alive"])

    from ddgen.app.assemble import assemble

    loaded = assemble(
        spec, device=values["device"], dtype=values["dtype"], text_backend=values["text_backend"]
    )
    gc.freeze()
    gc.enable()
    pictures = make(loaded, jobs, values)
    running = [
        word for name in RUNNING if given.get(name) for word in (settings.flag_name(name), str(given[name]))
    ]
    running += [word for name in lora or () for word in ("--lora", name)]
    running += ["--model", model] if model is not None else []
    cells = tables.record(axes, jobs, sample_run.origin_of(loaded, jobs[0], values), running)
    for cell in cells:
        console.detail(str(cell["command"]))
    from ddgen.io import figures
    from ddgen.io import metadata as texts

    plain = values["metadata"] == "none"
    mark = texts.Metadata() if plain else texts.Metadata(xmp=texts.xmp_packet(""))
    made = {"schema": texts.SCHEMA, "kind": "compare", "weights": dict(loaded.digests), "cells": cells}
    drawn = tables.figure(axes, pictures, tables.title(axes, jobs[0]))
    data = figures.encode([drawn], "png", mark, "" if plain else jsons.dumps(made))
    drawing.write(path, data, "compare", force=force, cells=cells)


def read_axes(given: Mapping[str, Any]) -> tuple[list[tables.Axis], dict[str, str]]:
    """Return the settings that have several values, in the order typed, and the first value of each."""
    axes, single = [], {}
    for name in given:
        text = given[name]
        if (
            name not in tables.AXES
            or not isinstance(text, str)
            or not (set(text) & set(",-") if name == "seed" else "," in text)
        ):
            continue
        parts = [part.strip() for part in text.split(",")]
        if name == "seed":
            read = settings.resolve({"seed": text}, ("seed",))["seed"].value
            parts = [str(seed) for seed in read] if isinstance(read, tuple) else [text]
        if len(parts) > 1:
            axes.append(tables.Axis(name, tuple(parts)))
        single[name] = parts[0]
    return axes, single


def plan(
    axes: Sequence[tables.Axis], words: Sequence[str], values: Mapping[str, Any], spec: Spec
) -> list[Job]:
    """Return the job of every cell, planned as `sample` plans it.

    Raises:
        UsageError: a value that is unknown or out of range.
    """
    shared = {**values, "num": 1}
    if shared["seed"] is None:
        shared["seed"] = planning.draw_seed()
    jobs = []
    for place in tables.places(axes):
        chosen = {axis.name: axis.values[at] for axis, at in zip(axes, place, strict=True)}
        prompt = chosen.pop("prompt", words[0])
        read = (
            {name: found.value for name, found in settings.resolve(chosen, tuple(chosen)).items()}
            if chosen
            else {}
        )
        request = make_request({**shared, **read}, (prompt,), spec, None, None)
        jobs += planning.plan(request, spec)
    return jobs


def make(loaded: "Pipeline", jobs: Sequence[Job], values: Mapping[str, Any]) -> "list[Pixels]":
    """Return the picture of every job; those of one grid go through the network together.

    Raises:
        ResourceError: out of memory.
    """
    from ddgen.app import pipeline

    made: dict[int, Any] = {}
    with make_progress(values["progress"], sum(job.steps for job in jobs), "steps") as bar:
        for members in tables.groups(jobs, values["batch_size"]):
            batch = [jobs[index] for index in members]
            note = f"{batch[0].sampler}, {batch[0].steps} steps"
            try:
                pictures = pipeline.run(loaded, batch, lambda step, steps: bar.advance(len(batch), note))
            except Exception as error:
                if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
                    raise sample_run.too_large(batch, str(loaded.device)) from error
                raise
            made |= dict(zip(members, pictures, strict=True))
    return [made[index] for index in range(len(jobs))]
