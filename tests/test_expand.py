"""Dynamic prompts: the language, the wildcard files and what keeps them inside their folder, the limits."""

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddgen.errors import InputError
from ddgen.text import expand as module
from ddgen.text.expand import MAX_DEPTH, Expander
from ddgen.text.wildcards import MAX_BYTES, Wildcards

PLAIN = Expander()


@pytest.fixture
def folder(tmp_path):
    files = {
        "animal": "# beasts\r\ncat\n\n  dog  \n3::fox\n",
        "bird": "{red|blue} bird\n",
        "size/small": "tiny\nlittle\n",
        "size/big/huge": "vast\n",
        "any": "__animal__\n__bird__\n",
        "same": "a\nb\na\n",
        "me": "x\n__me__\n",
        "ping": "__pong__\n",
        "pong": "__ping__\n",
        "empty": "# nothing\n\n",
    }
    root = tmp_path / "wildcards"
    for name, text in files.items():
        path = root / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (root / "bom.txt").write_bytes(b"\xef\xbb\xbfone\n")
    (root / "bad.txt").write_bytes(b"good\nba\xff\n")
    (root / "notes.md").write_text("not a wildcard")
    return root


@pytest.fixture
def expander(folder):
    return Expander(Wildcards(folder))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [""]),
        ("a b", ["a b"]),
        ("a {red|blue} car", ["a red car", "a blue car"]),
        ("{a|b} {c|d}", ["a c", "a d", "b c", "b d"]),
        ("{ a | b }x", ["ax", "bx"]),
        ("{fe|}male", ["female", "male"]),
        ("{a|a}", ["a"]),
        ("{x}", ["x"]),
        ("{}", [""]),
        ("{{a|b}|c}", ["a", "b", "c"]),
        ("{0.5::a|2::b|c}", ["a", "b", "c"]),
        ("{2$$a|b|c}", ["a,b", "a,c", "b,a", "b,c", "c,a", "c,b"]),
        ("{2$$ and $$a|b}", ["a and b", "b and a"]),
        ("{1-2$$a|b}", ["a", "b", "a,b", "b,a"]),
        ("{2-1$$a|b}", ["a", "b", "a,b", "b,a"]),
        ("{-2$$a|b}", ["a", "b", "a,b", "b,a"]),
        ("{1-$$a|b}", ["a", "b", "a,b", "b,a"]),
        ("{2-$$, $$a|b}", ["a, b", "b, a"]),
        ("{3$$a|b}", ["a,b", "b,a"]),
        ("{0$$a|b}", [""]),
        ("{0-1$$a|b}", ["", "a", "b"]),
        ("{2$$a|{b|c}}", ["a,b", "a,c", "b,a", "c,a"]),
        ("{2 $$ a|b}", ["2 $$ a", "b"]),
        ("{a$$b}", ["a$$b"]),
        ("a|b", ["a|b"]),
        ("[a|b] {c|d}", ["[a|b] c", "[a|b] d"]),
        ("a {b", ["a {b"]),
        ("a } b", ["a } b"]),
        ("{2$$x {a|b}", ["{2$$x a", "{2$$x b"]),
        ("}{a|b}{", ["}a{", "}b{"]),
        (r"\{a|b\}", ["{a|b}"]),
        (r"{[a\|b]|c}", ["[a|b]", "c"]),
        (r"a\|b \( \\{c|d}", [r"a\|b \( \\c", r"a\|b \( \\d"]),
        ("__x__", ["__x__"]),
        ("a_b __ c", ["a_b __ c"]),
    ],
)
def test_language(text, expected):
    assert PLAIN.expand(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a __animal__.", ["a cat.", "a dog.", "a fox."]),
        ("__size/small__", ["tiny", "little"]),
        ("__size/*__", ["tiny", "little"]),
        ("__size/**__", ["vast", "tiny", "little"]),
        ("__**/huge__", ["vast"]),
        ("__any__", ["cat", "dog", "fox", "red bird", "blue bird"]),
        ("{2$$ & $$__size/small__}", ["tiny & little", "little & tiny"]),
        ("{2$$__size/small__|z}", ["tiny,z", "little,z", "z,tiny", "z,little"]),
        ("{1-9$$__size/small__}", ["tiny", "little", "tiny,little", "little,tiny"]),
        ("__same__", ["a", "b"]),
        ("__bom__", ["one"]),
        (r"\__animal__ \_\_animal\_\_", ["__animal__ __animal__"]),
        ("__animal__x__bird__", [f"{a}x{b} bird" for a in ("cat", "dog", "fox") for b in ("red", "blue")]),
    ],
)
def test_wildcards(expander, text, expected):
    assert expander.expand(text) == expected
    assert expander.count(text) >= len(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__animals__", r"no wildcard file 'animals.txt'; did you mean '__animal__'\?"),
        ("__nowhere__", "no wildcard file 'nowhere.txt'; write a value a line into nowhere.txt"),
        ("__none/*__", "no wildcard file"),
        ("__notes.md__", "no wildcard file"),
        ("__size__", "no wildcard file"),
        ("__empty__", "'empty' has no values"),
        ("__bad__", "'bad.txt' line 2: invalid UTF-8 at column 3"),
        ("__me__", "'me' is nested more than 8 deep; does a file name itself"),
        ("{2$$__me__}", "nested more than 8 deep"),
        ("__ping__", "nested more than 8 deep"),
        ("__../secret__", "lies outside"),
        ("__size/../../secret__", "lies outside"),
        ("__/etc/hostname__", "lies outside"),
        ("__link__", "lies outside"),
        ("__linked/secret__", "lies outside"),
        ("__a\0b__", "cannot be read"),
        ("__loop__", "cannot be read|no wildcard file"),
        ("__large__", "larger than 1 MiB"),
        ("__pipe__", "no wildcard file"),
    ],
)
def test_wildcard_faults(folder, expander, text, message):
    outside = folder.parent / "outside"
    outside.mkdir()
    for place in (folder.parent, outside):
        (place / "secret.txt").write_text("secret\n")
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "linked").symlink_to(outside)
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    (folder / "large.txt").write_bytes(b"x\n" * MAX_BYTES)
    os.mkfifo(folder / "pipe.txt")
    for act in (
        expander.expand,
        expander.count,
        lambda text: expander.pick(text, 0),
    ):
        with pytest.raises(InputError, match=message):
            act(text)


