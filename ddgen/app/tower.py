"""Train the image tower's head to agree with a text tower that stays as it is: locked-text tuning.

    cos(image(picture), text(caption)) high for a picture and its caption, low for the captions of the others

Pictures are emoji of all sets but one: on white, on coloured grounds, recoloured, two beside or above one another, and one to four
of a kind, each with the caption that says so. A batch holds several pictures of one concept, told apart only by
colour, ground, style, order or number, so that these must be read as well as the concept. What the fixed eye sees of
a batch is kept in a file; the head is fitted to these in many passes. The loss is open_clip's. Ref: Radford et al. 2021, arXiv 2103.00020, Fig. 3; Zhai et al. 2022, arXiv 2111.07991 (LiT).
"""

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ddgen.app import augment
from ddgen.app.concepts import BACKGROUNDS, COLOURS, Concept, plural, with_article
from ddgen.app.emoji import SEEN, Emoji
from ddgen.app.fitting import fit
from ddgen.app.stickers import body_hue, recolour
from ddgen.io.files import publish
from ddgen.nets.image_tower import ImageTower, ImageTowerConfig, look

DROPOUT = 0.2  # of what is seen, while training
TOGETHER = 2  # drawn batches in one step
CONCEPTS, VARIANTS, PAIRS, COUNTED = 28, 4, 12, 6  # a batch: 28 x 4 + 12 x 2 + 6 x 4 = 160 pictures
NUMBERS = ("", "one", "two", "three", "four")
RELATIONS = (("{a} left of {b}", (-0.5, 0.0), (0.5, 0.0)), ("{a} above {b}", (0.0, -0.5), (0.0, 0.5)))
CHOSEN = 0.6  # of the concepts in a batch are of the list that the generator is trained on

Encode = Callable[[Sequence[str]], Tensor]
"""Texts -> unit vectors (N, D)."""


