"""The evaluator: which thing does a cut-out picture show? It has seen five emoji sets that no generator is shown.

    seen = look(picture on white), whitened by the scatter inside pictures' own variants (linear discriminants)
    score(concept) = cos(seen, mean of the concept) + the largest cos(seen, one of its pictures)

It shares nothing that was trained with the generator or its text tower. Ref: Fisher 1936, "The use of multiple measurements
in taxonomic problems"; Hariharan et al. 2012, ECCV, "Discriminative decorrelation for clustering and classification".
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ddgen.app import augment
from ddgen.app.concepts import BACKGROUNDS, KEY
from ddgen.app.emoji import UNSEEN, Emoji
from ddgen.app.keying import SIDE, Keyed, Pixels, fitted, key
from ddgen.app.stickers import laid_on
from ddgen.errors import ModelError
from ddgen.nets.image_tower import look
from ddgen.weights.checkpoint import Reader, save_tensors
from ddgen.weights.header import read_header
from ddgen.weights.keymap import Take
from ddgen.weights.split import Stored

FILE = Path(__file__).resolve().parents[1] / "models" / "judge.safetensors"
HEADER = "ddgen_judge"
VARIANTS = 12  # of each picture while fitting: as it is, moved, moved with other hues, and again
KEYED = 4  # further ones, laid on coloured grounds and cut out again as a made picture is
GROUNDS = tuple(colour for name, colour in BACKGROUNDS.items() if name != KEY)
RIDGE = 3.0  # of the mean variance


@dataclass
class Judge:
    """mean, deviation: of what is seen; whiten: (SEEN, WIDTH), onto what the pictures span; pictures: with their variants, (N, WIDTH) of unit length; concept: (N,)
    indices into icons."""

    icons: tuple[str, ...]
    mean: Tensor
    deviation: Tensor
    whiten: Tensor
    pictures: Tensor
    concept: Tensor

    def __post_init__(self) -> None:
        sums = torch.zeros(len(self.icons), self.pictures.shape[1]).index_add_(0, self.concept, self.pictures)
        self.means = F.normalize(sums, dim=1)

    def embed(self, cuts: Sequence[Pixels]) -> Tensor:
        """Return cut-out RGBA pictures as unit vectors (N, WIDTH)."""
        rows = []
        for i in range(0, len(cuts), 64):
            x = augment.on_ground(augment.premultiplied(np.stack(cuts[i : i + 64])), np.full((1, 3), 255, np.float32))
            rows.append(look(2 * x - 1))
        return F.normalize(((torch.cat(rows) - self.mean) / self.deviation) @ self.whiten, dim=1)

    def scores(self, vectors: Tensor, among: Sequence[str]) -> Tensor:
        """Return the score of each of the icons `among`, (N, len(among)); one it has never seen scores lowest."""
        places = {icon: i for i, icon in enumerate(self.icons)}
        near = torch.full((len(vectors), len(self.icons)), -1.0)
        near.scatter_reduce_(1, self.concept.expand(len(vectors), -1), vectors @ self.pictures.T, "amax")
        both = near + vectors @ self.means.T
        columns = [both[:, places[icon]] if icon in places else torch.full((len(vectors),), -9.0) for icon in among]
        return torch.stack(columns, 1)

    def name(self, cuts: Sequence[Pixels], among: Sequence[str]) -> list[str]:
        """Return the icon that each cut-out shows most likely."""
        if not cuts:
            return []
        return [among[i] for i in self.scores(self.embed(cuts), among).argmax(1).tolist()]


def whole(keyed: Keyed) -> Pixels:
    """Return all things of a picture as one cut-out."""
    return keyed.cut(keyed.mask)


def fit(emoji: Emoji, listed: Sequence[str], seed: int = 0) -> Judge:
    """Fit the judge to the listed things of the sets that the generator is not shown; half a minute of one core."""
    part, rng = emoji.of(list(UNSEEN)), np.random.default_rng(seed)
    part = part.only(np.array([part.labels[i].icon in set(listed) for i in part.concept]))
    cuts = augment.premultiplied(np.stack([fitted(raw) for raw in part.pixels]))
    rows = []
    for number in range(VARIANTS):
        x = augment.moved(cuts, rng, (0.87, 1.1), 0.08, 0.2) if number else cuts
        if number % 3 == 2:
            turn = rng.uniform(-np.pi, np.pi, len(x)).astype(np.float32)
            x = torch.cat([augment.turned_hue(x[:, :3], torch.from_numpy(turn)).clamp(0, 1), x[:, 3:]], 1)
        rows.append(_seen(x, rng))
    for number in range(KEYED):
        x = augment.premultiplied(np.stack([_cut_out(raw, rng) for raw in part.pixels]))
        rows.append(_seen(augment.moved(x, rng, (0.9, 1.08), 0.06, 0.15) if number else x, rng))
    seen = torch.stack(rows)  # (VARIANTS + KEYED, N, SEEN)
    flat, concept = seen.flatten(0, 1), torch.from_numpy(part.concept)
    mean, deviation = flat.mean(0), flat.std(0) + 1e-3
    z = (seen - mean) / deviation
    used = torch.unique(concept)
    place = torch.zeros(len(part.labels), dtype=torch.long)
    place[used] = torch.arange(len(used))
    own = place[concept]
    count = torch.bincount(own).float()[:, None]
    means = torch.zeros(len(used), z.shape[-1]).index_add_(0, own, z.mean(0)) / count
    inside = (z - means[own]).flatten(0, 1)
    scatter = inside.T @ inside / len(inside)
    scatter += RIDGE * scatter.trace() / len(scatter) * torch.eye(len(scatter))
    lower = torch.linalg.cholesky(scatter)
    whitened = torch.linalg.solve_triangular(lower, z.mean(0).T, upper=False)  # (SEEN, N)
    directions, _ = torch.linalg.qr(whitened)
    whiten = torch.linalg.solve_triangular(lower.T, directions, upper=True)
    pictures = F.normalize((z @ whiten).flatten(0, 1), dim=1)
    return Judge(tuple(part.labels[i].icon for i in used), mean, deviation, whiten, pictures, own.repeat(len(rows)))


def _seen(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Return what is seen of RGBA pictures on white, worn."""
    x = augment.worn(augment.on_ground(x, np.full((1, 3), 255, np.float32)), rng)
    return torch.cat([look(2 * piece - 1) for piece in x.split(128)])