def test_links_inside_the_folder_are_read(folder, expander):
    (folder / "beast.txt").symlink_to(folder / "animal.txt")
    assert expander.expand("__beast__") == ["cat", "dog", "fox"]


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match="no-such': no such file or directory"):
        Expander(Wildcards(tmp_path / "no-such")).expand("__a__")


def test_limits():
    assert len(PLAIN.expand("{a|b|c|d|e|f|g|h|i|j}" * 4)) == 10_000
    with pytest.raises(InputError, match="stands for 20,000 texts, at most 10,000 are allowed") as error:
        PLAIN.expand("{a|b|c|d|e|f|g|h|i|j}" * 4 + "{a|b}")
    assert error.value.exit_code == 4
    with pytest.raises(InputError, match="1,000,000,000 or more"):
        PLAIN.expand("{a|b}" * 64)
    with pytest.raises(InputError, match="stands for 3 texts, at most 2"):
        Expander(limit=2).expand("{a|b|c}")
    deepest = "{" * MAX_DEPTH + "a" + "}" * MAX_DEPTH
    assert PLAIN.expand(deepest) == ["a"]
    with pytest.raises(InputError, match="nested more than 8 deep"):
        PLAIN.expand("{" + deepest + "}")
    assert PLAIN.expand("{" * 60_000) == ["{" * 60_000]


def test_work_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(module, "MAX_WORK", 2**20)
    for number in range(1, 7):
        line = "x" * 50 if number == 6 else f"{{99$$__n{number + 1}__}}"
        (folder / f"n{number}.txt").write_text(f"{line}\n" * 99)
    began = time.process_time()
    with pytest.raises(InputError, match="more than 1,048,576 characters"):
        Expander(Wildcards(folder)).pick("__n1__", 0)
    with pytest.raises(InputError, match="characters"):
        PLAIN.expand("{7$$" + "|".join(c * 100 for c in "abcdefg") + "}")
    assert time.process_time() - began < 20


