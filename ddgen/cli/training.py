"""The talk and the checks of `ddgen train`: what goes together, what a run will take, how far it is."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddgen.cli import console, process
from ddgen.cli.progress import make_progress
from ddgen.errors import UsageError, choose
from ddgen.io import files

if TYPE_CHECKING:
    import typer

    from ddgen.app.ledger import Lock
    from ddgen.app.pipeline import Pipeline
    from ddgen.app.subjects import Subject
    from ddgen.app.train import Trainer
    from ddgen.weights.spec import Spec

SAMPLES = 8  # prompts of a sheet while it runs
# What a run has unless it is told: a whole network, a LoRA, a new word.
_WHOLE = {
    "steps": 10_000,
    "batch": 16,
    "lr": 1e-3,
    "average": 0.998,
    "high_noise": 0.3,
    "weighting": "capped",
    "save_every": 500,
}
_LORA = {
    "steps": 1000,
    "batch": 4,
    "lr": 5e-4,
    "average": 0.99,
    "high_noise": 0.0,
    "weighting": "output",
    "save_every": 100,
}
_WORD = _LORA | {"steps": 1500, "lr": 5e-3}
DEFAULTS = {"whole": _WHOLE, "lora": _LORA, "embedding": _WORD}
FILES = {"whole": "model.safetensors", "lora": "lora.safetensors", "embedding": "embedding.safetensors"}
SHEETS = {"whole": 1000, "lora": 250, "embedding": 250}  # steps between them
FIXED = {"whole": 64, "lora": 16, "embedding": 16}  # pictures of the fixed set

OF_UNET = ("target", "weighting", "dropout", "high_noise", "recompute")  # parameters that the autoencoder has no use for


def needed(data: Path | None, out: Path | None) -> tuple[Path, Path]:
    """Return both of what every run but the demo needs.

    Raises:
        UsageError: one is missing.
    """
    if data is None or out is None:
        lacking = "DATA" if data is None else "--out"
        raise UsageError(
            f"{lacking} is missing", "give 'ddgen train DATA --out DIR', or --demo", id="usage.missing"
        )
    return data, out


def bucket(spec: "Spec") -> int:
    """Return what the sides of other sizes are multiples of: 64 pixels, as usual, or what a small model takes."""
    usual = math.lcm(spec.divisor, 64)
    return usual if usual * 4 <= min(spec.defaults.width, spec.defaults.height) else spec.divisor


def hold(out: Path) -> "Lock":
    """Return the right to write into a run's directory, which this process now has.

    Raises:
        BusyError: another run has it, named by its pid. OutputError: the directory cannot be made or written.
    """
    from ddgen.app.ledger import Lock, Shard

    return Lock(out, Shard())


def follow(
    trainer: "Trainer", *, progress: str, prompts: list[str] | None, every: int, tensorboard: bool
) -> None:
    """Train to the end, showing how far it is; sheets of the prompts (or the first captions) after every so many
    steps. A signal ends the run after the step in hand, saved; one of several processes cannot stop alone.
    """
    from ddgen.app import runfiles, sheet

    first, out, board = trainer.processes.first, trainer.out, None
    if tensorboard and first:
        from ddgen.app.board import Board

        board = Board(out, trainer.step)
    texts = dict.fromkeys(next(iter(example.captions)) for example in trainer.data.examples)
    told = prompts or list(texts)[:SAMPLES]
    shown = trainer.step
    heard = []

    def stop(number: int) -> None:
        heard.append(number)
        trainer.stopping = True
        process.write_error("\nddgen: stopping after this step; again to quit now\n")

    if trainer.processes.count == 1:
        process.at_first_signal(stop)
    with make_progress(progress, trainer.settings.steps - trainer.step, "steps") as bar:
        for report in trainer.run():
            bar.advance(report.step - shown, f"loss {report.loss:.4f}, fixed {report.fixed:.4f}")
            if board is not None:
                board.add(report)
            if first and every and report.step // every > shown // every:
                png = sheet.sheet(trainer.sampler(), told, (0, 1, 2, 3))
                files.publish(out / runfiles.SAMPLES / f"step-{report.step:06d}.png", png, force=True)
                if board is not None:
                    board.show(png, report.step)
            shown = report.step
            console.detail(f"ddgen: step {report.step}, loss {report.loss:.4f}, fixed {report.fixed:.4f}")
    if board is not None:
        board.close()
    if heard and not trainer.over():
        console.say(f"ddgen: interrupted; step {trainer.step} is saved; run the same command to go on")
        process.end_by(heard[0])


def kind(
    part: str,
    *,
    lora: bool,
    embedding: str | None,
    scratch: bool,
    of_lora: dict[str, Any],
    of_embedding: dict[str, Any],
) -> str:
    """Return what is trained: "whole", "lora" or "embedding"; refuse flags that belong to another."""
    wanted = {
        "--lora": lora,
        "--embedding-token": embedding is not None,
        "--scratch": scratch,
        "--part": part != "unet" and not scratch,
    }
    chosen = [name for name, on in wanted.items() if on]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other", "choose one", id="usage.train")
    for on, flags, owner in (
        (lora, of_lora, "--lora"),
        (embedding is not None, of_embedding, "--embedding-token"),
    ):
        loose = [name for name, value in flags.items() if value is not None]
        if loose and not on:
            raise UsageError(f"--{loose[0]} goes with {owner}", f"add {owner}", id="usage.train")
    if lora:
        choose("lora-on", of_lora["lora-on"] or "attention", ("attention", "transformer", "all"))
        choose("lora-format", of_lora["lora-format"] or "kohya", ("kohya", "peft"))
        return "lora"
    if embedding is not None and not (embedding.strip() and len(embedding.split()) == 1 and len(embedding) <= 64):
        raise UsageError(
            f"--embedding-token {embedding!r} is not one word", "give a word such as <mine>", id="usage.train"
        )
    return "whole" if embedding is None else "embedding"


def given(context: "typer.Context") -> "Iterator[Any]":
    """Yield the parameters that somebody gave."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and not source.name.startswith("DEFAULT"):
            yield parameter


