"""`ddgen train DATA --out DIR`: train a model on, or from scratch, a LoRA or a new word, on pictures with captions."""

from typing import Any

import typer

from ddgen.cli import console, train_flags, training
from ddgen.cli import demo as story
from ddgen.cli.progress import MODES
from ddgen.errors import UsageError, choose
from ddgen.io import files

EXAMPLES = """Examples:
  ddgen train data/stickers --out runs/mine --minutes 30
  ddgen train photos --out runs/photos --steps 2000 --lr 2e-4 --optimizer adamw
  ddgen sample "a fox" --model runs/mine/model.safetensors
  ddgen train photos --out runs/style --model sd15 --lora --rank 8
  ddgen sample "a fox" --model sd15 --lora runs/style/lora.safetensors
  ddgen train --demo

Run the same command again to go on where a run was stopped or killed.
"""


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("train", epilog=EXAMPLES)(train)


def train(
    context: typer.Context,
    data: train_flags.Data = None,
    out: train_flags.Out = None,
    demo: train_flags.Demo = False,
    model: train_flags.Model = None,
    scratch: train_flags.Scratch = False,
    part: train_flags.Part = "unet",
    lora: train_flags.Lora = False,
    rank: train_flags.Rank = None,
    alpha: train_flags.Alpha = None,
    lora_on: train_flags.LoraOn = None,
    lora_text: train_flags.LoraText = False,
    lora_format: train_flags.LoraFormat = None,
    embedding_token: train_flags.EmbeddingToken = None,
    vectors: train_flags.Vectors = None,
    like: train_flags.Like = None,
    steps: train_flags.Steps = None,
    minutes: train_flags.Minutes = None,
    batch: train_flags.Batch = None,
    accumulate: train_flags.Accumulate = 1,
    buckets: train_flags.Buckets = False,
    optimizer: train_flags.Optimizer = "adamw",
    lr: train_flags.Lr = None,
    muon_lr: train_flags.MuonLr = 0.02,
    warmup: train_flags.Warmup = 100,
    hold: train_flags.Hold = 0.0,
    average: train_flags.Average = None,
    dropout: train_flags.Dropout = 0.1,
    high_noise: train_flags.HighNoise = None,
    weighting: train_flags.Weighting = None,
    target: train_flags.Target = "picture",
    seed: train_flags.Seed = 0,
    bf16: train_flags.Bf16 = False,
    fp16: train_flags.Fp16 = False,
    recompute: train_flags.Recompute = False,
    memory: train_flags.Memory = 4096,
    device: train_flags.Device = "auto",
    report_every: train_flags.ReportEvery = 50,
    save_every: train_flags.SaveEvery = None,
    sheet_every: train_flags.SheetEvery = None,
    sheet_prompt: train_flags.SheetPrompt = None,
    tensorboard: train_flags.Tensorboard = False,
    dry_run: train_flags.DryRun = False,
    progress: train_flags.Progress = "auto",
    quiet: train_flags.Quiet = False,
) -> None:
    """Train a model on your own pictures: its U-Net, its autoencoder, a LoRA, or the vectors of a new word.

    DIR gets the model (or LoRA, or embedding), the state to go on from, a log, the loss curve and sheets of pictures.
    """
    console.manners.quiet = quiet
    choose("progress", progress, MODES)
    if demo:
        return story.follow(context)
    choose("part", part, ("unet", "first-stage", "decoder"))
    choose("target", target, ("picture", "mean"))
    data, out = training.needed(data, out)
    kind = training.kind(
        part,
        lora=lora,
        embedding=embedding_token,
        scratch=scratch,
        of_lora={
            "rank": rank,
            "alpha": alpha,
            "lora-on": lora_on,
            "lora-text": lora_text or None,
            "lora-format": lora_format,
        },
        of_embedding={"vectors": vectors, "like": like},
    )
    own = training.DEFAULTS[kind]
    given = {
        "steps": steps,
        "batch": batch,
        "lr": lr,
        "average": average,
        "high_noise": high_noise,
        "weighting": weighting,
        "save_every": save_every,
    }
    chosen: dict[str, Any] = {name: own[name] if value is None else value for name, value in given.items()}
    training.check(
        optimizer,
        lr=chosen["lr"],
        muon_lr=muon_lr,
        minutes=minutes,
        alpha=alpha,
        shares={
            "hold": hold,
            "average": chosen["average"],
            "dropout": dropout,
            "high-noise": chosen["high_noise"],
        },
    )
    if bf16 and fp16:
        raise UsageError("--bf16 and --fp16 exclude each other", "choose one", id="usage.precision")
    training.refuse_idle(context, part, optimizer)
    files.probe_directory(out)
    from ddgen.app import processes
    from ddgen.app.dataset import Dataset
    from ddgen.app.first_stage import FirstStageTrainer
    from ddgen.app.pipeline import Pipeline
    from ddgen.app.train import Settings, Trainer
    from ddgen.diffusion.loss import WEIGHTINGS

    choose("weighting", chosen["weighting"], WEIGHTINGS)
    settings = Settings(
        part=part,
        **chosen,
        minutes=minutes,
        optimizer=optimizer,
        muon_lr=muon_lr,
        warmup=warmup,
        hold=hold,
        dropout=dropout,
        target=target,
        seed=seed,
        bf16=bf16,
        fp16=fp16,
        scratch=scratch,
        accumulate=accumulate,
        recompute=recompute,
        fixed=training.FIXED[kind],
        budget=memory * 10**6,
        report_every=report_every,
    )
    group = processes.join()
    if not group.first:
        console.manners.quiet, progress = True, "none"
    pipeline = Pipeline.load(model, device=device, dtype="float32")
    defaults = pipeline.spec.defaults
    examples = Dataset(
        data,
        defaults.width,
        defaults.height,
        bucket=training.bucket(pipeline.spec) if buckets else None,
        budget=settings.budget,
        word=embedding_token,
    )
    if group.first and not dry_run:
        context.call_on_close(training.hold(out).release)
    trainer = (Trainer if part == "unet" else FirstStageTrainer)(
        pipeline,
        examples,
        out,
        settings,
        training.subject(
            pipeline,
            kind,
            seed=seed,
            lora={
                "rank": rank or 8,
                "alpha": float(rank or 8) if alpha is None else alpha,
                "on": lora_on or "attention",
                "text": lora_text,
                "dialect": lora_format or "kohya",
            },
            word={"word": embedding_token, "vectors": vectors or 1, "like": like},
        ),
        group,
    )
    console.say(f"ddgen: {len(examples)} pictures, step {trainer.step} of {settings.steps}")
    if dry_run:
        training.say_forecast(trainer)
        group.end()
        return
    training.follow(
        trainer,
        progress=progress,
        prompts=sheet_prompt,
        every=training.SHEETS[kind] if sheet_every is None else sheet_every,
        tensorboard=tensorboard,
    )
    group.end()
    if group.first:
        console.out(str(out / training.FILES[kind]))
