"""The whole story small: shapes with captions, a U-Net that has learnt nothing, the trainer, and a test of what it
has never seen.

    DIR/shapes/             the data: pictures and metadata.jsonl, a folder as `ddgen train DATA` takes it
    DIR/start.safetensors   the model before it learns: a fresh U-Net, and the text tower of the model that ships
    DIR/...                 a run of the trainer like any other

Nothing is special but the numbers. Pictures of 32 x 32 pixels are folded 4 x 4 into 8 x 8 places of 48 channels,
and the network predicts x0 itself: flat shapes fill few of the 48 dimensions, noise fills all (Li & He 2025,
arXiv 2511.13720).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ddgen.app import runfiles, shapes, sheet
from ddgen.app.dataset import Dataset
from ddgen.app.pipeline import Pipeline
from ddgen.app.train import Settings, Trainer
from ddgen.io import files, images
from ddgen.nets.config import PatchConfig, UNetConfig
from ddgen.nets.unet import UNet
from ddgen.weights import registry
from ddgen.weights.arch import Arch
from ddgen.weights.checkpoint import Reader, open_checkpoint, save_tensors, spec_metadata
from ddgen.weights.convert import UNET_PREFIX, file_part, file_towers
from ddgen.weights.spec import Defaults, Spec

PICTURES = 3000
SHAPES, START, HELD_OUT = "shapes", "start.safetensors", "held-out.png"
MANIFEST = "metadata.jsonl"
WIDTH = 64
PATCH = 4  # pixels
SETTINGS = Settings(
    steps=1500,
    minutes=3.5,
    batch=16,
    lr=2e-3,
    warmup=50,
    hold=0.3,
    average=0.99,
    dropout=0.1,
    high_noise=0.2,
    weighting="x0",
    report_every=25,
    save_every=250,
)
SHOWN = (
    "a red square left of a blue circle",
    "a red cross above a blue square",
    "a purple cross",
    "a blue diamond",
)
"""Prompts of the pictures that grow while it trains; the four pairings that were held out first follow."""
SEEDS = (0, 1, 2, 3)
ENLARGED = 4  # times, on the sheets


def prepare(out: Path, settings: Settings = SETTINGS, device: str = "auto") -> Trainer:
    """Write the data and the model to begin with, where they are not there, and return the run.

    Raises:
        InputError: the directory holds a run with other settings. OutputError: it cannot be written.
    """
    if not (out / SHAPES / MANIFEST).exists():
        write_shapes(out / SHAPES)
    if not (out / START).exists():
        write_start(out / START, settings.seed)
    pipeline = Pipeline.load(str(out / START), device=device, dtype="float32")
    return Trainer(pipeline, Dataset(out / SHAPES, shapes.SIZE, shapes.SIZE), out, settings)


def write_shapes(folder: Path) -> None:
    """Write the pictures and, when all are there, the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, scene in enumerate(shapes.scenes(PICTURES)):
        name = f"{number:04d}.png"
        (folder / name).write_bytes(images.encode(shapes.draw(scene.shapes)))
        lines.append(json.dumps({"file_name": name, "text": scene.caption}) + "\n")
    files.publish(folder / MANIFEST, "".join(lines).encode(), force=True)


def write_start(path: Path, seed: int) -> None:
    """Write a model with a fresh U-Net and the text towers of the default model."""
    base = registry.find(None)
    assert base.source.path is not None
    found = open_checkpoint(base.source.path)
    spec = spec_of(base)
    torch.manual_seed(seed)
    tensors = {UNET_PREFIX + key: value for key, value in UNet(spec.arch.unet).state_dict().items()}
    with Reader() as reader:
        for name, part in found.parts.items():
            if name.startswith("text."):
                for key, made in file_part(name, part, file_towers(spec.arch)).items():
                    pieces = [reader.read(stored) for stored in made.sources]
                    tensors[key] = made.take.apply(pieces[0] if len(pieces) == 1 else torch.cat(pieces))
    save_tensors(path, tensors, spec_metadata(spec))


def spec_of(base: Spec) -> Spec:
    """Return the Spec of the demo's model, which reads text as `base` does."""
    network = UNetConfig(
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        model_channels=WIDTH,
        channel_mult=(1,),  # the 8 x 8 places see each other by attention: no coarser level is needed
        num_res_blocks=1,
        down_depth=((1,),),
        up_depth=((1, 1),),
        mid_depth=None,
        heads=(WIDTH // 32,),
        context_dim=base.arch.unet.context_dim,
        linear_projection=True,
        vector_dim=base.arch.unet.vector_dim,
        position_channels=16,
    )
    arch = Arch("demo", network, PatchConfig(PATCH), base.arch.text, base.arch.vector_ids)
    return Spec(
        "demo",
        arch,
        prediction="x0",
        schedule={"kind": "cosine", "shift": 0.0},
        x0_clamp={"kind": "static", "min": -1.0, "max": 1.0},
        defaults=Defaults(
            width=shapes.SIZE, height=shapes.SIZE, steps=16, guidance=2.5, sampler="ddim", spacing="linspace"
        ),
        licence="Apache-2.0",
    )


def grow(pipeline: Pipeline) -> list[shapes.Pixels]:
    """Return the pictures of the prompts that are shown while it trains, the same seed every time."""
    return sheet.draw(pipeline, prompts(), SEEDS[:1])


def prompts() -> list[str]:
    """Return the prompts of the pictures that are shown while it trains: four seen, four held out."""
    return [*SHOWN, *(shapes.name(*pairing) for pairing in shapes.HELD_OUT[: len(SHOWN)])]


def write_sheet(pipeline: Pipeline, path: Path, asked: Sequence[str]) -> list[shapes.Pixels]:
    """Write the pictures of some prompts, large enough for their labels, as one PNG; return them."""
    pictures = sheet.draw(pipeline, asked, SEEDS)
    enlarged = [images.enlarge(picture, ENLARGED) for picture in pictures]
    labels = [str(seed) for seed in SEEDS] * len(asked)
    files.publish(path, images.encode(images.contact_sheet(enlarged, asked, labels)), force=True)
    return pictures


@dataclass(frozen=True)
class Verdict:
    """What the judge says of a held-out pairing. right: of `asked` pictures, those with its colour and shape."""

    prompt: str
    right: int
    asked: int


def examine(pipeline: Pipeline, out: Path) -> list[Verdict]:
    """Draw the held-out pairings, write them as DIR/samples/held-out.png, and judge them."""
    asked = [shapes.name(*pairing) for pairing in shapes.HELD_OUT]
    pictures = write_sheet(pipeline, out / runfiles.SAMPLES / HELD_OUT, asked)
    found = []
    for row, pairing in enumerate(shapes.HELD_OUT):
        own = pictures[row * len(SEEDS) : (row + 1) * len(SEEDS)]
        right = sum(shapes.judge(picture) == pairing for picture in own)
        found.append(Verdict(asked[row], right, len(own)))
    return found


def held_out() -> str:
    """Return the pairings that are never shown, in words."""
    return ", ".join(shapes.name(*pairing) for pairing in shapes.HELD_OUT)
