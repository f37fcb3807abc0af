"""The flags of `ddgen train`: what each is called and says of itself. What they mean together: train.py."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ddgen.cli.complete import complete_model


def option(help: str, *names: str, metavar: str, **more: Any) -> Any:
    """Return the declaration of a flag that takes a value."""
    return typer.Option(*names, metavar=metavar, help=help, **more)


Data = Annotated[
    Path | None,
    typer.Argument(
        metavar="DATA",
        help="Folder with metadata.jsonl or .csv, with a .txt beside each picture, or webdataset shards.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None, option("Directory of the run.", "--out", "--output", "-o", metavar="DIR", show_default=False)
]
Demo = Annotated[
    bool, typer.Option("--demo", help="The whole story in minutes, on shapes drawn by code; no DATA.")
]
Model = Annotated[
    str | None,
    option(
        "Model to train on. [the default one]", "--model", "-m", metavar="NAME",
        autocompletion=complete_model, show_default=False,
    ),  # fmt: skip
]
Scratch = Annotated[
    bool,
    typer.Option(
        "--scratch",
        help="Forget the part's weights and draw new ones; its shape and the text tower stay.",
    ),
]
Part = Annotated[
    str, option("What to train: unet, first-stage (the autoencoder), or its decoder.", "--part", metavar="NAME")
]
Lora = Annotated[
    bool, typer.Option("--lora", help="Train a LoRA: low-rank changes of the attention layers, or of more.")
]
Rank = Annotated[
    int | None, option("Rank of the LoRA. [8]", "--rank", metavar="N", min=1, max=1024, show_default=False)
]
Alpha = Annotated[
    float | None,
    option("Its alpha: it acts times alpha / rank. [the rank]", "--alpha", metavar="A", show_default=False),
]
LoraOn = Annotated[
    str | None,
    option(
        "What the LoRA changes: attention; transformer: feed-forward and projections too; all: convolutions too. [attention]",
        "--lora-on",
        metavar="WHAT",
        show_default=False,
    ),
]
LoraText = Annotated[
    bool, typer.Option("--lora-text", help="Train the LoRA on the text towers too.")
]
LoraFormat = Annotated[
    str | None,
    option("Names in its file: kohya or peft. [kohya]", "--lora-format", metavar="NAME", show_default=False),
]
EmbeddingToken = Annotated[
    str | None,
    option(
        "Train the vectors of this new word alone (textual inversion).",
        "--embedding-token",
        metavar="WORD",
        show_default=False,
    ),
]
Vectors = Annotated[
    int | None,
    option("How many vectors the word has. [1]", "--vectors", metavar="N", min=1, max=75, show_default=False),
]
Like = Annotated[
    str | None,
    option("A known word that it starts from. [none]", "--like", metavar="WORD", show_default=False),
]
Steps = Annotated[
    int | None,
    option(
        "Where the run ends. [10000; a LoRA 1000, a word 1500]",
        "--steps",
        metavar="N",
        min=1,
        show_default=False,
    ),
]
Minutes = Annotated[
    float | None,
    option("End earlier, after so much training time.", "--minutes", metavar="MIN", show_default=False),
]
Batch = Annotated[
    int | None,
    option(
        "Pictures per step (and part, and process). [16; a LoRA or word 4]",
        "--batch-size",
        "-b",
        metavar="N",
        min=1,
        show_default=False,
    ),
]
Accumulate = Annotated[
    int,
    option("Parts of a step, one after the other: n parts make an n-fold batch.", "--accumulate", metavar="N", min=1),
]
Buckets = Annotated[
    bool,
    typer.Option("--buckets", help="Keep the pictures' aspects: sizes of equal area, one in each step."),
]
Optimizer = Annotated[
    str, option("adamw, or muon for the matrices.", "--optimizer", metavar="NAME")
]
Lr = Annotated[
    float | None,
    option(
        "Peak learning rate of AdamW. [0.001; a LoRA 0.0005, a word 0.005]",
        "--lr",
        metavar="RATE",
        show_default=False,
    ),
]
MuonLr = Annotated[float, option("Peak learning rate of Muon.", "--muon-lr", metavar="RATE")]
Warmup = Annotated[int, option("Steps until the peak.", "--warmup", metavar="N", min=0)]
Hold = Annotated[
    float, option("Share of the run before the rate falls, linearly to 0.", "--hold", metavar="0..1")
]
Average = Annotated[
    float | None,
    option(
        "Limit of the weights' moving average. [0.998; a LoRA or word 0.99]",
        "--average",
        metavar="0..1",
        show_default=False,
    ),
]
Dropout = Annotated[
    float, option("Share of empty captions, for guidance.", "--dropout", metavar="0..1")
]
HighNoise = Annotated[
    float | None,
    option(
        "Extra share of high noise, where the layout is decided. [0.3; a LoRA or word 0]",
        "--high-noise",
        metavar="0..1",
        show_default=False,
    ),
]
Weighting = Annotated[
    str | None,
    option(
        "Weight of each noise level: capped, output, x0, min_snr, soft_min_snr, debiased or p2. "
        "[capped; a LoRA or word output]",
        "--weighting",
        metavar="NAME",
        show_default=False,
    ),
]
Target = Annotated[
    str,
    option(
        "What estimates are compared with: picture, or mean of all that fit the caption and the noise.",
        "--target",
        metavar="NAME",
    ),
]
Seed = Annotated[
    int,
    option("Seed of the run: batches, noise, fresh weights.", "--seed", "-s", metavar="N", min=0, max=2**63 - 1),
]
Bf16 = Annotated[
    bool, typer.Option("--bf16", help="Compute in bfloat16; much faster where the processor has it.")
]
Fp16 = Annotated[
    bool, typer.Option("--fp16", help="Compute in float16, for GPUs without bfloat16.")
]
Recompute = Annotated[
    bool,
    typer.Option("--recompute", help="Gradient checkpointing: less memory, a third more time."),
]
Memory = Annotated[
    int,
    option(
        "Megabytes for pictures, and for latents; beyond, they are decoded at each step.",
        "--memory",
        metavar="MB",
        min=0,
    ),
]
Device = Annotated[str, option("auto, cpu, cuda, cuda:N or mps.", "--device", metavar="NAME")]
ReportEvery = Annotated[
    int, option("Steps between lines of the log.", "--report-every", metavar="N", min=1)
]
SaveEvery = Annotated[
    int | None,
    option(
        "Steps between checkpoints. [500; a LoRA or word 100]",
        "--save-every",
        metavar="N",
        min=1,
        show_default=False,
    ),
]
SheetEvery = Annotated[
    int | None,
    option(
        "Steps between sheets of pictures, drawn with the next line of the log; 0: none. [1000; a LoRA or word 250]",
        "--sheet-every",
        metavar="N",
        min=0,
        show_default=False,
    ),
]
SheetPrompt = Annotated[
    list[str] | None,
    option(
        "A prompt of the sheets; may be given again. [the first captions]",
        "--sheet-prompt",
        metavar="TEXT",
        show_default=False,
    ),
]
Tensorboard = Annotated[
    bool,
    typer.Option("--tensorboard", help="Write DIR/tensorboard too; needs pip install 'ddgen[tensorboard]'."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Make two steps for nothing, and say what the run will take."),
]
Progress = Annotated[str, option("auto, bar, log, json or none.", "--progress", metavar="MODE")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
