r"""Prompts that change over the steps: `[from:to:when]`, `[to:when]`, `[from::when]`, `[a|b|c]`. Torch-free.

    text      = (prompt | stray bracket or colon)*
    prompt    = (emphasis | scheduled | alternate | plain)*
    emphasis  = "(" prompt ")" | "(" prompt ":" prompt ")" | "[" prompt "]"        kept as it stands
    scheduled = "[" (prompt ":")? prompt ":" number "]"
    alternate = "[" prompt ("|" prompt)+ "]"
    plain     = any characters but \ [ ] ( ) : |, or \ and a character

This is AUTOMATIC1111's grammar. Brackets match in one way only, so one pass with a stack of open brackets
decides it. A text outside the grammar (a stray `|`, a backslash at the end of a line) is literal at all
steps, and so is one with changes nested more than 50 deep.
"""

import re
from dataclasses import dataclass, field

MAX_NESTING = 50

_MARK = re.compile(r"\\.|[^\\\[\]():|]+|.", re.DOTALL)
_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*")


@dataclass(frozen=True)
class _Region:
    """A stretch of the source text: plain but for its holes."""

    start: int
    stop: int
    holes: "tuple[_Hole, ...]"


@dataclass(frozen=True)
class _Hole:
    """A bracket that says different things at different steps.

    Without `when` its options take turns; with it there are two, the one before and the one after that step.
    """

    start: int
    stop: int
    options: tuple[_Region, ...]
    when: str | None
    depth: int


@dataclass
class _Open:
    """A bracket not yet closed: its finished regions, the separators behind them, the region being read."""

    bracket: str
    opened: int
    start: int
    separators: str = ""
    regions: list[_Region] = field(default_factory=list)
    holes: list[_Hole] = field(default_factory=list)

    def cut(self, place: int) -> None:
        """End the region being read at `place` and begin one behind it."""
        self.regions.append(_Region(self.start, place, tuple(self.holes)))
        self.start, self.holes = place + 1, []


class _Literal(Exception):
    """The text is outside the grammar."""


def schedule(text: str, steps: int, first_steps: int | None = None) -> list[tuple[int, str]]:
    """Return what a prompt says as (last step, text) pairs in order; steps count from 1, to `steps`.

    first_steps: for a second pass over an image, the steps of the first: a whole number counts on from there,
        a fraction from 1.0.
    """
    try:
        region = _read(text)
    except _Literal:
        return [(steps, text)]
    ends = {steps}
    _collect_ends(region, steps, first_steps, ends)
    return [(end, _render(text, region, end, steps, first_steps)) for end in sorted(ends)]


def _read(text: str) -> _Region:
    holes: list[_Hole] = []
    stack: list[_Open] = []
    for mark in _MARK.finditer(text):
        token, place = mark[0], mark.start()
        if token in ("\\", "\\\n") or (token == "|" and not stack):
            raise _Literal
        if token in ("(", "["):
            stack.append(_Open(token, place, place + 1))
        elif token in (":", "|") and stack:
            stack[-1].separators += token
            stack[-1].cut(place)
        elif token in (")", "]") and stack:
            left = _close(text, stack[-1], token, place)
            if left is None:
                holes += _stray(stack)
            else:
                stack.pop()
                (stack[-1].holes if stack else holes).extend(left)
    return _Region(0, len(text), (*holes, *_stray(stack)))


def _stray(stack: list[_Open]) -> list[_Hole]:
    """Take all open brackets for text, and return what was found inside them."""
    holes: list[_Hole] = []
    for group in stack:
        if "|" in group.separators:
            raise _Literal
        for region in group.regions:
            holes += region.holes
        holes += group.holes
    stack.clear()
    return holes


def _close(text: str, group: _Open, token: str, place: int) -> list[_Hole] | None:
    """Return the holes that a closed bracket leaves in its surroundings; None when it is not well formed."""
    kinds = group.separators
    group.cut(place)
    if group.bracket + token == "()":
        return [hole for region in group.regions for hole in region.holes] if kinds in ("", ":") else None
    if group.bracket + token != "[]":
        return None
    if not kinds:
        return list(group.regions[0].holes)
    regions, when = group.regions, None
    if kinds in (":", "::"):
        number = _NUMBER.fullmatch(text, regions[-1].start, place)
        if number is None:
            return None
        when = number[1]
        nothing = _Region(group.opened, group.opened, ())
        regions = [nothing, regions[0]] if kinds == ":" else regions[:2]
    elif set(kinds) != {"|"}:
        return None
    depth = 1 + max((hole.depth for region in regions for hole in region.holes), default=0)
    if depth > MAX_NESTING:
        raise _Literal
    return [_Hole(group.opened, place + 1, tuple(regions), when, depth)]


def _last_step(when: str, steps: int, first_steps: int | None) -> int:
    value = float(when)
    if "." in when:
        value = (value if first_steps is None else value - 1.0) * steps
    elif first_steps is not None:
        value -= first_steps
    return int(max(0.0, min(float(steps), value)))


def _collect_ends(region: _Region, steps: int, first_steps: int | None, ends: set[int]) -> None:
    for hole in region.holes:
        if hole.when is None:
            ends.update(range(1, steps + 1))
        elif _last_step(hole.when, steps, first_steps) > 0:
            ends.add(_last_step(hole.when, steps, first_steps))
        for option in hole.options:
            _collect_ends(option, steps, first_steps, ends)


def _render(text: str, region: _Region, step: int, steps: int, first_steps: int | None) -> str:
    pieces = []
    place = region.start
    for hole in region.holes:
        if hole.when is None:
            option = (step - 1) % len(hole.options)
        else:
            option = 0 if step <= _last_step(hole.when, steps, first_steps) else 1
        pieces += [text[place : hole.start], _render(text, hole.options[option], step, steps, first_steps)]
        place = hole.stop
    return "".join([*pieces, text[place : region.stop]])