@dataclass
class Captions:
    """Texts met in training, each encoded once."""

    encode: Encode
    places: dict[str, int] = field(default_factory=dict)
    vectors: list[Tensor] = field(default_factory=list)

    def of(self, texts: Sequence[str]) -> Tensor:
        """Return the texts' vectors, (N, D)."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self.places]
        if fresh:
            for text, vector in zip(fresh, self.encode(fresh), strict=True):
                self.places[text] = len(self.vectors)
                self.vectors.append(vector)
        return torch.stack([self.vectors[self.places[text]] for text in texts])


@dataclass
class Draws:
    """What the batches are drawn from.

    names: of every concept, the first the canonical one; listed: concepts that the generator is trained on.
    """

    emoji: Emoji
    listed: Sequence[Concept]
    kept: dict[tuple[int, str], NDArray[np.uint8]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {concept.icon: concept for concept in self.listed}
        self.names: list[tuple[str, ...]] = []
        for label in self.emoji.labels:
            own = known[label.icon].names if label.icon in known else ()
            self.names.append((*own, *([label.label] if label.label not in own else ())))
        self.tags = [label.tags for label in self.emoji.labels]
        self.pictures = [np.flatnonzero(self.emoji.concept == i) for i in range(len(self.names))]
        there = np.array([len(found) > 0 for found in self.pictures])
        inside = np.array([label.icon in known for label in self.emoji.labels])
        self.chosen = np.flatnonzero(inside & there)
        self.others = np.flatnonzero(~inside & there)

    def batch(self, step: int, seed: int) -> tuple[Tensor, list[str]]:
        """Return the pictures (B, 3, S, S) in [-1, 1] and captions of a step."""
        rng = np.random.default_rng((seed, step))
        made, texts, grounds = [], [], []

        def add(pixels: Tensor, text: str, ground: tuple[int, ...] = augment.WHITE) -> None:
            made.append(pixels)
            texts.append(text)
            grounds.append(ground)

        count = round(CONCEPTS * CHOSEN)
        drawn = np.concatenate([
            rng.choice(self.chosen, count, replace=False), rng.choice(self.others, CONCEPTS - count, replace=False)
        ])  # fmt: skip
        for concept in drawn:
            for pixels, text, ground in self._variants(rng, concept):
                add(augment.premultiplied(pixels[None])[0], text, ground)
        single = len(made)
        for _ in range(PAIRS):
            a, b = rng.choice(self.chosen, 2, replace=False)
            both = augment.premultiplied(np.stack([self._picture(rng, a), self._picture(rng, b)]))
            words, first, second = RELATIONS[rng.integers(len(RELATIONS))]
            for one, other in ((0, 1), (1, 0)):
                text = words.format(a=self._phrase((a, b)[one]), b=self._phrase((a, b)[other]))
                spots = [(0.47, *first), (0.47, *second)]
                add(augment.together(both[[one, other]], spots), text)
        for concept in rng.choice(self.chosen, COUNTED, replace=False):
            one = augment.premultiplied(self._picture(rng, concept)[None])
            for number in (1, 2, 3, 4):
                pixels = augment.together(one.expand(number, -1, -1, -1), augment.boxes(number))
                add(pixels, self._phrase(concept) if number == 1 else f"{NUMBERS[number]} {many(self.names[concept][0])}")
        x = augment.moved(torch.stack(made), rng, (0.8, 1.02), 0.08, 0.06, mirror=single) if step % 8 else torch.stack(made)
        x = augment.worn(augment.on_ground(x, np.array(grounds, np.float32)), rng)
        return 2 * x - 1, texts

    def _variants(self, rng: np.random.Generator, concept: int) -> list[tuple[NDArray[np.uint8], str, tuple[int, ...]]]:
        """Return pictures of one concept that differ in what their captions say."""
        name = self.names[concept][rng.integers(len(self.names[concept]))]
        phrase = with_article(name)
        bare = name.rstrip("!")
        tags = self.tags[concept]
        plain = (phrase, bare, f"{bare} emoji", f"a sticker of {phrase}")[rng.integers(4)]
        if tags and rng.random() < 0.2:
            plain = tags[rng.integers(len(tags))]
        found = [(self._picture(rng, concept), plain, augment.WHITE)]
        style = list(SEEN)[rng.integers(len(SEEN))]
        shown = self._picture(rng, concept, style)
        if shown is not None and rng.random() < 0.5:
            found.append((shown, f"{phrase}, {style} style", augment.WHITE))
        hues = rng.permutation(list(COLOURS))
        if bare.split()[0] not in COLOURS and rng.random() < 0.6:
            found.append((self._coloured(rng, concept, hues[0]), with_article(f"{hues[0]} {bare}"), augment.WHITE))
        for ground in rng.permutation(list(BACKGROUNDS))[: VARIANTS - len(found)]:
            found.append((self._picture(rng, concept), f"{phrase} on a {ground} background", BACKGROUNDS[ground]))
        return found

    def _phrase(self, concept: int) -> str:
        return with_article(self.names[concept][0])

    def _picture(self, rng: np.random.Generator, concept: int, style: str | None = None) -> NDArray[np.uint8]:
        found = self.pictures[concept]
        if style is not None:
            found = found[self.emoji.style[found] == self.emoji.styles.index(style)]
            if not len(found):
                return None  # type: ignore[return-value]
        return self.emoji.pixels[found[rng.integers(len(found))]]

    def _coloured(self, rng: np.random.Generator, concept: int, colour: str) -> NDArray[np.uint8]:
        index = self.pictures[concept][rng.integers(len(self.pictures[concept]))]
        if (index, colour) not in self.kept:
            raw = self.emoji.pixels[index]
            self.kept[index, colour] = recolour(raw, colour, body_hue(raw))
        return self.kept[index, colour]


def many(name: str) -> str:
    """Return a name for several; those marked ! are plural or have none."""
    return name[:-1] if name.endswith("!") else plural(name)


class Trained(nn.Module):
    """The tower with the scale of the logits."""

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        self.visual = ImageTower(config)
        self.logit_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))


def keep_batch(draws: Draws, captions: Captions, out: Path, step: int, seed: int) -> Path:
    """Return the file of a step's batch, what is seen of it and its texts' vectors; made where it is missing."""
    path = out / f"drawn-{step:05}.npz"
    if not path.exists():
        pictures, texts = draws.batch(step, seed)
        buffer = io.BytesIO()
        np.savez(buffer, seen=look(pictures).half().numpy(), text=captions.of(texts).half().numpy())
        publish(path, buffer.getvalue(), force=True)
    return path


def train(
    draws: Draws,
    encode: Encode,
    out: Path,
    *,
    drawn: int,
    passes: int,
    lr: float = 1e-3,
    seed: int = 0,
    seconds: float = math.inf,
    told: Callable[[int, float], None] = lambda step, loss: None,
) -> ImageTower | None:
    """Train, or train on, in `out`; return the tower when it is done, None while something is left to do.

    drawn: batches; passes: over them; seconds: of processor time in this sitting.
    """
    begun, captions, paths = time.process_time(), Captions(encode), []
    out.mkdir(parents=True, exist_ok=True)
    for step in range(drawn):
        if time.process_time() - begun > seconds:
            return None
        paths.append(keep_batch(draws, captions, out, step, seed))
    read = [np.load(path) for path in paths]
    features = torch.from_numpy(np.stack([file["seen"] for file in read]))
    vectors = torch.from_numpy(np.stack([file["text"] for file in read]))
    from open_clip.loss import ClipLoss  # takes seconds

    torch.manual_seed(seed)
    model, criterion = Trained(ImageTowerConfig()), ClipLoss()
    flat = features[: min(drawn, 60)].flatten(0, 1).float()
    model.visual.mean.copy_(flat.mean(0))
    model.visual.deviation.copy_(flat.std(0) + 0.01)
    each = drawn // TOGETHER

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((seed, 1, step // each))
        chosen = torch.from_numpy(rng.permutation(drawn)[(step % each) * TOGETHER :][:TOGETHER])
        x, text = features[chosen].flatten(0, 1).float(), vectors[chosen].flatten(0, 1).float()
        kept = torch.from_numpy(np.random.default_rng((seed, 2, step)).random(x.shape[1]) >= DROPOUT)
        x = torch.where(kept, x, model.visual.mean)
        found = F.normalize(model.visual.head(x), dim=-1)
        return criterion(found, F.normalize(text, dim=-1), model.logit_scale.clamp(max=np.log(100)).exp())

    left = max(1.0, seconds - (time.process_time() - begun))
    done = fit(model, loss, out, steps=each * passes, lr=lr, decay=0.1, seconds=left, told=told)
    return model.visual if done else None
