r"""Dynamic prompts: one prompt that stands for many. Torch-free.

    {a|b|c}       one of them                  {2::a|b}         a twice as often, when drawn at random
    {2$$a|b|c}    two different ones, "a,b"    {2$$ and $$a|b}  joined by " and "
    {1-2$$a|b}    one or two; likewise {-2$$a|b} (from one) and {1-$$a|b} (to all)
    __animal__    a line of animal.txt         {2$$__animal__}  two different lines
    \{ \} \_      the characters; inside braces \| too

Expander.expand makes every text, Expander.pick one by a seed. The language is adieyal's dynamicprompts
without its variables, wrappers and samplers, and without a template engine. Spaces around an option are
dropped; a brace without partner is text. It comes before the prompt language of prompt.py, so that `{a|b}`
and `[a|b]` do not meet.

What one prompt may cost is bounded: 10,000 texts, 8 levels of braces and of files in files, 2**26 characters.
"""

import itertools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ddgen.errors import InputError
from ddgen.text.wildcards import Wildcards

MAX_TEXTS = 10_000
MAX_DEPTH = 8
MAX_WORK = 2**26  # characters written and nodes visited
_UNCOUNTED = 10**9  # counts stop here

_MARK = re.compile(r"\\.|__(?P<name>(?:[^\s_{}|\\]|_(?!_))+)__|[{}|]|[^\\{}|_]+|.", re.DOTALL)
_HEADER = re.compile(
    r"(?:(?P<exactly>\d{1,6})|(?P<low>\d{0,6})-(?P<high>\d{0,6}))\$\$(?:(?P<joiner>[^{}|$]*)\$\$)?"
)
_WEIGHT = re.compile(r"\s*(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})::")


@dataclass(frozen=True)
class _Wild:
    name: str


@dataclass(frozen=True)
class _Option:
    items: "tuple[_Item, ...]"
    weight: float = 1.0


@dataclass(frozen=True)
class _Group:
    """From `low` to `high` different options, joined; all of them where there are fewer."""

    options: tuple[_Option, ...]
    low: int
    high: int
    joiner: str
    depth: int


_Item = str | _Wild | _Group


@dataclass
class _Open:
    """A brace not yet closed: its header as typed, the finished options, the one being read."""

    header: str = ""
    options: list[list[_Item]] = field(default_factory=lambda: [[]])


def _parse(text: str) -> tuple[_Item, ...]:
    stack = [_Open()]
    place = 0
    while place < len(text):
        mark = _MARK.match(text, place)
        assert mark is not None
        token, place = mark[0], mark.end()
        inside = len(stack) > 1
        if token == "{":
            header = _HEADER.match(text, place)
            stack.append(_Open(header[0] if header else ""))
            place = header.end() if header else place
        elif token == "|" and inside:
            stack[-1].options.append([])
        elif token == "}" and inside:
            group = stack.pop()
            stack[-1].options[-1].append(_close(group))
        elif mark["name"] is not None:
            stack[-1].options[-1].append(_Wild(mark["name"]))
        elif token in ("\\{", "\\}", "\\_") or (token == "\\|" and inside):
            stack[-1].options[-1].append(token[1])
        else:
            stack[-1].options[-1].append(token)
    items: list[_Item] = []
    for depth, group in enumerate(stack):
        items += ["{", group.header] if depth else []
        for number, option in enumerate(group.options):
            items += ["|", *option] if number else option
    return _joined(items)


def _joined(items: list[_Item]) -> tuple[_Item, ...]:
    """Make one string of neighbouring strings."""
    made: list[_Item] = []
    plain: list[str] = []
    for item in [*items, None]:
        if isinstance(item, str):
            plain.append(item)
            continue
        made += ["".join(plain)] if any(plain) else []
        plain.clear()
        made += [item] if item is not None else []
    return tuple(made)


