r"""The prompt language: text -> weighted runs, composed parts and changes over the steps. Torch-free.

    compose:  "a cat AND a dog :0.5"     -> parts, each with its weight
    schedule: "a [cat:dog:0.5]"          -> [(10, "a cat"), (20, "a dog")] for 20 steps
    parse:    "a (red:1.2) [apple] \(x"  -> runs, each with its weight, some beginning a new chunk (BREAK)

One after the other, so `:` in square brackets means a change over the steps where it can. This is
AUTOMATIC1111's language ("a1111"); under "plain" every character is text. No text is an error: what is not
well formed is read literally.

Where we differ from AUTOMATIC1111: BREAK inside brackets starts a chunk (there its marker is multiplied away
and the word is drawn); the weight after the last colon is read only where there is an AND ("16:9" is a
ratio); a weight that is no number (`(a:1.2.3)`) is text; products of weights are held within +-10,000; beside
a bracket that has no partner, a well-formed change still counts (its parser leaves `[a:7]]` literal).
"""

import re
from dataclasses import dataclass

from ddgen.errors import choose
from ddgen.text.timeline import schedule

__all__ = ["SYNTAXES", "Part", "Run", "compose", "parse", "schedule"]

SYNTAXES = ("a1111", "plain")
STRONGER = 1.1
LIMIT = 1e4

_MARK = re.compile(
    r"""(?P<escape> \\ [\\()\[\]]? )
    | (?P<open> [(\[] )
    | : \s* (?P<weight> [+-]? (?: \d+ (?: \.\d* )? | \.\d+ ) ) \s* \)
    | [)\]]
    | [^\\()\[\]:]+
    | :""",
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")
_AND = re.compile(r"\bAND\b")
_PART_WEIGHT = re.compile(r"\s*[+-]?(?:\d+\.?|\d*\.\d+)\s*")


@dataclass(frozen=True)
class Run:
    """A stretch of text whose tokens share one weight; `new_chunk` when a BREAK stands before it."""

    text: str
    weight: float = 1.0
    new_chunk: bool = False


@dataclass(frozen=True)
class Part:
    """One text of a composition: its weight, and what it says until which step (1-based, inclusive)."""

    weight: float
    timeline: tuple[tuple[int, str], ...]

    def at(self, step: int) -> str:
        """Return the text of the given step, counted from 1."""
        return next((text for end, text in self.timeline if step <= end), self.timeline[-1][1])


def compose(
    text: str,
    steps: int,
    syntax: str = "a1111",
    *,
    conjunction: bool = True,
    first_steps: int | None = None,
) -> tuple[Part, ...]:
    """Split a prompt at AND and lay each part out over the steps.

    conjunction: False for a negative prompt, in which AND is a word.
    first_steps: as in `schedule`.

    Raises:
        UsageError: unknown syntax.
    """
    if choose("prompt syntax", syntax, SYNTAXES) == "plain":
        return (Part(1.0, ((steps, text),)),)
    pieces = _AND.split(text) if conjunction else [text]
    weighed = [_part_weight(piece) for piece in pieces] if len(pieces) > 1 else [(text, 1.0)]
    return tuple(Part(weight, tuple(schedule(piece, steps, first_steps))) for piece, weight in weighed)


def _part_weight(text: str) -> tuple[str, float]:
    head, colon, tail = text.rpartition(":")
    if colon and _PART_WEIGHT.fullmatch(tail):
        return head.rstrip(), _held(float(tail))
    return text.rstrip(), 1.0


def parse(text: str, syntax: str = "a1111") -> tuple[Run, ...]:
    """Read brackets, weights and BREAK. At least one run; neighbours of equal weight are one run.

    Raises:
        UsageError: unknown syntax.
    """
    if choose("prompt syntax", syntax, SYNTAXES) == "plain":
        return (Run(text),)
    texts: list[tuple[str, bool]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    groups: dict[str, list[tuple[int, int, float]]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        groups[kind].append((opened[kind].pop(), len(texts), factor))

    for mark in _MARK.finditer(text):
        token = mark[0]
        if mark["escape"]:
            texts.append((token[1:], False))  # a lone backslash vanishes
        elif mark["open"]:
            opened[token].append(len(texts))
        elif mark["weight"] and opened["("]:
            close("(", _held(float(mark["weight"])))
        elif token == ")" and opened["("]:
            close("(", STRONGER)
        elif token == "]" and opened["["]:
            close("[", 1 / STRONGER)
        else:
            texts.extend(_breaks(token))
    for kind, factor in (("(", STRONGER), ("[", 1 / STRONGER)):
        while opened[kind]:
            close(kind, factor)
    rounds, squares = _products(groups["("], len(texts)), _products(groups["["], len(texts))
    return _merged([Run(text, a * b, new) for (text, new), a, b in zip(texts, rounds, squares, strict=True)])


def _held(weight: float) -> float:
    return max(-LIMIT, min(LIMIT, weight))


def _breaks(text: str) -> list[tuple[str, bool]]:
    """Split at BREAK, without the spaces around it: (text, comes after a BREAK) pairs."""
    first, *others = _BREAK.split(text)
    if not others:
        return [(first, False)]
    *middle, last = others
    return [(first.rstrip(), False), *((piece.strip(), True) for piece in middle), (last.lstrip(), True)]


def _products(groups: list[tuple[int, int, float]], count: int) -> list[float]:
    """Multiply the factors of the groups (start, stop, factor) around each of `count` runs; groups nest."""
    waiting = sorted(groups, key=lambda group: (-group[0], group[1]))
    inside: list[tuple[int, float]] = []
    products = []
    for index in range(count):
        while inside and inside[-1][0] <= index:
            inside.pop()
        while waiting and waiting[-1][0] == index:
            _, stop, factor = waiting.pop()
            if stop > index:
                inside.append((stop, _held(factor * (inside[-1][1] if inside else 1.0))))
        products.append(inside[-1][1] if inside else 1.0)
    return products


def _merged(runs: list[Run]) -> tuple[Run, ...]:
    groups: list[list[Run]] = []
    for run in runs:
        if groups and run.weight == groups[-1][0].weight and not run.new_chunk:
            groups[-1].append(run)
        else:
            groups.append([run])
    merged = [
        Run("".join(run.text for run in group), group[0].weight, group[0].new_chunk) for group in groups
    ]
    return tuple(merged) if merged else (Run(""),)
