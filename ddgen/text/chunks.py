"""Weighted runs -> chunks of tokens, and the report of them that people read. Torch-free.

Each run is tokenised by itself, so that no token spans a bracket and each has the weight of its run. A chunk
holds 75 tokens; BREAK begins one; a text of any length has as many as it needs, none empty but those that
BREAK asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ddgen.text.prompt import Run, compose, parse
from ddgen.text.tokens import BODY, CHUNK, END_ID, Tokenizer, cuts, frame


@dataclass(frozen=True)
class Chunks:
    """The tokens of one text, without start, end and padding, and a weight for each."""

    bodies: tuple[tuple[int, ...], ...]
    body_weights: tuple[tuple[float, ...], ...]

    def __len__(self) -> int:
        return len(self.bodies)

    @property
    def count(self) -> int:
        """Return the number of tokens, start, end and padding not counted."""
        return sum(len(body) for body in self.bodies)

    def ids(self, pad_id: int = END_ID, at_least: int = 0) -> list[tuple[int, ...]]:
        """Return the chunks as the tower takes them, 77 ids each, followed by empty ones up to `at_least`."""
        empty = at_least - len(self)
        return [tuple(frame(body, pad_id)) for body in (*self.bodies, *[()] * empty)]

    def weights(self, at_least: int = 0) -> list[tuple[float, ...]]:
        """Return the weight of each of the 77 places of each chunk; 1 for start, end and padding."""
        empty = at_least - len(self)
        rows = (*self.body_weights, *[()] * empty)
        return [(1.0, *row, *[1.0] * (CHUNK - 1 - len(row))) for row in rows]


def tokenize(runs: Sequence[Run], tokenizer: Tokenizer) -> Chunks:
    """Cut the tokens of weighted runs into chunks; at least one."""
    sections: list[tuple[list[int], list[float]]] = [([], [])]
    for run in runs:
        if run.new_chunk:
            sections.append(([], []))
        tokens = tokenizer.encode(run.text)
        sections[-1][0].extend(tokens)
        sections[-1][1].extend([run.weight] * len(tokens))
    if len(sections) > 1 and not sections[-1][0]:
        sections.pop()
    bodies, weights = [], []
    for tokens, token_weights in sections:
        for start, stop in cuts(tokens):
            bodies.append(tuple(tokens[start:stop]))
            weights.append(tuple(token_weights[start:stop]))
    return Chunks(tuple(bodies), tuple(weights))


def chunk_prompt(text: str, tokenizer: Tokenizer, syntax: str = "a1111") -> Chunks:
    """Return the chunks of one text, as it stands at one step.

    Raises:
        UsageError: unknown syntax.
    """
    return tokenize(parse(text, syntax), tokenizer)


@dataclass(frozen=True)
class Token:
    """One token: its id, the text it stands for (a space behind it where a word ends), its weight."""

    id: int
    text: str
    weight: float


@dataclass(frozen=True)
class TokenReport:
    """What one text of a prompt comes to.

    part, steps: the place of the text in the prompt's composition, and the steps at which it is used
    (1-based). weight:      of the part.
    """

    text: str
    part: int
    steps: tuple[int, ...]
    weight: float
    chunks: tuple[tuple[Token, ...], ...]

    @property
    def count(self) -> int:
        """Return the number of tokens, start, end and padding not counted."""
        return sum(len(chunk) for chunk in self.chunks)

    @property
    def beyond(self) -> tuple[Token, ...]:
        """Return what a program that knows no chunks would cut: the tokens after the 75th."""
        return tuple(token for chunk in self.chunks for token in chunk)[BODY:]


def report(
    text: str, tokenizer: Tokenizer, syntax: str = "a1111", *, steps: int, conjunction: bool = True
) -> tuple[TokenReport, ...]:
    """Return a report for each distinct text of each part of a prompt, in the order of use; at least one.

    Raises:
        UsageError: unknown syntax.
    """
    reports = []
    for number, part in enumerate(compose(text, steps, syntax, conjunction=conjunction)):
        used: dict[str, list[int]] = {}
        begin = 1
        for end, words in part.timeline:
            used.setdefault(words, []).extend(range(begin, end + 1))
            begin = end + 1
        for words, at in used.items():
            chunks = chunk_prompt(words, tokenizer, syntax)
            tokens = tuple(
                tuple(
                    Token(token, tokenizer.piece(token), weight)
                    for token, weight in zip(ids, weights, strict=True)
                )
                for ids, weights in zip(chunks.bodies, chunks.body_weights, strict=True)
            )
            reports.append(TokenReport(words, number, tuple(at), part.weight, tokens))
    return tuple(reports)