def _close(group: _Open) -> _Group:
    header = _HEADER.fullmatch(group.header)
    low, high, joiner = 1, 1, ","
    if header is not None:
        joiner = joiner if header["joiner"] is None else header["joiner"]
        low = int(header["exactly"] or header["low"] or 1)
        high = int(header["exactly"] or header["high"] or _UNCOUNTED)
        low, high = min(low, high), max(low, high)
    options = tuple(_option(items) for items in group.options)
    depth = 1 + max(
        (item.depth for option in options for item in option.items if isinstance(item, _Group)), default=0
    )
    if depth > MAX_DEPTH:
        raise InputError(
            f"braces are nested more than {MAX_DEPTH} deep",
            "write the options side by side",
            id="input.depth",
        )
    return _Group(options, low, high, joiner, depth)


def _option(items: list[_Item]) -> _Option:
    joined = list(_joined(items))
    weight = 1.0
    if joined and isinstance(joined[0], str):
        found = _WEIGHT.match(joined[0])
        if found is not None:
            weight = float(found[1])
            joined[0] = joined[0][found.end() :]
        joined[0] = joined[0].lstrip()
    if joined and isinstance(joined[-1], str):
        joined[-1] = joined[-1].rstrip()
    return _Option(_joined(joined), weight)


class Expander:
    """Expands prompts over one set of wildcard files; keep it, and each file is read and parsed once.

    wildcards: None makes `__name__` plain text.
    limit:     how many texts one prompt may stand for; mend: what is told to whom has more.
    plain:     the last `__name__` that was plain text for want of wildcard files, "" = none.
    """

    def __init__(
        self, wildcards: Wildcards | None = None, limit: int = MAX_TEXTS, mend: str = "take options out"
    ) -> None:
        self._wildcards = wildcards
        self._limit = limit
        self._mend = mend
        self.plain = ""
        self._options: dict[str, tuple[_Option, ...]] = {}
        self._counts: dict[tuple[str, int], list[int]] = {}
        self._work = 0

    def expand(self, text: str) -> list[str]:
        """Return every text that a prompt stands for, in order, without repetitions.

        Raises:
            InputError: too many texts or characters, nested too deep, or a fault in a wildcard file.
        """
        if not any(mark in text for mark in ("{", "\\", "__")):
            return [text]
        items = _parse(text)
        number = self._count(items, 0)
        if number > self._limit:
            many = f"{number:,}" if number < _UNCOUNTED else f"{number:,} or more"
            raise InputError(
                f"the prompt stands for {many} texts, at most {self._limit:,} are allowed",
                self._mend,
                id="input.expansions",
            )
        self._work = 0
        return list(dict.fromkeys(self._texts(items, 0)))

    def count(self, text: str) -> int:
        """Return how many texts a prompt stands for, repetitions included; 10**9 also means more.

        Raises:
            InputError: nested too deep, or a fault in a wildcard file.
        """
        return self._count(_parse(text), 0)

    def pick(self, text: str, seed: int) -> str:
        """Return one of the texts at random, by the weights; the same for the same seed, everywhere.

        Raises:
            InputError: too many characters, nested too deep, or a fault in a wildcard file.
        """
        self._work = 0
        items = _parse(text)
        self._count(items, 0)  # finds every fault, whatever the seed would draw
        return self._pick(items, random.Random(seed), 0)

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > MAX_WORK:
            raise InputError(
                f"the prompt's texts have more than {MAX_WORK:,} characters",
                "take options out",
                id="input.expansions",
            )

    def _values(self, wild: _Wild, depth: int) -> tuple[_Option, ...]:
        assert self._wildcards is not None
        if depth >= MAX_DEPTH:
            raise InputError(
                f"wildcard '{wild.name}' is nested more than {MAX_DEPTH} deep",
                "does a file name itself?",
                id="input.depth",
            )
        if wild.name not in self._options:
            lines = self._wildcards.lines(wild.name)
            self._options[wild.name] = tuple(_option(list(_parse(line))) for line in lines)
        return self._options[wild.name]

    def _file_of(self, group: _Group) -> _Wild | None:
        """Return the wildcard whose lines are a group's options: one that stands alone in it."""
        if self._wildcards is None or len(group.options) != 1 or len(group.options[0].items) != 1:
            return None
        only = group.options[0].items[0]
        return only if isinstance(only, _Wild) else None

    def _choices(self, group: _Group, depth: int) -> tuple[tuple[_Option, ...], int, int, int]:
        """Return a group's options, the least and greatest number of them, and their depth of files."""
        wild = self._file_of(group)
        options = group.options if wild is None else self._values(wild, depth)
        most = len(options)
        return options, min(group.low, most), min(group.high, most), depth + (wild is not None)

    def _count(self, items: tuple[_Item, ...], depth: int) -> int:
        number = 1
        for item in items:
            if isinstance(item, _Group):
                number *= self._count_group(item, depth)
            elif isinstance(item, _Wild) and self._wildcards is not None:
                number *= sum(self._count_values(item, depth))
            number = min(number, _UNCOUNTED)
        return number

    def _count_values(self, wild: _Wild, depth: int) -> list[int]:
        key = (wild.name, depth)
        if key not in self._counts:
            values = self._values(wild, depth)
            self._counts[key] = [self._count(value.items, depth + 1) for value in values]
        return self._counts[key]

    def _count_group(self, group: _Group, depth: int) -> int:
        """Sum k! times the k-th elementary symmetric polynomial of the options' counts over k."""
        wild = self._file_of(group)
        if wild is None:
            numbers = [self._count(option.items, depth) for option in group.options]
        else:
            numbers = self._count_values(wild, depth)
        most = len(numbers)
        low, high = min(group.low, most), min(group.high, most)
        if high > 12 or math.perm(most, high) >= _UNCOUNTED:
            return _UNCOUNTED
        chosen = [1] + [0] * high
        for number in numbers:
            for k in range(high, 0, -1):
                chosen[k] += chosen[k - 1] * number
        return min(_UNCOUNTED, sum(math.factorial(k) * chosen[k] for k in range(low, high + 1)))

    def _texts(self, items: tuple[_Item, ...], depth: int) -> Iterator[str]:
        lists = [list(self._item_texts(item, depth)) for item in items]
        for pieces in itertools.product(*lists):
            text = "".join(pieces)
            self._spend(1 + len(text))
            yield text

    def _item_texts(self, item: _Item, depth: int) -> Iterator[str]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, _Wild):
            if self._wildcards is None:
                self.plain = f"__{item.name}__"
                yield self.plain
            else:
                for value in self._values(item, depth):
                    yield from self._texts(value.items, depth + 1)
        else:
            options, low, high, depth = self._choices(item, depth)
            lists = [list(self._texts(option.items, depth)) for option in options]
            for k in range(low, high + 1):
                for some in itertools.permutations(lists, k):
                    for pieces in itertools.product(*some):
                        text = item.joiner.join(pieces)
                        self._spend(1 + len(text))
                        yield text

    def _pick(self, items: tuple[_Item, ...], rng: random.Random, depth: int) -> str:
        pieces = []
        for item in items:
            self._spend(1)
            if isinstance(item, str):
                self._spend(len(item))
                pieces.append(item)
            elif isinstance(item, _Wild):
                if self._wildcards is None:
                    pieces.append(f"__{item.name}__")
                else:
                    (value,) = _draw(self._values(item, depth), 1, rng)
                    pieces.append(self._pick(value.items, rng, depth + 1))
            else:
                options, low, high, inner = self._choices(item, depth)
                number = low + int(rng.random() * (high - low + 1))
                drawn = _draw(options, number, rng)
                self._spend(len(item.joiner) * len(drawn))
                pieces.append(item.joiner.join(self._pick(option.items, rng, inner) for option in drawn))
        return "".join(pieces)


def _draw(options: tuple[_Option, ...], number: int, rng: random.Random) -> list[_Option]:
    """Draw different options by weight, those of weight 0 never unless all are.

    Only `rng.random` is used: Python promises its values for a seed, not those of `choices` and `sample`.
    Ref: Efraimidis and Spirakis 2006: the greatest log(u) / weight are a weighted sample without replacement.
    """
    if all(option.weight == 0 for option in options):
        options = tuple(_Option(option.items) for option in options)
    keys = [
        math.log(1.0 - rng.random()) / option.weight if option.weight else -math.inf for option in options
    ]
    order = sorted(range(len(options)), key=lambda index: -keys[index])
    return [options[index] for index in order[:number] if keys[index] > -math.inf]