def test_count_is_exact():
    for low, high, options in itertools.product(
        range(3), range(4), (["a"], ["a", "b"], ["a", "{b|c|d}", "e", "f"])
    ):
        text = f"{{{low}-{high}$${'|'.join(options)}}} {{x|y}}"
        texts = PLAIN.expand(text)
        assert PLAIN.count(text) == len(texts) == len(set(texts))


def test_pick_is_one_of_all_and_depends_on_the_seed_alone(expander):
    text = "{2$$a|b|c} __any__ {x|{y|z}}"
    texts = expander.expand(text)
    picked = [expander.pick(text, seed) for seed in range(300)]
    assert set(picked) <= set(texts)
    assert len(set(picked)) > len(texts) / 2
    assert picked == [expander.pick(text, seed) for seed in range(300)]


def test_pick_is_the_same_in_every_process():
    code = (
        "from ddgen.text.expand import Expander; import sys;"
        "print(Expander().pick('{a|b|c|d} {2$$e|f|g}', 7)); assert 'torch' not in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == PLAIN.pick("{a|b|c|d} {2$$e|f|g}", 7)


def test_pick_follows_the_weights(expander):
    def shares(text):
        seen = Counter(expander.pick(text, seed) for seed in range(4000))
        return {words: seen[words] / 4000 for words in seen}

    assert shares("{a|b}") == {"a": pytest.approx(0.5, abs=0.04), "b": pytest.approx(0.5, abs=0.04)}
    assert shares("{3::a|b}")["a"] == pytest.approx(0.75, abs=0.04)
    assert shares("{0::a|b}") == {"b": 1.0}
    assert set(shares("{0::a|0::b}")) == {"a", "b"}
    assert shares("__animal__")["fox"] == pytest.approx(0.6, abs=0.04)
    assert shares("{1-2$$a}") == {"a": 1.0}
    number = shares("{1-3$$a|a|a}")
    assert all(number[words] == pytest.approx(1 / 3, abs=0.04) for words in ("a", "a,a", "a,a,a"))
    pairs = shares("{2$$2::a|b|c}")  # a first with 1/2, then b or c; else a second with 2/3
    assert pairs["a,b"] == pytest.approx(1 / 4, abs=0.04)
    assert pairs["b,a"] == pytest.approx(1 / 6, abs=0.04)
    assert pairs["b,c"] == pytest.approx(1 / 12, abs=0.03)


MARKUP = st.lists(
    st.one_of(st.sampled_from([*"{}|_$:\\-0129ab ", "$$", "__", "::", "{2$$", "__a__"]), st.text(max_size=2)),
    max_size=25,
).map("".join)


@settings(deadline=None, max_examples=300)
@given(MARKUP, st.integers(0, 99))
def test_any_text_is_expanded_or_refused(text, seed):
    try:
        texts = PLAIN.expand(text)
        assert PLAIN.pick(text, seed) in texts
        assert 1 <= len(texts) <= PLAIN.count(text)
    except InputError as error:
        assert error.id in ("input.depth", "input.expansions")


@given(st.text(st.characters(exclude_characters="{}|_\\"), max_size=40))
def test_text_without_markup_is_itself(text):
    assert PLAIN.expand(text) == [text] == [PLAIN.pick(text, 1)]


@given(st.text(max_size=30))
def test_escaped_text_is_itself(text):
    text = text.replace("\\", "")
    escaped = "".join("\\" + character if character in "{}_" else character for character in text)
    assert PLAIN.expand(escaped) == [text]


@pytest.mark.parametrize(
    "text",
    ["{a|" * 20_000, "|}" * 30_000, "__a" * 20_000, "_" * 60_000, "{" + "|" * 60_000 + "}", "{a}" * 20_000],
    ids=lambda text: text[:4],
)
def test_hostile_texts_take_linear_time(text):
    began = time.process_time()
    PLAIN.pick(text, 0)
    with contextlib.suppress(InputError):
        PLAIN.expand(text)
    assert time.process_time() - began < 15  # seconds; what is quadratic takes minutes