def _cut_out(raw: Pixels, rng: np.random.Generator) -> Pixels:
    """Return an RGBA picture laid on one of the coloured grounds, as large as things are drawn, and cut out again."""
    side = round(2 * SIDE * rng.uniform(0.85, 1.0))
    canvas = Image.new("RGBA", (2 * SIDE, 2 * SIDE))
    scaled = Image.fromarray(raw).convert("RGBa").resize((side, side), Image.Resampling.BICUBIC).convert("RGBA")
    canvas.paste(scaled, (SIDE - side // 2, SIDE - side // 2))
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    return whole(key(laid_on(np.asarray(canvas), ground)))


def save(judge: Judge, path: Path) -> int:
    """Write a judge; return the size in bytes."""
    tensors = {"mean": judge.mean, "deviation": judge.deviation, "whiten": judge.whiten, "pictures": judge.pictures}
    stored = {name: value.half().contiguous() for name, value in tensors.items()}
    return save_tensors(path, stored | {"concept": judge.concept.int()}, {HEADER: json.dumps(judge.icons), "licence": "Apache-2.0"})


def load(path: Path = FILE) -> Judge:
    """Read a judge.

    Raises:
        ModelError: a missing or damaged file, or one of another kind.
    """
    header = read_header(path)
    if HEADER not in header.metadata:
        raise ModelError(f"'{path}' holds no evaluator", "install ddgen again", id="model.judge")
    with Reader() as reader:
        found = {
            name: reader.read(Stored(header, Take((name,)), info.shape)) for name, info in header.tensors.items()
        }
    concept = found.pop("concept").long()
    return Judge(tuple(json.loads(header.metadata[HEADER])), **{name: value.float() for name, value in found.items()}, concept=concept)
