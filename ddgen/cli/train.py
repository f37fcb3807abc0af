"""`ddgen train DATA --out DIR`: train a model on, or from scratch, a LoRA or a new word, on pictures with captions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ddgen.cli import console, training
from ddgen.cli import demo as story
from ddgen.cli.complete import complete_model
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


def option(help: str, *names: str, metavar: str, **more: Any) -> Any:
    """Return the declaration of a flag that takes a value."""
    return typer.Option(*names, metavar=metavar, help=help, **more)


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("train", epilog=EXAMPLES)(train)


def train(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="Folder with metadata.jsonl or .csv, with a .txt beside each picture, or webdataset shards.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, option("Directory of the run.", "--out", "-o", metavar="DIR", show_default=False)
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="The whole story in minutes, on shapes drawn by code; no DATA.")
    ] = False,
    model: Annotated[
        str | None,
        option(
            "Model to train on. [the default one]", "--model", "-m", metavar="NAME",
            autocompletion=complete_model, show_default=False,
        ),  # fmt: skip
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
    lora: Annotated[
        bool, typer.Option("--lora", help="Train a LoRA: low-rank changes of the attention layers, or of more.")
    ] = False,
    rank: Annotated[
        int | None, option("Rank of the LoRA. [8]", "--rank", metavar="N", min=1, max=1024, show_default=False)
    ] = None,
    alpha: Annotated[
        float | None,
        option("Its alpha: it acts times alpha / rank. [the rank]", "--alpha", metavar="A", show_default=False),
    ] = None,
    lora_on: Annotated[
        str | None,
        option(
            "What the LoRA changes: attention; transformer: feed-forward and projections too; all: convolutions too. [attention]",
            "--lora-on",
            metavar="WHAT",
            show_default=False,
        ),
    ] = None,
    lora_text: Annotated[
        bool, typer.Option("--lora-text", help="Train the LoRA on the text towers too.")
    ] = False,
    lora_format: Annotated[
        str | None,
        option("Names in its file: kohya or peft. [kohya]", "--lora-format", metavar="NAME", show_default=False),
    ] = None,
    embedding_token: Annotated[
        str | None,
        option(
            "Train the vectors of this new word alone (textual inversion).",
            "--embedding-token",
            metavar="WORD",
            show_default=False,
        ),
    ] = None,
    vectors: Annotated[
        int | None,
        option("How many vectors the word has. [1]", "--vectors", metavar="N", min=1, max=75, show_default=False),
    ] = None,
    like: Annotated[
        str | None,
        option("A known word that it starts from. [none]", "--like", metavar="WORD", show_default=False),
    ] = None,
    steps: Annotated[
        int | None,
        option(
            "Where the run ends. [10000; a LoRA 1000, a word 1500]",
            "--steps",
            metavar="N",
            min=1,
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        option("End earlier, after so much training time.", "--minutes", metavar="MIN", show_default=False),
    ] = None,
    batch: Annotated[
        int | None,
        option(
            "Pictures per step (and part, and process). [16; a LoRA or word 4]",
            "--batch-size",
            "-b",
            metavar="N",
            min=1,
            show_default=False,
        ),
    ] = None,
    accumulate: Annotated[
        int,
        option("Parts of a step, one after the other: n parts make an n-fold batch.", "--accumulate", metavar="N", min=1),
    ] = 1,
    buckets: Annotated[
        bool,
        typer.Option("--buckets", help="Keep the pictures' aspects: sizes of equal area, one in each step."),
    ] = False,
    optimizer: Annotated[
        str, option("adamw, or muon for the matrices.", "--optimizer", metavar="NAME")
    ] = "adamw",
    lr: Annotated[
        float | None,
        option(
            "Peak learning rate of AdamW. [0.001; a LoRA 0.0005, a word 0.005]",
            "--lr",
            metavar="RATE",
            show_default=False,
        ),
    ] = None,
    muon_lr: Annotated[float, option("Peak learning rate of Muon.", "--muon-lr", metavar="RATE")] = 0.02,
    warmup: Annotated[int, option("Steps until the peak.", "--warmup", metavar="N", min=0)] = 100,
    hold: Annotated[
        float, option("Share of the run before the rate falls, linearly to 0.", "--hold", metavar="0..1")
    ] = 0.0,
    average: Annotated[
        float | None,
        option(
            "Limit of the weights' moving average. [0.998; a LoRA or word 0.99]",
            "--average",
            metavar="0..1",
            show_default=False,
        ),
    ] = None,
    dropout: Annotated[
        float, option("Share of empty captions, for guidance.", "--dropout", metavar="0..1")
    ] = 0.1,
    high_noise: Annotated[
        float | None,
        option(
            "Extra share of high noise, where the layout is decided. [0.3; a LoRA or word 0]",
            "--high-noise",
            metavar="0..1",
            show_default=False,
        ),
    ] = None,
    weighting: Annotated[
        str | None,
        option(
            "Weight of each noise level: capped, output, x0, min_snr, soft_min_snr, debiased or p2. "
            "[capped; a LoRA or word output]",
            "--weighting",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
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
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Compute in float16, for GPUs without bfloat16.")
    ] = False,
    recompute: Annotated[
        bool,
        typer.Option("--recompute", help="Gradient checkpointing: less memory, a third more time."),
    ] = False,
    memory: Annotated[
        int,
        option(
            "Megabytes for pictures, and for latents; beyond, they are decoded at each step.",
            "--memory",
            metavar="MB",
            min=0,
        ),
    ] = 4096,
    device: Annotated[str, option("auto, cpu, cuda, cuda:N or mps.", "--device", metavar="NAME")] = "auto",
    report_every: Annotated[
        int, option("Steps between lines of the log.", "--report-every", metavar="N", min=1)
    ] = 50,
    save_every: Annotated[
        int | None,
        option(
            "Steps between checkpoints. [500; a LoRA or word 100]",
            "--save-every",
            metavar="N",
            min=1,
            show_default=False,
        ),
    ] = None,
    sheet_every: Annotated[
        int | None,
        option(
            "Steps between sheets of pictures; 0: none. [1000; a LoRA or word 250]",
            "--sheet-every",
            metavar="N",
            min=0,
            show_default=False,
        ),
    ] = None,
    sheet_prompt: Annotated[
        list[str] | None,
        option(
            "A prompt of the sheets; may be given again. [the first captions]",
            "--sheet-prompt",
            metavar="TEXT",
            show_default=False,
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write DIR/tensorboard too; needs pip install 'ddgen[tensorboard]'."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Make two steps for nothing, and say what the run will take."),
    ] = False,
    progress: Annotated[str, option("auto, bar, log, json or none.", "--progress", metavar="MODE")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
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
    if recompute and part != "unet":
        raise UsageError("--recompute is for the U-Net's blocks", "leave it away", id="usage.train")
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
