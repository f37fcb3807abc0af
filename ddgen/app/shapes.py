"""Captioned shapes drawn by code: "a red square", "a red square left of a blue circle", and their judge.

    coverage of a pixel = clip(1/2 - d, 0, 1),   d = signed distance of its centre to the edge, in pixels

Which pairings of shape and colour are never shown is fixed (HELD_OUT), so that a model that draws one of them
has put it together from what it knows of both words. The judge knows nothing of any model: the colour is the
nearest of the palette, the shape the template that overlaps most.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Pairing = tuple[str, str]
"""A colour and a kind of shape."""

SIZE = 32  # pixels, both sides
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (250, 150, 30),
    "yellow": (245, 220, 60),
    "green": (50, 160, 70),
    "blue": (40, 90, 220),
    "purple": (150, 60, 190),
}
HELD_OUT: tuple[Pairing, ...] = (
    ("yellow", "circle"),
    ("green", "square"),
    ("red", "triangle"),
    ("purple", "diamond"),
    ("blue", "cross"),
)
RELATIONS = ("left of", "above")


def _square(x: Floats, y: Floats, r: float) -> Floats:
    return np.maximum(abs(x), abs(y)) - 0.88 * r


def _circle(x: Floats, y: Floats, r: float) -> Floats:
    return np.hypot(x, y) - r


def _triangle(x: Floats, y: Floats, r: float) -> Floats:
    """Point up, base and height 2 r."""
    return np.maximum((2 * abs(x) - y - r) / 5**0.5, y - r)


def _diamond(x: Floats, y: Floats, r: float) -> Floats:
    return (abs(x) + abs(y) - 1.15 * r) / 2**0.5


def _cross(x: Floats, y: Floats, r: float) -> Floats:
    a, b = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
    return np.maximum(a - r, b - 0.36 * r)


SHAPES: dict[str, Callable[[Floats, Floats, float], Floats]] = {
    "square": _square,
    "circle": _circle,
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": _cross,
}


def name(colour: str, kind: str) -> str:
    """Return a pairing in words: "a red square"."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind}"


@dataclass(frozen=True)
class Shape:
    """A shape of a picture. x, y: centre; r: half its width; all in pixels."""

    colour: str
    kind: str
    x: float
    y: float
    r: float

    @property
    def name(self) -> str:
        return name(self.colour, self.kind)


@dataclass(frozen=True)
class Scene:
    """One shape, or two with the relation of the first to the second."""

    shapes: tuple[Shape, ...]
    relation: str = ""

    @property
    def caption(self) -> str:
        return f" {self.relation} ".join(shape.name for shape in self.shapes)


def draw(shapes: Sequence[Shape], size: int = SIZE) -> Pixels:
    """Return shapes on white, (size, size, 3), edges smooth."""
    y, x = np.mgrid[:size, :size] + 0.5
    picture = np.full((size, size, 3), 255.0)
    for shape in shapes:
        cover = _cover(shape.kind, x - shape.x, y - shape.y, shape.r)[..., None]
        picture = picture * (1 - cover) + cover * np.array(COLOURS[shape.colour])
    return picture.round().astype(np.uint8)


def _cover(kind: str, x: Floats, y: Floats, r: float) -> Floats:
    return np.clip(0.5 - SHAPES[kind](x, y, r), 0, 1)


def pairings() -> list[Pairing]:
    """Return the (colour, kind) that are shown."""
    return [(colour, kind) for colour in COLOURS for kind in SHAPES if (colour, kind) not in HELD_OUT]


def scenes(count: int, *, pairs: float = 0.6, captions: int = 200, seed: int = 0) -> Iterator[Scene]:
    """Yield scenes of shown pairings, drawn by lot.

    pairs: share of scenes of two shapes. captions: how many different ones those have, since every text is
    encoded once.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    known = pairings()
    several = [
        (known[a], known[b], RELATIONS[i % 2])
        for i, (a, b) in enumerate(rng.integers(len(known), size=(captions, 2)))
    ]
    for _ in range(count):
        if rng.random() < pairs:
            yield _two(rng, *several[rng.integers(captions)])
        else:
            x, y = SIZE / 2 + rng.uniform(-2, 2, 2)
            yield Scene((Shape(*known[rng.integers(len(known))], x, y, rng.uniform(9, 11)),))


def _two(rng: np.random.Generator, one: Pairing, other: Pairing, relation: str) -> Scene:
    made = []
    for pairing, middle in ((one, 8.2), (other, SIZE - 8.2)):
        along, across = middle + rng.uniform(-0.6, 0.6), SIZE / 2 + rng.uniform(-1.5, 1.5)
        x, y = (along, across) if relation == "left of" else (across, along)
        made.append(Shape(*pairing, x, y, rng.uniform(5.6, 6.4)))
    return Scene(tuple(made), relation)


def judge(picture: Pixels) -> Pairing:
    """Return the (colour, kind) that a picture of one shape on white shows; ("", "") for one of nothing."""
    size = 24
    ink = 255.0 - picture.min(axis=2)
    mask = ink > 90
    if mask.sum() < 12:
        return "", ""
    middle = np.median(picture[mask], axis=0)
    colour = min(COLOURS, key=lambda name: float(np.abs(middle - COLOURS[name]).sum()))
    found = _boxed(mask, size)
    return colour, max(SHAPES, key=lambda kind: _overlap(found, _template(kind, size)))


def _template(kind: str, size: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[:64, :64] + 0.5
    return _boxed(_cover(kind, x - 32, y - 32, 24.0) > 0.5, size)


def _boxed(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Cut a mask to its bounding box and stretch that to size x size (nearest)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    places = [((np.arange(size) + 0.5) / size * n).astype(int) for n in cut.shape]
    return cut[np.ix_(*places)]


def _overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def judged(picture: Pixels, relation: str = "") -> list[Pairing]:
    """Return what `judge` sees in a picture of one shape, or in both halves of a picture of two."""
    if not relation:
        return [judge(picture)]
    half = SIZE // 2
    if relation == "left of":
        return [judge(picture[:, :half]), judge(picture[:, half:])]
    return [judge(picture[:half]), judge(picture[half:])]
