"""How well a picture shows what its prompt says: the cosine of an image tower's vector and a text tower's.

    score = cos(image(picture), text(prompt))

The embedded scorer is the default model's own text tower with the image tower trained beside it
(app/tower.py); a folder that transformers or open_clip wrote brings both towers. A picture is scored by itself,
so its score hangs on no other.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ddgen.errors import ModelError
from ddgen.nets.image_tower import SIDE, ImageTower, ImageTowerConfig
from ddgen.request import Job
from ddgen.text.chunks import chunk_prompt
from ddgen.text.prompt import compose
from ddgen.text.tokens import Tokenizer, frame
from ddgen.weights import registry
from ddgen.weights.checkpoint import Reader, load_module, open_checkpoint
from ddgen.weights.header import read_header
from ddgen.weights.keymap import Take
from ddgen.weights.split import Stored

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

FILE = Path(__file__).resolve().parents[1] / "models" / "sticker-image.safetensors"
DIGITS = 4  # of a score that is written down
KEY = "ddgen_image_tower"


class Scorer(Protocol):
    """Two towers of one space."""

    def texts(self, prompts: Sequence[str], syntax: str = "plain") -> Tensor:
        """Return unit vectors (N, D)."""

    def pictures(self, pictures: "Sequence[Pixels]") -> Tensor:
        """Return unit vectors (N, D)."""


class Scores:
    """Scores pictures with the prompts of their jobs, each prompt encoded once."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.known: dict[tuple[str, int, str], Tensor] = {}

    def __call__(self, jobs: "Sequence[Job]", pictures: "Sequence[Pixels]") -> list[float]:
        """Return the score of each picture (H, W, 3 or 4) uint8, rounded as it is written down."""
        found = []
        for job, picture in zip(jobs, pictures, strict=True):
            key = job.prompt, job.steps, job.prompt_syntax
            if key not in self.known:
                self.known = {key: self._text(*key)}  # pictures come prompt by prompt
            found.append(round(float(self.scorer.pictures([picture])[0] @ self.known[key]), DIGITS))
        return found

    def _text(self, prompt: str, steps: int, syntax: str) -> Tensor:
        """Return the vector of a prompt as it stands at the last step; parts joined by AND count by their weights."""
        parts = compose(prompt, steps, syntax)
        vectors = self.scorer.texts([part.at(steps) for part in parts], syntax)
        weights = torch.tensor([part.weight for part in parts])
        return F.normalize((weights[:, None] * vectors).sum(0), dim=0)


def load(folder: str | None = None) -> Scorer:
    """Load a scorer: a CLIP's folder, or the embedded one.

    Raises:
        ModelError: files that are missing, damaged or of another kind.
    """
    if folder is None:
        return embedded()
    from ddgen.app.scorer_library import library_scorer

    return library_scorer(Path(folder))


class TextVectors:
    """The pooled vectors of the default model's text tower, projected and of length one."""

    def __init__(self, tower: torch.nn.Module, tokenizer: Tokenizer) -> None:
        self.tower, self.tokenizer = tower, tokenizer

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], syntax: str = "plain") -> Tensor:
        """Return unit vectors (N, D). What follows the end of a text changes nothing before it, and is cut."""
        bodies = [chunk_prompt(text, self.tokenizer, syntax).bodies[0] for text in texts]
        found: list[Tensor | None] = [None] * len(texts)
        by_length: dict[int, list[int]] = {}
        for i, body in enumerate(bodies):
            by_length.setdefault(len(body), []).append(i)
        for length, places in by_length.items():
            ids = torch.tensor([frame(bodies[i])[: length + 2] for i in places])
            for i, vector in zip(places, F.normalize(self.tower(ids).pooled, dim=-1), strict=True):
                found[i] = vector
        return torch.stack(found)  # type: ignore[arg-type]


class Embedded:
    """The scorer that comes with ddgen."""

    def __init__(self, text: TextVectors, image: ImageTower) -> None:
        self.text, self.image = text, image

    def texts(self, prompts: Sequence[str], syntax: str = "plain") -> Tensor:
        """Return unit vectors (N, D)."""
        return self.text(prompts, syntax)

    @torch.inference_mode()
    def pictures(self, pictures: "Sequence[Pixels]") -> Tensor:
        """Return unit vectors (N, D)."""
        rows = [self.image(prepared(picture)[None])[0] for picture in pictures]
        return F.normalize(torch.stack(rows), dim=-1)


def prepared(picture: "Pixels", side: int = SIDE) -> Tensor:
    """Return a picture (H, W, 3 or 4) uint8 as (3, side, side) in [-1, 1]: its longer side fitted, on white."""
    x = torch.from_numpy(np.ascontiguousarray(picture)).float().movedim(-1, 0)[None] / 255
    if x.shape[1] == 4:
        x = x[:, :3] * x[:, 3:] + 1 - x[:, 3:]
    height, width = x.shape[-2:]
    tall, wide = max(1, round(side * height / max(height, width))), max(1, round(side * width / max(height, width)))
    x = F.interpolate(x, (tall, wide), mode="area" if max(height, width) >= side else "nearest")[0]
    down, right = side - tall, side - wide
    return 2 * F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2), value=1.0) - 1


def default_text() -> TextVectors:
    """Load the text tower of the default model.

    Raises:
        ModelError: its file is missing or damaged.
    """
    from ddgen.text.clip import CLIPTextModel

    spec = registry.find()
    if spec.source.path is None:
        raise registry.absent(spec.name)
    with torch.device("meta"):
        tower = CLIPTextModel(spec.towers[0].config)
    load_module(tower, open_checkpoint(spec.source.path).part("text.0"), dtype=torch.float32, name="text.0")
    return TextVectors(tower.eval(), Tokenizer())


def text_digest() -> str:
    """Return a digest of the default model's text tower, which the image tower was trained beside."""
    spec = registry.find()
    assert spec.source.path is not None
    part, digest = open_checkpoint(spec.source.path).part("text.0"), sha256()
    with Reader() as reader:
        for name in sorted(part):
            digest.update(name.encode() + reader.read(part[name]).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def embedded(file: Path = FILE) -> Embedded:
    """Load the scorer that comes with ddgen.

    Raises:
        ModelError: a file is missing or damaged.
    """
    header = read_header(file)
    if KEY not in header.metadata:
        raise ModelError(f"'{file}' holds no image tower", "install ddgen again", id="model.scorer")
    tower = ImageTower(ImageTowerConfig(**json.loads(header.metadata[KEY])["config"]))
    with Reader() as reader:
        state = {
            name: reader.read(Stored(header, Take((name,)), info.shape)).float()
            for name, info in header.tensors.items()
        }
    tower.load_state_dict(state)
    return Embedded(default_text(), tower.eval())
