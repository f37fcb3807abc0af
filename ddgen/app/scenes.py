"""Several things in one picture: two of a kind or more, and pairs with a place for each.

    foxes 2 -> "two foxes"        fox left-of cat -> "a fox left of a cat", "a cat right of a fox", ...

A fifth of the pairs and of the counts is held out: never trained, whatever the order and the place, so that they can
be asked for. Every thing is drawn alone at CELL pixels and laid on a 2 x 2 grid, so that a small model has to learn few
places.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddgen.app.concepts import Concept, held_out, plural, with_article

NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "above")
CELL = 58  # pixels a thing has in a picture of 128
SHARES = {"pair": 1.0, "count": 1 / 3}  # how often training draws them, against all plain pictures together

# relation -> how it is put, the first thing being the left or upper one, and how often
TOLD = {
    "left of": (
        ("{a} left of {b}", 3.0),
        ("{a} to the left of {b}", 1.0),
        ("{b} right of {a}", 1.5),
        ("{a} and {b}", 3.0),
        ("{a} next to {b}", 1.0),
        ("{a} and {b}, {style} style", 0.5),
        ("{a} left of {b}, {style} style", 0.5),
    ),
    "above": (
        ("{a} above {b}", 3.0),
        ("{a} on top of {b}", 1.0),
        ("{b} below {a}", 1.5),
        ("{b} under {a}", 1.0),
        ("{a} above {b}, {style} style", 0.5),
    ),
}
COUNTED = (("{number} {names}", 3.0), ("{number} {names}, {style} style", 0.5), ("a picture of {number} {names}", 0.4))

# middles of the things, (right, down), in shares of the side
PLACES = {
    "left of": ((0.25, 0.5), (0.75, 0.5)),
    "above": ((0.5, 0.25), (0.5, 0.75)),
    2: ((0.25, 0.5), (0.75, 0.5)),
    3: ((0.5, 0.25), (0.25, 0.75), (0.75, 0.75)),
    4: ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)),
}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """things: two, the left or upper one first, or one of which there are `count`."""

    things: tuple[Concept, ...]
    relation: str = ""
    count: int = 0

    @property
    def kind(self) -> str:
        """Return "pair" or "count"."""
        return "count" if self.count else "pair"

    @property
    def name(self) -> str:
        """Return what its file is called after."""
        if self.count:
            return f"{NUMBERS[self.count]}-{self.things[0].icon}"
        return f"{self.things[0].icon}-{self.relation.replace(' ', '-')}-{self.things[1].icon}"

    @property
    def held_out(self) -> bool:
        """Return whether it is never trained."""
        if self.count:
            return held_out(self.things[0].icon, str(self.count), "count")
        first, second = sorted(thing.icon for thing in self.things)
        return held_out(first, second, "pair")

    def captions(self, style: str) -> dict[str, float]:
        """Return every caption with its weight."""
        if self.count:
            words = {"number": NUMBERS[self.count], "names": plural(self.things[0].plain_name), "style": style}
            return {template.format(**words): weight for template, weight in COUNTED}
        a, b = (with_article(thing.plain_name) for thing in self.things)
        return {template.format(a=a, b=b, style=style): weight for template, weight in TOLD[self.relation]}

    def drawn(self, cuts: Mapping[str, Pixels], side: int) -> Pixels:
        """Return the picture, RGBA (side, side, 4). cuts: of each icon, the thing alone, (CELL, CELL, 4)."""
        canvas = Image.new("RGBA", (side, side))
        things = self.things * max(1, self.count)
        for thing, (right, down) in zip(things, PLACES[self.count or self.relation], strict=True):
            cut = Image.fromarray(cuts[thing.icon])
            canvas.paste(cut, (round(right * side - CELL / 2), round(down * side - CELL / 2)))
        return np.asarray(canvas)


def scenes(listed: Sequence[Concept]) -> Iterator[Scene]:
    """Yield every scene of the things that are marked for it, held out or not."""
    chosen = [concept for concept in listed if concept.scenes]
    for concept in chosen:
        for count in NUMBERS:
            yield Scene((concept,), count=count)
    for a in chosen:
        for b in chosen:
            if a is not b:
                for relation in RELATIONS:
                    yield Scene((a, b), relation=relation)
