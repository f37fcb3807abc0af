"""Does a picture show what its row of the suite says? By the evaluator, the colours and the things on the ground.

    concept, unseen, style   the likeliest of all listed things is the right one (and the nearest real picture is of the style)
    colour, background       that, and most of the thing's colour, or the ground, has the colour
    count                    so many things, most of which are the right one
    pair, position           the two largest things are the two, in order
    ground                   what stands behind has the colour, whatever the thing is taken for; read off the frame, not judged
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from ddgen.app import keying
from ddgen.app.concepts import BACKGROUNDS
from ddgen.app.judge import Judge, whole
from ddgen.app.keying import Pixels
from ddgen.app.stickers import body_hue, laid_on, recolour
from ddgen.app.suite import Row


BLUR = 1.0  # pixels of 128
TILTED = (1.1, 0.1, -12.8, -0.1, 1.1, 0.0)  # a tenth smaller, turned by 5 degrees: out to in, in pixels of 128
GROUND = "ground"  # asked of all rows with a background, besides their own kind


@dataclass
class Court:
    """The evaluator with the things it chooses among. real: cut-outs of real pictures by (icon, style)."""

    judge: Judge
    listed: Sequence[str]
    real: Mapping[tuple[str, str], Pixels] = field(default_factory=dict)

    def right(self, row: Row, picture: Pixels) -> bool:
        """Return whether a picture (H, W, 3) shows what the row says."""
        return answers(row, self.seen(row, picture))[row.kind]

    def seen(self, row: Row, picture: Pixels) -> str:
        """Return what a picture shows of what the row asks, in the words of `wanted`."""
        keyed = keying.key(picture)
        if not keyed.things:
            return "nothing"
        if row.kind in ("pair", "position"):
            return self._two(row, keyed)
        if row.kind == "count":
            names = self.judge.name([keyed.cut(thing) for thing in keyed.things], self.listed)
            return f"{len(names)} {max(sorted(set(names)), key=names.count)}"
        cut = whole(keyed)
        (name,) = self.judge.name([cut], self.listed)
        found = [name]
        if row.colour:
            found.append(keying.colour(cut))
        if row.background:
            found.append(f"on {keying.background(keyed.ground)}")
        if row.style:
            found.append(self._style(row.concepts[0], cut))
        return " ".join(found)

    def _two(self, row: Row, keyed: keying.Keyed) -> str:
        if len(keyed.things) < 2:
            return "one thing"
        both = list(keyed.things[:2])
        axis = 1 if row.relation == "above" else 0
        both.sort(key=lambda thing: keyed.middle(thing)[axis])
        names = self.judge.name([keyed.cut(thing) for thing in both], self.listed)
        return f" {row.relation or 'and'} ".join(names if row.relation else sorted(names))

    def _style(self, icon: str, cut: Pixels) -> str:
        styles = [style for known, style in self.real if known == icon]
        if not styles:
            return ""
        rows = self.judge.embed([cut, *(self.real[icon, style] for style in styles)])
        return styles[int((rows[1:] @ rows[0]).argmax())]


def wanted(row: Row) -> str:
    """Return what a right picture shows, in words."""
    if row.kind == "count":
        return f"{row.count} {row.concepts[0]}"
    if row.kind in ("pair", "position"):
        return f" {row.relation or 'and'} ".join(row.concepts if row.relation else sorted(row.concepts))
    found = [row.concepts[0]]
    if row.colour:
        found.append(row.colour)
    if row.background:
        found.append(f"on {row.background}")
    if row.style:
        found.append(row.style)
    return " ".join(found)


def answers(row: Row, seen: str) -> dict[str, bool]:
    """Return by kind whether what was seen in a picture is right."""
    found = {row.kind: seen == wanted(row)}
    if row.background:
        found[GROUND] = f" on {row.background}" in seen
    return found


def staged(row: Row, real: Mapping[tuple[str, str], Pixels], style: str) -> Pixels | None:
    """Return the picture that the row asks for, put together of real cut-outs (RGBA) in one style; None where one is
    missing. The evaluator is asked about these first. Where it asks for a style, somewhat blurred and turned."""
    style = row.style or style
    parts = [real.get((icon, style)) for icon in row.concepts]
    if any(part is None for part in parts):
        return None
    if row.kind == "count":
        parts = parts * row.count
    side = 2 * keying.SIDE
    canvas = Image.new("RGBA", (side, side))
    spots = [(1.0, 0.5, 0.5)]
    if len(parts) == 2:
        spots = [(0.46, 0.5, 0.25), (0.46, 0.5, 0.75)] if row.relation == "above" else [(0.46, 0.25, 0.5), (0.46, 0.75, 0.5)]
    elif len(parts) > 2:
        spots = [(0.44, 0.26, 0.26), (0.44, 0.74, 0.26), (0.44, 0.26, 0.74), (0.44, 0.74, 0.74)]
    for part, (scale, x, y) in zip(parts, spots, strict=False):
        raw = part if not row.colour else recolour(part, row.colour, body_hue(part))
        size = round(scale * side)
        image = Image.fromarray(raw).convert("RGBa").resize((size, size), Image.Resampling.BICUBIC)
        if row.style:  # else it would be asked which of three pictures is equal to one of them
            image = image.filter(ImageFilter.GaussianBlur(BLUR))
        image = image.convert("RGBA")
        if row.style:
            image = image.transform(image.size, Image.Transform.AFFINE, TILTED, Image.Resampling.BILINEAR)
        canvas.alpha_composite(image, (max(0, round(x * side - size / 2)), max(0, round(y * side - size / 2))))
    ground = BACKGROUNDS[row.background] if row.background else (255, 255, 255)
    return np.asarray(laid_on(np.asarray(canvas), ground))