def refuse_idle(context: "typer.Context", part: str, optimizer: str) -> None:
    """Refuse flags that a run would not heed."""
    for parameter in given(context):
        if part != "unet" and parameter.name in OF_UNET:
            raise UsageError(f"{parameter.opts[0]} is for the U-Net", "leave it away", id="usage.train")
        if optimizer != "muon" and parameter.name == "muon_lr":
            raise UsageError("--muon-lr goes with --optimizer muon", "add --optimizer muon", id="usage.train")


def subject(
    pipeline: "Pipeline", kind: str, *, seed: int, lora: dict[str, Any], word: dict[str, Any]
) -> "Subject | None":
    """Return what is trained in place of a whole network; None for that."""
    from ddgen.app.new_word import NewWord
    from ddgen.app.subjects import LowRankChange

    if kind == "lora":
        return LowRankChange(pipeline, seed=seed, **lora)
    return NewWord(pipeline, seed=seed, **word) if kind == "embedding" else None


def say_forecast(trainer: "Trainer") -> None:
    """Say what a run will take."""
    from ddgen.app.forecast import forecast

    found, settings = forecast(trainer), trainer.settings
    console.say(f"ddgen: {found.trained:,} parameters are trained")
    for name, size in found.memory.items():
        console.say(f"ddgen: {name}: about {size / 1e6:,.0f} MB")
    peak = "" if found.peak is None else f", {found.peak / 1e9:.2f} GB at most on the device"
    console.say(f"ddgen: together about {found.total / 1e9:.2f} GB{peak}, and what the libraries take")
    minutes = max(0, settings.steps - trainer.step) * found.step / 60
    if settings.minutes is not None:
        minutes = min(minutes, max(0.0, settings.minutes - trainer.seconds / 60))
    console.say(f"ddgen: {found.step:.2f} s per step of {trainer.size} pictures, about {minutes:,.0f} min in all")


def check(
    optimizer: str,
    *,
    lr: float,
    muon_lr: float,
    minutes: float | None,
    alpha: float | None,
    shares: dict[str, float],
) -> None:
    """Refuse settings that no run can use, before torch is loaded."""
    choose("optimizer", optimizer, ("adamw", "muon"))
    optional = {"minutes": minutes, "alpha": alpha}
    numbers = {"lr": lr, "muon-lr": muon_lr} | {k: v for k, v in optional.items() if v is not None}
    for name, value in numbers.items():
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
