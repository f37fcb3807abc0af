"""CLIP tokens against transformers' and open_clip's tokenizers, and the cutting into chunks."""

import gzip
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddgen.errors import ModelError
from ddgen.text.tokens import (
    COMMA_ID,
    END_ID,
    START_ID,
    _WHOLE,
    Tokenizer,
    _built,
    _built_for,
    _read_merges,
    byte_symbols,
    cuts,
    frame,
    vocabulary_file,
)

TOKENIZER = Tokenizer()

# Texts on which all three tokenizers must agree.
AGREED = [
    "",
    " ",
    "a red apple",
    "A Photo of an ASTRONAUT, riding a horse!!",
    "it's we're they'll I'd don't I've I'm",
    "42nd street 1999",
    "  tabs\tand\n\nnewlines\r\n end  ",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m",
    "\u65e5\u672c\u8a9e \u4e2d\u6587 \ud55c\uad6d\uc5b4",
    "\U0001f642\U0001f642 a \U0001f34e",
    "(word:1.2) [a|b] {x} <lora:x:1> __wild__",
    "a,b , c;d.e",
    "!!!---###",
    "x" * 300,
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
    "\u0645\u0631\u062d\u0628\u0627",
    "a_b-c/d\\e",
    "\u00bd \u00b2 \u2167 \u0665",
    "hyper-realistic 8k, trending on artstation",
    "'s 't '",
    "don't'll",
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """transformers' CLIPTokenizer over the same vocabulary, read its own way."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    lines = gzip.decompress(vocabulary_file().read_bytes()).decode().split("\n")[1:48895]
    names = list(byte_symbols())
    names = (
        names
        + [name + "</w>" for name in names]
        + [line.replace(" ", "") for line in lines]
        + ["<|startoftext|>", "<|endoftext|>"]
    )
    (folder / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines))
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert tokenizer.vocab_size == 49408
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def open_clip():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@pytest.mark.parametrize("text", AGREED, ids=range(len(AGREED)))
def test_equals_both(text, reference, open_clip):
    assert TOKENIZER.encode(text) == reference(text) == open_clip.encode(text)


@settings(max_examples=400, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_equals_transformers_on_any_text(text, reference):
    if "<|" not in text:
        assert TOKENIZER.encode(text) == reference(text)


@pytest.mark.parametrize(
    "text",
    [
        "a &amp; b",
        "donÃ¢â‚¬â„¢t",
        "\uff21\uff22\uff23",
        "\ufb01sh",
        "\u201cquoted\u201d",
        "\u03a3\u0391\u03a3",
    ],
    ids=["html", "mojibake", "full-width", "ligature", "quotes", "sigma"],
)
def test_where_the_two_differ_we_follow_transformers(text, reference, open_clip):
    assert TOKENIZER.encode(text) == reference(text) != open_clip.encode(text)


def test_special_tokens_cannot_be_typed(reference, open_clip):
    text = "a <|endoftext|> b <|startoftext|>"
    assert TOKENIZER.encode(text) == open_clip.encode(text) != reference(text)
    assert max(TOKENIZER.encode(text)) < START_ID


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(), max_size=80))
def test_any_str_gives_ids_of_the_vocabulary(text):
    assert all(0 <= token < START_ID for token in TOKENIZER.encode(text))


def test_surrogates():
    assert TOKENIZER.encode("a \ud83c\udf4e b") == TOKENIZER.encode("a \U0001f34e b")
    assert TOKENIZER.encode("a \ud83c b") == TOKENIZER.encode("a \ufffd b")


def test_known_ids():
    assert TOKENIZER.encode("a photo of an astronaut riding a horse") == [
        320,
        1125,
        539,
        550,
        18376,
        6765,
        320,
        4558,
    ]
    assert TOKENIZER.encode(",") == [COMMA_ID]
    assert TOKENIZER.encode("!") == [256]
    assert [TOKENIZER.piece(token) for token in [START_ID, *TOKENIZER.encode("Caf\u00e9, ok"), END_ID]] == [
        "<start>",
        "caf\u00e9 ",
        ", ",
        "ok ",
        "<end>",
    ]


@given(st.text(st.sampled_from("abc ,.\u00e9"), max_size=30))
def test_pieces_spell_the_text(text):
    spelt = "".join(TOKENIZER.piece(token) for token in TOKENIZER.encode(text))
    assert spelt.replace(" ", "") == text.replace(" ", "")


def test_chunks_are_framed_and_padded():
    assert TOKENIZER.chunks("") == [[START_ID, END_ID] + [END_ID] * 75]
    assert TOKENIZER.chunks("a", pad_id=0) == [[START_ID, 320, END_ID] + [0] * 74]
    assert TOKENIZER.chunks([320] * 75, pad_id=0) == [[START_ID] + [320] * 75 + [END_ID]]
    assert TOKENIZER.chunks([320] * 76, pad_id=0) == [frame([320] * 75, 0), frame([320], 0)]


@pytest.mark.parametrize(
    ("comma", "first"),
    [(None, 75), (74, 75), (73, 74), (55, 56), (54, 75), (75, 75)],
    ids=["no comma", "comma is last", "one before", "twenty back", "too far back", "next token is a comma"],
)
def test_comma_backtrack(comma, first):
    ids = [320] * 100
    if comma is not None:
        ids[comma] = COMMA_ID
    assert cuts(ids) == [(0, first), (first, 100)]


def test_a_learnt_word_is_not_torn():
    word = [49408, 49409, 49410]
    assert cuts([320] * 73 + word + [320]) == [(0, 73), (73, 77)]
    assert cuts([320] * 60 + [COMMA_ID] + [320] * 12 + word) == [(0, 73), (73, 76)]
    assert cuts([320] * 72 + word + [320]) == [(0, 75), (75, 76)]
    assert cuts(list(range(49408, 49408 + 100))) == [(0, 75), (75, 100)]


def test_comma_after_the_window_outweighs_one_inside():
    ids = [320] * 100
    ids[60] = ids[75] = COMMA_ID
    assert cuts(ids) == [(0, 75), (75, 100)]


@given(st.lists(st.sampled_from([320, 321, COMMA_ID]), max_size=400))
def test_cuts_lose_nothing(ids):
    pairs = cuts(ids)
    assert pairs[0][0] == 0 and pairs[-1][1] == len(ids)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(pairs))
    assert all(55 < stop - start <= 75 for start, stop in pairs[:-1])


@settings(max_examples=40, deadline=None)
@given(st.one_of(st.text(max_size=60), st.sampled_from(AGREED), st.text("abe'<>/w 1,\n", max_size=60)))
def test_the_small_vocabulary_of_a_text_gives_the_same_ids(text):
    text = text.encode("utf-8", "replace").decode()
    path = vocabulary_file()
    small = _built_for(path, text)
    assert small.encode(text, add_special_tokens=False).ids == _built(path).encode(text, add_special_tokens=False).ids
    assert small.get_vocab_size() < 49408 / 4


def test_few_short_texts_spare_the_vocabulary_and_many_do_not(tmp_path):
    path = tmp_path / "vocabulary.txt.gz"
    path.write_bytes(vocabulary_file().read_bytes())
    tokenizer = Tokenizer(path)
    for _ in range(4):
        assert tokenizer.encode("a red apple") == TOKENIZER.encode("a red apple")
        assert path not in _WHOLE
    assert tokenizer.encode("") == []
    tokenizer.encode("a red apple")
    whole = _WHOLE.pop(path)
    long = Tokenizer(path)
    long.encode("a red apple " * 40)
    assert _WHOLE.pop(path) is not whole
    long.read()
    assert _WHOLE.pop(path).get_vocab_size() == 49408


def test_missing_and_damaged_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install open_clip_torch"):
        vocabulary_file()
    for data in (
        b"not gzip",
        gzip.compress(b"version\na b\n"),
        gzip.compress(b"\xff\n" * 60000),
        gzip.compress(b"x\n" * 60000)[:-20],
        gzip.compress(b"version\n" + b"a b\n" * 20000 + b"ab\na b \n" + b"a b\n" * 40000),
    ):
        path = tmp_path / "damaged.gz"
        path.write_bytes(data)
        with pytest.raises(ModelError):
            Tokenizer(path).encode("a b ab")
        with pytest.raises(ModelError):
            Tokenizer(path).encode("a b ab" * 100)
        _read_merges.cache_clear()


def test_needs_no_torch_no_home_and_writes_nothing(tmp_path):
    code = (
        "import sys; import ddgen.text.chunks; from ddgen.text.tokens import Tokenizer;"
        "print(Tokenizer().encode('a b'));"
        "assert not {'torch', 'open_clip', 'transformers'} & set(sys.modules)"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[320, 321]\n"
    assert list(tmp_path.iterdir()) == []
