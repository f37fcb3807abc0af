"""CLIP's byte-pair tokens: text -> ids, and ids -> chunks of 77. Torch-free.

    text -> NFC -> whitespace runs to one space -> lower case -> words -> bytes -> merges -> ids in 0..49405
    chunk = start (49406), at most 75 ids, end (49407), padding: 77 ids

The vocabulary is the file that open_clip_torch ships, found without importing open_clip. Where CLIP's
tokenizers differ we do as transformers' CLIPTokenizer, which Stable Diffusion uses: no mojibake repair
(ftfy), no HTML unescaping (`&amp;` means the characters typed), and letters are lowered one at a time (a
final capital sigma becomes the plain small one). In one point we side with open_clip: `<|endoftext|>` typed
in a prompt is text, not the end token, so that a prompt cannot move the pooled position.

Nothing is cached on disk: building from that file takes 70 ms, reading a saved tokenizer.json 85 to 140 ms.
The first few short texts of a tokenizer are read with only those merges that their words can use, which takes
15 ms and gives the same ids: a merge makes a part of a word, or does nothing to it.
"""

import gzip
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ddgen.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

START_ID = 49406
END_ID = 49407
COMMA_ID = 267
CHUNK = 77
BODY = CHUNK - 2
BACKTRACK = 20  # tokens: how far before a full chunk's end a comma may be to become its end

_MERGES = 49152 - 256 - 2
_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_SHORT = 400  # characters: a text for which a small vocabulary is worth its making
_FEW = 4  # so many of them, then the whole vocabulary
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def vocabulary_file() -> Path:
    """Find CLIP's merges inside the installed open_clip, without importing it (that would import torch).

    Raises:
        ModelError: open_clip is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec("open_clip")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / _VOCABULARY
        if path.is_file():
            return path
    raise ModelError(
        "CLIP's vocabulary file is missing", "pip install open_clip_torch", id="model.vocabulary"
    )


def byte_symbols() -> dict[str, int]:
    """Return the character that stands for each byte, in the vocabulary's order: printable bytes first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + k): byte for k, byte in enumerate(others)}


@cache
def _read_merges(path: Path) -> str:
    """Return CLIP's merges, one a line, the two parts with a space between."""
    try:
        with gzip.open(path) as stream:
            data = stream.read(2**20)  # the file lists 262,144 merges; those that CLIP uses end before this
        text = b"\n".join(data.split(b"\n", _MERGES + 1)[1 : _MERGES + 1]).decode()  # line 0 is a version
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ModelError(
            f"cannot read {path.name}: {error}",
            "pip install --force-reinstall open_clip_torch",
            id="model.vocabulary",
        ) from error
    if text.count("\n") != _MERGES - 1 or text.count(" ") != _MERGES:
        raise _damaged(path)
    return text


def _damaged(path: Path) -> ModelError:
    mend = "pip install --force-reinstall open_clip_torch"
    return ModelError(f"{path.name} is damaged", mend, id="model.vocabulary")


def _pairs(path: Path) -> list[tuple[str, str]]:
    """Return all merges in their order."""
    text = _read_merges(path)
    words = text.replace("\n", " ").split(" ")  # 50,000 lines: no loop in Python over them
    merges = list(zip(words[::2], words[1::2], strict=False))
    if "\n".join(map(" ".join, merges)) != text:
        raise _damaged(path)
    return merges


class Tokenizer:
    """CLIP's tokenizer. Cheap to make: the vocabulary is read at the first use."""

    def __init__(self, vocabulary: Path | None = None) -> None:
        self._path = vocabulary
        self._words: dict[str, tuple[int, ...]] = {}
        self._pattern: re.Pattern[str] | None = None
        self._few = 0

    def learn(self, words: Mapping[str, Sequence[int]]) -> None:
        """Give whole words ids of their own, in place of all learnt before.

        Case does not matter; the longest word wins.
        """
        self._words = {word.lower(): tuple(ids) for word, ids in words.items()}
        longest_first = sorted(self._words, key=len, reverse=True)
        choices = "|".join(
            rf"{_edge(word[:1], '<!')}{re.escape(word)}{_edge(word[-1:], '!')}" for word in longest_first
        )
        self._pattern = re.compile(f"({choices})", re.IGNORECASE) if choices else None

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without start and end.

        Any str will do: NUL and controls are bytes like others, a lone surrogate is read as U+FFFD.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if self._pattern is None:
            return self._ids(text)
        ids: list[int] = []
        for i, piece in enumerate(self._pattern.split(text)):  # every second piece is a learnt word
            learnt = self._words.get(piece.lower()) if i % 2 else None
            ids += self._ids(piece) if learnt is None else learnt
        return ids

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        small = len(text) <= _SHORT and self._few < _FEW and self._file not in _WHOLE
        self._few += small
        bpe = _built_for(self._file, text) if small else self._bpe
        return bpe.encode(text, add_special_tokens=False).ids

    def read(self) -> None:
        """Read the whole vocabulary now, for all tokenizers of this process."""
        _built(self._file)

    def piece(self, token: int) -> str:
        """Return the text of one token, for people to read; a token that ends a word ends in a space."""
        if token in (START_ID, END_ID):
            return "<start>" if token == START_ID else "<end>"
        symbol = self._bpe.id_to_token(token)
        if symbol is None:
            return f"<{token}>"
        word = symbol.removesuffix("</w>")
        text = bytes(self._bytes[character] for character in word).decode("utf-8", "replace")
        return text + " " if symbol.endswith("</w>") else text

    def chunks(self, text: str | Sequence[int], pad_id: int = END_ID) -> list[list[int]]:
        """Return the chunks of a text or of its ids, each 77 long; an empty text has one."""
        ids = self.encode(text) if isinstance(text, str) else list(text)
        return [frame(ids[start:stop], pad_id) for start, stop in cuts(ids)]

    def files(self) -> dict[str, bytes]:
        """Return vocab.json and merges.txt, as a folder in diffusers' layout holds them."""
        model = json.loads(self._bpe.to_str())["model"]
        pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
        return {
            "vocab.json": json.dumps(model["vocab"], ensure_ascii=False).encode(),
            "merges.txt": "\n".join(("#version: 0.2", *pairs, "")).encode(),
        }

    @cached_property
    def _bytes(self) -> dict[str, int]:
        return byte_symbols()

    @cached_property
    def _file(self) -> Path:
        return vocabulary_file() if self._path is None else self._path

    @property
    def _bpe(self) -> "tokenizers.Tokenizer":
        return _built(self._file)


