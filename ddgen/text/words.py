"""The words of a prompt and where the network reads them: which of the 77 k text states belong to which word.
Torch-free.

    "a red apple" -> start a red apple end ...: a at 1, red at 2, apple at 3

A word may have several tokens, and then several places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ddgen.errors import UsageError
from ddgen.text.chunks import Chunks, chunk_prompt
from ddgen.text.prompt import compose
from ddgen.text.tokens import CHUNK, Tokenizer


@dataclass(frozen=True)
class Word:
    """One word as it stands in the prompt, in lower case, and its places among the text states."""

    text: str
    places: tuple[int, ...]


def single_text(prompt: str, steps: int, syntax: str) -> str:
    """Return what the network reads of a prompt that says the same at every step.

    Raises:
        UsageError: it is composed of several texts, or changes.
    """
    parts = compose(prompt, steps, syntax)
    if len(parts) > 1 or len(parts[0].timeline) > 1:
        raise UsageError(
            "a prompt with AND or changes over the steps has several texts",
            "give one, or --prompt-syntax plain",
            id="usage.explain",
        )
    return parts[0].at(1)


def words_of(chunks: Chunks, tokenizer: Tokenizer) -> list[Word]:
    """Return the words in order, marks of punctuation left out."""
    words: list[Word] = []
    text, places = "", list[int]()
    for number, body in enumerate(chunks.bodies):
        for i, token in enumerate(body):
            piece = tokenizer.piece(token)
            text += piece.strip()
            places.append(CHUNK * number + 1 + i)
            if piece.endswith(" ") or i == len(body) - 1:
                if any(c.isalnum() for c in text):
                    words.append(Word(text, tuple(places)))
                text, places = "", []
    return words


def tokens_of(chunks: Chunks, tokenizer: Tokenizer) -> list[str]:
    """Return the text of each token, for people to read."""
    return [tokenizer.piece(token).strip() for body in chunks.bodies for token in body]


def choose_words(words: Sequence[Word], asked: Sequence[str] | None) -> list[Word]:
    """Return the words asked for, wherever they stand; all when nobody asks.

    Raises:
        UsageError: one is not in the prompt, or the prompt has none.
    """
    if not words:
        raise UsageError(
            "the prompt has no words", 'write some, as in: ddgen explain "a red apple"', id="usage.explain"
        )
    if asked is None:
        return list(words)
    for word in asked:
        if all(known.text != word.casefold().strip() for known in words):
            known = ", ".join(dict.fromkeys(word.text for word in words))
            raise UsageError(
                f"'{word.strip()}' is not a word of the prompt", f"use some of: {known}", id="usage.words"
            )
    wanted = {word.casefold().strip() for word in asked}
    return [word for word in words if word.text in wanted]


def read(prompt: str, steps: int, syntax: str) -> tuple[list[Word], list[str], int]:
    """Return the words and the tokens of a prompt, and how many states its text has.

    Raises:
        UsageError: a prompt of several texts.
    """
    tokenizer = Tokenizer()
    chunks = chunk_prompt(single_text(prompt, steps, syntax), tokenizer, syntax)
    return words_of(chunks, tokenizer), tokens_of(chunks, tokenizer), CHUNK * len(chunks)
