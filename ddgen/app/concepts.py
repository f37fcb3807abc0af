"""What the sticker data set shows and how it is called: concepts, captions and colours.

    red-apple | red apple, apple        ->  "a red apple", "an apple, twemoji style", "noto apple", ...

Every caption has a weight: how often training draws it. Knows no pictures.
"""

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
RECOLOURED_WEIGHT = 1 / 3

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


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn. icon: its name in the emoji sets; names: how people call it, marked !
    where no article fits."""

    icon: str
    names: tuple[str, ...]
    recolour: bool = False

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
        InputError: no such file, or a line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"'{path}' cannot be read ({type(error).__name__})", "check the path", id="input.concepts"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        icon, *rest = (part.strip() for part in line.split("|"))
        names = tuple(name.strip() for name in rest[0].split(",")) if rest else ()
        if (
            not icon
            or not names
            or not all(name.rstrip("!") for name in names)
            or rest[1:] not in ([], ["recolour"])
        ):
            raise InputError(
                f"'{path}' line {number} is wrong",
                "write it as: red-apple | red apple, apple",
                id="input.concepts",
            )
        yield Concept(icon, names, len(rest) == 2)


def with_article(name: str) -> str:
    """Return "a pear", "an apple", "grapes" (for "grapes!")."""
    if name.endswith("!"):
        return name[:-1]
    vowel = name[0] in "aeio" or (name[0] == "u" and not name.startswith(("uni", "ufo")))
    return f"{'an' if vowel else 'a'} {name}"


def captions(names: tuple[str, ...], style: str) -> dict[str, float]:
    """Return every caption of a picture with its weight."""
    found: dict[str, float] = {}
    for name in names:
        for template, weight in TEMPLATES:
            text = template.format(phrase=with_article(name), name=name.rstrip("!"), style=style)
            found[text] = found.get(text, 0.0) + weight
    return found