_WHOLE: dict[Path, "tokenizers.Tokenizer"] = {}


def _built(path: Path) -> "tokenizers.Tokenizer":
    """Return the tokenizer of a vocabulary file; it is built once in a process, and never changed."""
    if path in _WHOLE:
        return _WHOLE[path]
    merges = _pairs(path)
    _read_merges.cache_clear()  # not asked for again
    vocabulary = {name: i for i, name in enumerate(_symbols())}
    first = len(vocabulary)
    vocabulary |= zip(map("".join, merges), range(first, first + _MERGES), strict=True)
    ends = {"<|startoftext|>": START_ID, "<|endoftext|>": END_ID}
    _WHOLE[path] = _assembled(vocabulary | ends, merges)
    return _WHOLE[path]


def _built_for(path: Path, text: str) -> "tokenizers.Tokenizer":
    """Return a tokenizer that is right for this text alone: it has the merges that make a part of a word."""
    plain = _assembled({}, [])
    found = plain.pre_tokenizer.pre_tokenize_str(plain.normalizer.normalize_str(text))
    words = "\n".join(f"{word}</w>" for word, _ in found)
    vocabulary = {name: i for i, name in enumerate(_symbols())}
    merges, names = _read_merges(path), len(vocabulary)
    parts = merges.replace(" ", "").split("\n")
    wanted = [i for i, part in enumerate(parts) if part in words]
    lines = merges.split("\n")
    vocabulary |= {parts[i]: names + i for i in wanted}
    return _assembled(vocabulary, [_two(lines[i], path) for i in wanted])


def _two(line: str, path: Path) -> tuple[str, str]:
    one, space, other = line.partition(" ")
    if not (one and space and other) or " " in other:
        raise _damaged(path)
    return one, other


def _symbols() -> list[str]:
    """Return the vocabulary before any merge: each byte, and each as the end of a word."""
    symbols = list(byte_symbols())
    return [*symbols, *(symbol + "</w>" for symbol in symbols)]


def _assembled(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> "tokenizers.Tokenizer":
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    model = models.BPE(
        vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", continuing_subword_prefix=""
    )
    bpe = Tokenizer(model)
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return bpe


def _edge(character: str, look: str) -> str:
    """Return what keeps a learnt word that begins or ends in a letter out of longer words."""
    return rf"(?{look}\w)" if re.fullmatch(r"\w", character) else ""


def frame(ids: Sequence[int], pad_id: int = END_ID) -> list[int]:
    """Return one chunk: start, the given ids (at most 75), end, padding."""
    assert len(ids) <= BODY
    return [START_ID, *ids, END_ID, *[pad_id] * (BODY - len(ids))]


def cuts(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return where to cut ids into chunks, as (start, stop) pairs; at least one.

    A full chunk ends after its last comma if that is among its last 20 tokens, so that a phrase is not torn;
    not so when the next token is itself a comma. A learnt word of several ids is not torn either, if it is
    shorter than a chunk.
    """
    pairs = []
    start = 0
    while len(ids) - start > BODY:
        stop = start + BODY
        while stop > start and END_ID < ids[stop - 1] == ids[stop] - 1:
            stop -= 1
        if stop == start:
            stop = start + BODY
        elif stop == start + BODY and ids[stop] != COMMA_ID:
            near = range(stop - 1, stop - BACKTRACK - 1, -1)
            stop = next((place + 1 for place in near if ids[place] == COMMA_ID), stop)
        pairs.append((start, stop))
        start = stop
    return [*pairs, (start, len(ids))]
