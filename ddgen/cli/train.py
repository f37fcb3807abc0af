"""`ddgen train DATA --out DIR`: train a model on, or from scratch, on a folder of pictures with captions."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ddgen.cli import console
from ddgen.cli.complete import complete_model
from ddgen.cli.progress import MODES, make_progress
from ddgen.errors import UsageError, choose
from ddgen.io import files

EXAMPLES = """Examples:
  ddgen train data/stickers --out runs/mine --minutes 30
  ddgen train photos --out runs/photos --steps 2000 --lr 2e-4 --optimizer adamw
  ddgen sample "a fox" --model runs/mine/model.safetensors

Run the same command again to go on where a run was stopped or killed.
"""
SAMPLES = 8  # prompts of a sheet while it runs


def option(help: str, *names: str, metavar: str, **more: Any) -> Any:
    """Return the declaration of a flag that takes a value."""
    return typer.Option(*names, metavar=metavar, help=help, **more)


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("train", epilog=EXAMPLES)(train)


def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder with metadata.jsonl, or with a .txt beside each picture.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, option("Directory of the run.", "--out", "-o", metavar="DIR", show_default=False)],
    model: Annotated[
        str | None,
        option(
            "Model to train on. [the default one]",
            "--model",
            "-m",
            metavar="NAME",
            autocompletion=complete_model,
            show_default=False,
        ),
    ] = None,
    scratch: Annotated[
        bool,
        typer.Option(
            "--scratch",
            help="Forget the part's weights and draw new ones; its shape and the text tower stay.",
        ),
    ] = False,
    part: Annotated[
        str, option("What to train: unet, first-stage (the autoencoder), or its decoder.", "--part", metavar="NAME")
    ] = "unet",
    steps: Annotated[int, option("Where the run ends.", "--steps", metavar="N", min=1)] = 10_000,
    minutes: Annotated[
        float | None,
        option("End earlier, after so much training time.", "--minutes", metavar="MIN", show_default=False),
    ] = None,
    batch: Annotated[int, option("Pictures per step.", "--batch-size", "-b", metavar="N", min=1)] = 16,
    optimizer: Annotated[
        str, option("adamw, or muon for the matrices.", "--optimizer", metavar="NAME")
    ] = "adamw",
    lr: Annotated[float, option("Peak learning rate of AdamW.", "--lr", metavar="RATE")] = 1e-3,
    muon_lr: Annotated[float, option("Peak learning rate of Muon.", "--muon-lr", metavar="RATE")] = 0.02,
    warmup: Annotated[int, option("Steps until the peak.", "--warmup", metavar="N", min=0)] = 100,
    hold: Annotated[
        float, option("Share of the run before the rate falls, linearly to 0.", "--hold", metavar="0..1")
    ] = 0.0,
    average: Annotated[
        float, option("Limit of the weights' moving average.", "--average", metavar="0..1")
    ] = 0.998,
    dropout: Annotated[
        float, option("Share of empty captions, for guidance.", "--dropout", metavar="0..1")
    ] = 0.1,
    high_noise: Annotated[
        float,
        option("Extra share of high noise, where the layout is decided.", "--high-noise", metavar="0..1"),
    ] = 0.3,
    weighting: Annotated[
        str,
        option("Weight of each noise level: capped, output, x0 or min_snr.", "--weighting", metavar="NAME"),
    ] = "capped",
    target: Annotated[
        str,
        option(
            "What estimates are compared with: picture, or mean of all that fit the caption and the noise.",
            "--target",
            metavar="NAME",
        ),
    ] = "picture",
    seed: Annotated[
        int, option("Seed of the run: batches, noise, fresh weights.", "--seed", "-s", metavar="N", min=0)
    ] = 0,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Compute in bfloat16; much faster where the processor has it.")
    ] = False,
    device: Annotated[str, option("auto, cpu, cuda, cuda:N or mps.", "--device", metavar="NAME")] = "auto",
    report_every: Annotated[
        int, option("Steps between lines of the log.", "--report-every", metavar="N", min=1)
    ] = 50,
    save_every: Annotated[
        int, option("Steps between checkpoints.", "--save-every", metavar="N", min=1)
    ] = 500,
    sheet_every: Annotated[
        int, option("Steps between sheets of pictures; 0: none.", "--sheet-every", metavar="N", min=0)
    ] = 1000,
    sheet_prompt: Annotated[
        list[str] | None,
        option(
            "A prompt of the sheets; may be given again. [the first captions]",
            "--sheet-prompt",
            metavar="TEXT",
            show_default=False,
        ),
    ] = None,
    progress: Annotated[str, option("auto, bar, log, json or none.", "--progress", metavar="MODE")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Train a model's U-Net, or its autoencoder, on your own pictures; the text tower stays as it is.

    DIR gets the model, the state to go on from, a log, the loss curve and sheets of pictures.
    """
    console.manners.quiet = quiet
    choose("progress", progress, MODES)
    choose("part", part, ("unet", "first-stage", "decoder"))
    choose("target", target, ("picture", "mean"))
    _check(
        optimizer,
        lr=lr,
        muon_lr=muon_lr,
        minutes=minutes,
        shares={"hold": hold, "average": average, "dropout": dropout, "high-noise": high_noise},
    )
    files.probe_directory(out)
    from ddgen.app import runfiles, sheet
    from ddgen.app.dataset import Dataset
    from ddgen.app.first_stage import FirstStageTrainer
    from ddgen.app.pipeline import Pipeline
    from ddgen.app.train import Settings, Trainer
    from ddgen.diffusion.loss import WEIGHTINGS

    choose("weighting", weighting, WEIGHTINGS)
    settings = Settings(
        part=part,
        steps=steps,
        minutes=minutes,
        batch=batch,
        optimizer=optimizer,
        lr=lr,
        muon_lr=muon_lr,
        warmup=warmup,
        hold=hold,
        average=average,
        dropout=dropout,
        high_noise=high_noise,
        weighting=weighting,
        target=target,
        seed=seed,
        bf16=bf16,
        scratch=scratch,
        report_every=report_every,
        save_every=save_every,
    )
    pipeline = Pipeline.load(model, device=device, dtype="float32")
    defaults = pipeline.spec.defaults
    examples = Dataset(data, defaults.width, defaults.height)
    kind = Trainer if part == "unet" else FirstStageTrainer
    trainer = kind(pipeline, examples, out, settings)
    console.say(f"ddgen: {len(examples)} pictures, step {trainer.step} of {steps}")
    prompts = (
        sheet_prompt
        or list(dict.fromkeys(next(iter(example.captions)) for example in examples.examples))[:SAMPLES]
    )
    shown = trainer.step
    with make_progress(progress, steps - trainer.step, "steps") as bar:
        for report in trainer.run():
            bar.advance(report.step - shown, f"loss {report.loss:.4f}, fixed {report.fixed:.4f}")
            if sheet_every and report.step // sheet_every > shown // sheet_every:
                target = out / runfiles.SAMPLES / f"step-{report.step:06d}.png"
                files.publish(target, sheet.sheet(trainer.sampler(), prompts, (0, 1, 2, 3)), force=True)
            shown = report.step
            console.detail(f"ddgen: step {report.step}, loss {report.loss:.4f}, fixed {report.fixed:.4f}")
    console.out(str(out / runfiles.MODEL))


def _check(
    optimizer: str, *, lr: float, muon_lr: float, minutes: float | None, shares: dict[str, float]
) -> None:
    """Refuse settings that no run can use, before torch is loaded."""
    choose("optimizer", optimizer, ("adamw", "muon"))
    for name, value in {"lr": lr, "muon-lr": muon_lr, "minutes": 1.0 if minutes is None else minutes}.items():
        if not (math.isfinite(value) and value > 0):
            raise UsageError(
                f"--{name} {value}: must be above 0", "give a positive number", id="usage.number"
            )
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise UsageError(
                f"--{name} {value}: must be at least 0 and below 1",
                "give a share such as 0.1",
                id="usage.number",
            )
