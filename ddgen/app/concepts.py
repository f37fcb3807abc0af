"""What the sticker data set shows and how it is called: concepts, captions, colours and backgrounds.

    red-apple | red apple, apple        ->  "a red apple", "an apple, twemoji style", "noto apple", ...
    on blue                             ->  "a red apple on a blue background", ...

Every caption has a weight: how often training draws it. A fixed part of the compositions (a thing in a colour
that is not its own, a thing on a background, two things) is held out: never trained, so that it can be asked for.
Knows no pictures.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddgen.errors import InputError

FILE = Path(__file__).with_name("concepts.txt")

# style word -> npm package of the icons
STYLES = {
    "noto": "@iconify-json/noto",
    "twemoji": "@iconify-json/twemoji",
    "flat": "@iconify-json/fluent-emoji-flat",
}

# colour -> hue in degrees, factors on saturation and value
COLOURS = {
    "red": (0, 1.0, 1.0),
    "orange": (28, 1.0, 1.05),
    "yellow": (48, 1.0, 1.15),
    "green": (125, 0.9, 0.85),
    "blue": (212, 1.0, 1.0),
    "purple": (275, 0.8, 0.9),
    "pink": (335, 0.62, 1.12),
}
RECOLOURED_WEIGHT = 1 / 4

# background -> RGB; the last is a colour that no thing has, which `--transparent` keys out
BACKGROUNDS = {
    "red": (229, 57, 53),
    "orange": (251, 140, 0),
    "yellow": (253, 216, 53),
    "green": (67, 160, 71),
    "blue": (66, 133, 244),
    "purple": (142, 36, 170),
    "pink": (244, 143, 177),
    "black": (20, 20, 20),
    "gray": (158, 158, 158),
    "magenta": (255, 0, 255),
}
KEY = "magenta"
BACKGROUND_WEIGHT = 1 / 16
KEY_WEIGHT = 1 / 4
HELD_OUT = 5  # one composition in so many is never trained

# how a phrase "a red apple" (or a bare "red apple") is put, and how often
TEMPLATES = (
    ("{phrase}", 3.0),
    ("{name}", 1.5),
    ("{phrase}, {style} style", 1.0),
    ("{phrase} in {style} style", 0.5),
    ("{style} {name}", 0.4),
    ("{name} emoji", 0.4),
    ("a sticker of {phrase}", 0.4),
    ("a picture of {phrase}", 0.4),
    ("a drawing of {phrase}", 0.3),
    ("an icon of {phrase}", 0.3),
)

# and of the further words, which are there to show that many words mean one thing
ALSO = (("{phrase}", 0.6), ("{name}", 0.3))

ON_BACKGROUND = (
    ("{phrase} on a {colour} background", 3.0),
    ("{name} on a {colour} background", 1.5),
    ("{phrase}, {style} style, on a {colour} background", 1.0),
    ("{phrase}, {colour} background", 1.0),
)


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn. icon: its name in the emoji sets; names: how people call it, marked !
    where no article fits; also: further words for it; recolour: drawn in seven colours; scenes: drawn in
    twos, threes and fours, and beside others.
    """

    icon: str
    names: tuple[str, ...]
    recolour: bool = False
    scenes: bool = False
    also: tuple[str, ...] = ()

    @property
    def phrase(self) -> str:
        """The canonical prompt, as "a red apple"."""
        return with_article(self.names[0])

    @property
    def plain_name(self) -> str:
        """The first name without a colour word: what a colour can be put before."""
        return next((name for name in self.names if name.split()[0] not in COLOURS), self.names[0])


def concepts(path: Path = FILE) -> Iterator[Concept]:
    """Yield the concepts of a list, in its order.

    Raises:
        InputError: no such file, a line that is wrong, or none.
    """
    example = "write it as: red-apple | red apple, apple"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"'{path}' cannot be read ({type(error).__name__})", "check the path", id="input.concepts"
        ) from None
    told = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not told:
        raise InputError(f"'{path}' names nothing to draw", example, id="input.concepts")
    for number, line in told:
        icon, *rest = (part.strip() for part in line.split("|"))
        names, flags, also = ([*rest, "", "", ""])[:3]
        called, further = ([name.strip() for name in part.split(",") if part] for part in (names, also))
        if (
            not icon
            or not called
            or not all(name.rstrip("!") for name in called + further)
            or not set(flags.split()) <= {"recolour", "scenes"}
            or len(rest) > 3
        ):
            raise InputError(
                f"'{path}' line {number} is wrong",
                example,
                id="input.concepts",
            )
        yield Concept(icon, tuple(called), "recolour" in flags, "scenes" in flags, tuple(further))


def with_article(name: str) -> str:
    """Return "a pear", "an apple", "grapes" (for "grapes!")."""
    if name.endswith("!"):
        return name[:-1]
    vowel = name[0] in "aeio" or (name[0] == "u" and not name.startswith(("uni", "ufo")))
    return f"{'an' if vowel else 'a'} {name}"


def plural(name: str) -> str:
    """Return "foxes", "cherries", "apples"."""
    if name.endswith(("s", "x", "ch", "sh")):
        return f"{name}es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"


def captions(names: tuple[str, ...], style: str, also: tuple[str, ...] = ()) -> dict[str, float]:
    """Return every caption of a picture with its weight."""
    found: dict[str, float] = {}
    for words, templates in ((names, TEMPLATES), (also, ALSO)):
        for name in words:
            for template, weight in templates:
                text = template.format(phrase=with_article(name), name=name.rstrip("!"), style=style)
                found[text] = found.get(text, 0.0) + weight
    return found


def on_background(names: tuple[str, ...], style: str, colour: str) -> dict[str, float]:
    """Return the captions of a picture on a coloured background; of its first two names."""
    return {
        template.format(phrase=with_article(name), name=name.rstrip("!"), style=style, colour=colour): weight
        for name in names[:2]
        for template, weight in ON_BACKGROUND
    }


def held_out(icon: str, colour: str, kind: str) -> bool:
    """Return whether a composition is never trained. kind: "thing" (recoloured), "background", "pair" (`colour` is
    the other thing) or "count" (it is the number).

    The choice hangs on the names alone, so it is the same in every build.
    """
    if kind == "background" and colour == KEY:
        return False
    digest = hashlib.sha256(f"{kind}/{icon}/{colour}".encode()).digest()
    return digest[0] % HELD_OUT == 0
