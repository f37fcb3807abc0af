"""The evaluation suite: prompts with what a picture of each must show. Torch-free.

    {"prompt": "a fox on a blue background", "kind": "background", "concepts": ["fox"], "background": "blue"}

`build` makes it from the list of concepts; the rows that prompts/eval/*.jsonl hold are the fixed ones that figures are
given for. Kinds: concept, unseen (words that no caption has), colour, background, the same held out (never trained, as are
all rows of the kinds count, pair and position), style.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from ddgen.app.concepts import BACKGROUNDS, COLOURS, KEY, STYLES, Concept, concepts, held_out, with_article
from ddgen.app.scenes import NUMBERS, RELATIONS, Scene, scenes
from ddgen.errors import InputError

T = TypeVar("T")

HELD_OUT = "held-out-"
KINDS = (
    "concept", "unseen", "colour", f"{HELD_OUT}colour", "background", f"{HELD_OUT}background", "count", "pair", "position", "style",
)  # fmt: skip
TYPES = {
    "prompt": str, "kind": str, "concepts": list, "colour": str, "background": str, "count": int, "relation": str, "style": str,
}  # fmt: skip
NEEDS = {"count": "count", "position": "relation", "style": "style", "colour": "colour", "background": "background"}
MOST = max(NUMBERS)
EACH = 12  # rows of the kinds that are made of combinations

# icon: words that people say and no caption has
UNSEEN = {
    "dog-face": "puppy", "cat-face": "kitten", "rabbit-face": "hare", "pig-face": "piglet", "cow-face": "cattle",
    "honeybee": "bumblebee", "lady-beetle": "beetle", "t-rex": "tyrannosaurus", "tropical-fish": "goldfish",
    "automobile": "sedan", "bicycle": "cycle", "locomotive": "railway engine", "sailboat": "yacht", "airplane": "jet",
    "rocket": "spacecraft", "flying-saucer": "alien ship", "house": "cottage", "castle": "fortress",
    "closed-book": "novel", "wrapped-gift": "parcel", "gem-stone": "jewel", "red-heart": "love", "fire": "blaze",
    "deciduous-tree": "oak", "evergreen-tree": "spruce", "birthday-cake": "gateau", "hot-beverage": "espresso",
    "beer-mug": "lager", "french-fries": "potato chips", "balloon": "inflatable", "trophy": "prize", "alarm-clock": "timepiece",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One prompt. concepts: icons, the left or upper first; count: of the one; relation: one of RELATIONS."""

    prompt: str
    kind: str
    concepts: tuple[str, ...]
    colour: str = ""
    background: str = ""
    count: int = 0
    relation: str = ""
    style: str = ""


def build(listed: Sequence[Concept] | None = None) -> list[Row]:
    """Return the suite of a list of concepts, the list that ddgen is trained on by default."""
    chosen = list(concepts()) if listed is None else list(listed)
    known = {concept.icon: concept for concept in chosen}
    rows = [Row(concept.phrase, "concept", (concept.icon,)) for concept in chosen]
    rows += [
        Row(with_article(word), "unseen", (icon,))
        for icon, word in UNSEEN.items()
        if icon in known and word not in known[icon].names + known[icon].also
    ]
    coloured = [(concept, colour) for concept in chosen if concept.recolour for colour in COLOURS]
    grounded = [(concept, ground) for concept in chosen for ground in BACKGROUNDS if ground != KEY]
    for kind, pairs in (("thing", coloured), ("background", grounded)):
        trained = [pair for pair in pairs if not held_out(pair[0].icon, pair[1], kind)]
        held = [pair for pair in pairs if held_out(pair[0].icon, pair[1], kind)]
        make, called = (_coloured, "colour") if kind == "thing" else (_grounded, "background")
        rows += [make(*pair, kind=called) for pair in spaced(trained, 2 * EACH)]
        rows += [make(*pair, kind=HELD_OUT + called) for pair in spaced(held, 2 * EACH)]
    never = [scene for scene in scenes(chosen) if scene.held_out]
    rows += [_scene(scene, "count") for scene in spaced([s for s in never if s.count], 2 * EACH)]
    beside, placed = (spaced([s for s in never if s.relation in wanted], 2 * EACH) for wanted in (RELATIONS[:1], RELATIONS))
    rows += [_scene(scene, "pair") for scene in beside] + [_scene(scene, "position") for scene in placed]
    for index, concept in enumerate(spaced(chosen, 2 * EACH)):
        style = list(STYLES)[index % len(STYLES)]
        rows.append(Row(f"{concept.phrase}, {style} style", "style", (concept.icon,), style=style))
    return rows


def _coloured(concept: Concept, colour: str, *, kind: str) -> Row:
    return Row(with_article(f"{colour} {concept.plain_name}"), kind, (concept.icon,), colour=colour)


def _grounded(concept: Concept, ground: str, *, kind: str) -> Row:
    return Row(f"{concept.phrase} on a {ground} background", kind, (concept.icon,), background=ground)


def _scene(scene: Scene, kind: str) -> Row:
    prompts = list(scene.captions(""))
    icons = tuple(thing.icon for thing in scene.things)
    if kind == "pair":
        return Row(next(prompt for prompt in prompts if " and " in prompt), kind, icons)
    return Row(prompts[0], kind, icons, count=scene.count, relation=scene.relation)


def spaced(items: Sequence[T], count: int) -> list[T]:
    """Return `count` items at equal distances, all if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def line(row: Row) -> str:
    """Return a row as a line of JSON, without what it does not say."""
    return json.dumps({name: value for name, value in asdict(row).items() if value})


def read(paths: Sequence[Path]) -> Iterator[Row]:
    """Yield the rows of files.

    Raises:
        InputError: a file that cannot be read or is empty, or a line that is no row.
    """
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"'{path}' cannot be read ({type(error).__name__})", "check the path", id="input.suite") from None
        example = '{"prompt": "a fox", "kind": "concept", "concepts": ["fox"]}'
        if not lines:
            raise InputError(f"'{path}' has no rows", f"write some as {example}", id="input.suite")
        for number, text in enumerate(lines, 1):
            try:
                yield _row(json.loads(text))
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"'{path}' line {number} is wrong: {error}", f"write it as {example}", id="input.suite"
                ) from None


def _row(record: object) -> Row:
    """Raises: ValueError, which says what is wrong."""
    if not isinstance(record, dict):
        raise ValueError("no object")
    for name, value in record.items():
        kind = TYPES.get(name)
        if kind is None or not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} {json.dumps(value)}")
    missing = [name for name in ("prompt", "kind", "concepts") if not record.get(name)]
    if missing or not all(isinstance(icon, str) for icon in record["concepts"]):
        raise ValueError(f"no {missing[0]}" if missing else "concepts are words")
    row = Row(**{**record, "concepts": tuple(record["concepts"])})
    choices = {"kind": KINDS, "colour": COLOURS, "background": BACKGROUNDS, "relation": RELATIONS, "style": STYLES}
    for name, known in choices.items():
        if getattr(row, name) and getattr(row, name) not in known:
            raise ValueError(f"{name} '{getattr(row, name)}' is none of {', '.join(known)}")
    needed = NEEDS.get(row.kind.removeprefix(HELD_OUT))
    if needed is not None and not getattr(row, needed):
        raise ValueError(f"kind '{row.kind}' needs {needed}")
    if row.count and not 1 <= row.count <= MOST:
        raise ValueError(f"count {row.count} is not 1 to {MOST}")
    if len(row.concepts) != (2 if row.kind in ("pair", "position") else 1):
        raise ValueError(f"kind '{row.kind}' has not {len(row.concepts)} concepts")
    return row
