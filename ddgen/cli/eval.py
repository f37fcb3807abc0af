"""`ddgen eval MODEL...`: figures of models on a fixed suite of prompts, as a page with the pictures."""

import json as jsons
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddgen.cli import console, flags, settings
from ddgen.cli.progress import make_progress
from ddgen.errors import OutputError, UsageError
from ddgen.io import files

if TYPE_CHECKING:
    from ddgen.weights.spec import Spec

EXAMPLES = """Examples:
  ddgen data build stickers data/stickers
  ddgen eval sticker --data data/stickers -o report
  ddgen eval sticker runs/mine/model.safetensors --data data/stickers -o report --seed 0-1
  ddgen eval sticker --data data/stickers -o quick --steps 4
"""
EVALUATION = "Evaluation"
DRAWN = ("steps", "guidance", "sampler", "spacing")  # settings of a model that the command line may replace

Models = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Names of 'ddgen models', files or folders.", show_default=False)
]
Data = Annotated[
    Path,
    flags.value(EVALUATION, "DIR", "What 'ddgen data build stickers' wrote: the pictures it is measured against.", "--data"),
]
Suite = Annotated[
    list[Path] | None,
    flags.value(EVALUATION, "FILE", "Rows of JSON, as prompts/eval/*.jsonl; may be given again. [the built-in suite]", "--suite"),
]
Variety = Annotated[
    str | None, flags.value(EVALUATION, "N", "Seeds of the three prompts whose variety is measured. [16]", "--variety")
]
Seeds = Annotated[str | None, flags.value(EVALUATION, "SEEDS", "Seeds of every prompt. [0-3]", "--seed", "-s")]
Out = Annotated[Path, flags.value(flags.OUTPUT, "DIR", "Where report.html and figures.json go.", "--output", "-o")]


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("eval", epilog=EXAMPLES)(evaluate)


def evaluate(
    models: Models,
    data: Data,
    output: Out,
    suite: Suite = None,
    seed: Seeds = None,
    variety: Variety = None,
    steps: flags.Steps = None,
    guidance: flags.Guidance = None,
    sampler: flags.Sampler = None,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    force: flags.Force = False,
    json: flags.Json = False,
    progress: flags.Progress = None,
    color: flags.Color = None,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Measure how well models follow prompts, how much they vary, and whether they only copy.

    The judge was trained on emoji sets that the embedded model never saw, and is asked about real pictures first.
    """
    console.configure(color=color if color is not None else "auto", quiet=quiet, verbose=0, json=json)
    asked = settings.read_flag("--seed", seed, settings.seeds) if seed is not None else (0, 1, 2, 3)
    seeds = asked if isinstance(asked, tuple) else (asked,)
    many = 16 if variety is None else settings.read_flag("--variety", variety, settings.whole)
    if many < 0 or many == 1:
        raise UsageError(f"--variety {many} compares nothing", "use 2 or more, or 0 for none", id="usage.range")
    from ddgen.app import suite as suites
    from ddgen.weights import registry

    rows = suites.build() if suite is None else list(suites.read(suite))
    # An unknown name is told before anything is made.
    specs = [asked_for(registry.find(model), steps, guidance, sampler) for model in models]
    names = [spec.name for spec in specs]
    labels = [name if names.count(name) == 1 else model for name, model in zip(names, models, strict=True)]
    targets = [output / "report.html", output / "figures.json"]
    files.probe_directory(output)
    for target in targets:
        if files.exists(target) and not force:
            raise OutputError(f"'{target}' exists", "use --force to replace it, or another --output", id="output.exists")

    from ddgen.app import evaluate as work
    from ddgen.app import judge, report, scoring
    from ddgen.app.assemble import assemble

    real = work.read_real(data)
    court, scorer = work.court_of(judge.load(), real), scoring.embedded()
    asked_rows = len(rows)
    rows = [row for row in rows if set(row.concepts) <= set(court.listed)]
    if rows and len(rows) < asked_rows:
        left = asked_rows - len(rows)
        console.say(f"ddgen: {left} of {asked_rows} rows are about things that the data set does not have: left out")
    if not rows:
        raise UsageError("no row of the suite is about a thing of the data set", "build the data anew", id="usage.suite")
    console.say("ddgen: asking the evaluator about real pictures first")
    checked = work.check(court, rows)
    figures = []
    total = len(specs) * work.pictures_to_make(rows, seeds, many)
    with make_progress(progress if progress is not None else "auto", total, "pictures") as bar:
        for called, spec in zip(labels, specs, strict=True):
            pipeline = assemble(spec, device=device or "auto", dtype=dtype or "auto")
            found = work.evaluate(pipeline, rows, seeds, court, real, scorer, variety=many, told=bar.advance)
            figures.append(replace(found, model=called))
    shares = {kind: {"right": right, "of": of} for kind, (right, of) in checked.items()}
    drawn = [{name: getattr(spec.defaults, name) for name in DRAWN} for spec in specs]
    told = [item.plain(checked) | {"settings": each} for item, each in zip(figures, drawn, strict=True)]
    plain = {"evaluator": shares, "models": told}
    files.publish(targets[1], (jsons.dumps(plain, indent=1) + "\n").encode(), force=force)
    files.publish(targets[0], report.page(figures, checked), force=force)
    if json:
        console.out_json({"type": "eval", "report": str(targets[0]), **plain})
        return
    for line in report.lines(figures, checked):
        console.say(line)
    console.out(str(targets[0]))


def asked_for(spec: "Spec", steps: str | None, guidance: str | None, sampler: str | None) -> "Spec":
    """Return a model whose own settings are those of the command line.

    Raises:
        UsageError: a setting that is unknown or out of range.
    """
    from ddgen.app.plan import resolve
    from ddgen.request import Request

    request = Request(
        ("",),
        steps=None if steps is None else settings.read_flag("--steps", steps, settings.whole),
        guidance=None if guidance is None else settings.read_flag("--guidance", guidance, settings.number),
        sampler=sampler,
    )
    found = resolve(request, spec)
    return replace(spec, defaults=replace(spec.defaults, **{name: found[name] for name in DRAWN}))
