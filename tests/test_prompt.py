"""The prompt language: AUTOMATIC1111's known results, where we differ, chunks and the token report."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddgen.errors import UsageError
from ddgen.text.chunks import chunk_prompt, report, tokenize
from ddgen.text.prompt import LIMIT, Run, compose, parse, schedule
from ddgen.text.tokens import COMMA_ID, END_ID, START_ID, Tokenizer

TOKENIZER = Tokenizer()

# Any text, but mostly of the characters that mean something.
MARKUP = st.lists(
    st.one_of(
        st.sampled_from(
            [*"()[]:|\\{}_$.,\0", " ", "BREAK", "AND", "1.2", ":3]", "[a:", ":1.1)", "\ud800", "\n"]
        ),
        st.text(max_size=3),
    ),
    max_size=30,
).map("".join)


def weights(text):
    return [(run.text, pytest.approx(run.weight)) for run in parse(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1)]),
        ("plain words", [("plain words", 1)]),
        ("(x)", [("x", 1.1)]),
        ("((x))", [("x", 1.21)]),
        ("[x]", [("x", 1 / 1.1)]),
        ("[[x]]", [("x", 0.82645)]),
        ("(x:1.3)", [("x", 1.3)]),
        ("(x:-.5)", [("x", -0.5)]),
        ("(x: +2. )", [("x", 2)]),
        ("((a:1.2) b)", [("a", 1.32), (" b", 1.1)]),
        ("[x:1.3]", [("x:1.3", 1 / 1.1)]),
        (r"\(a\) \[b\] c\\d", [(r"(a) [b] c\d", 1)]),
        (r"a\b", [("ab", 1)]),
        ("(a", [("a", 1.1)]),
        ("[a", [("a", 1 / 1.1)]),
        ("(a:1.3", [("a:1.3", 1.1)]),
        ("a) b", [("a) b", 1)]),
        ("a] b", [("a] b", 1)]),
        ("a:1.2) b", [("a:1.2) b", 1)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(:1.2)", [("", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
    ],
)
def test_attention_weights(text, expected):
    assert weights(text) == [(words, pytest.approx(weight, rel=1e-5)) for words, weight in expected]


def test_break():
    assert parse("a BREAK b") == (Run("a"), Run("b", 1.0, True))
    assert parse("BREAK a") == (Run(""), Run("a", 1.0, True))
    assert parse("a  BREAK\n BREAK (b)") == (Run("a"), Run("", 1.0, True), Run("", 1.0, True), Run("b", 1.1))
    assert parse("BREAKFAST aBREAK") == (Run("BREAKFAST aBREAK"),)


def test_break_inside_brackets_begins_a_chunk_and_keeps_the_weight():
    assert parse("(a BREAK b:1.2)") == (Run("a", 1.2), Run("b", 1.2, True))


def test_a_weight_that_is_no_number_is_text():
    assert weights("(a:1.2.3)") == [("a:1.2.3", pytest.approx(1.1))]
    assert weights("(a:.)") == [("a:.", pytest.approx(1.1))]


def test_weights_stay_finite():
    text = "(" * 300 + "a" + ":99999)" * 300
    assert parse(text) == (Run("a", LIMIT),)
    assert parse(f"(a:-{'9' * 400})") == (Run("a", -LIMIT),)


def test_plain_syntax_is_text():
    text = "(a:1.2) [b:c:3] AND BREAK \\("
    assert parse(text, "plain") == (Run(text),)
    assert [part.timeline for part in compose(text, 10, "plain")] == [((10, text),)]
    with pytest.raises(UsageError, match="did you mean 'plain'"):
        parse("a", "plane")
    with pytest.raises(UsageError):
        compose("a", 10, "plane")


EACH = range(1, 11)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [b:3 ]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [b::.5] c", [(5, "a b c"), (10, "a  c")]),
        ("a [{b|d{:.5] c", [(10, "a [{b|d{:.5] c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a|(b:1.1)]", [(i, "a" if i % 2 else "(b:1.1)") for i in EACH]),
        ("[fe|]male", [(i, "female" if i % 2 else "male") for i in EACH]),
        ("[fe|||]male", [(i, "female" if i % 4 == 1 else "male") for i in EACH]),
        ("[a:2] [b:4]", [(2, " "), (4, "a "), (10, "a b")]),
        ("[a:99]", [(10, "")]),
        ("[a:0]", [(10, "a")]),
        ("[a:-3]", [(10, "a")]),
        ("[a:1e9]", [(10, "")]),
        ("[a:1e999]", [(10, "")]),
        ("[a:1.0]", [(10, "")]),
        ("[:3]", [(3, ""), (10, "")]),
        ("[3:4]", [(4, ""), (10, "3")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[(a:b:c):3]", [(10, "[(a:b:c):3]")]),
        ("[[x:y]:3] [q:2]", [(2, "[[x:y]:3] "), (10, "[[x:y]:3] q")]),
        ("(a [b) c:3]", [(10, "(a [b) c:3]")]),
        ("a | b [c:3]", [(10, "a | b [c:3]")]),
        ("[a|b:3] [c:3]", [(10, "[a|b:3] [c:3]")]),
        (r"\[a:3\]", [(10, r"\[a:3\]")]),
        (r"[\]:3]", [(3, ""), (10, r"\]")]),
        ("[a:3] \\", [(10, "[a:3] \\")]),
    ],
)
def test_schedule(text, expected):
    assert schedule(text, 10) == expected


def test_schedule_of_a_second_pass():
    assert schedule("a [b:.5] c", 10, 10) == [(10, "a b c")]
    assert schedule("a [b:1.5] c", 10, 10) == [(5, "a  c"), (10, "a b c")]
    assert schedule("a [b:15] c", 10, 10) == [(5, "a  c"), (10, "a b c")]
    assert compose("[b:15]", 10, first_steps=10)[0].timeline == ((5, ""), (10, "b"))


def test_a_change_beside_a_stray_bracket_counts():
    assert schedule("[a:7]]", 10) == [(7, "]"), (10, "a]")]


def test_composition():
    parts = compose("a cat AND a [dog:wolf:2] :0.5 AND owl:-1", 4)
    assert [part.weight for part in parts] == [1.0, 0.5, -1.0]
    assert parts[1].timeline == ((2, " a dog"), (4, " a wolf"))
    assert [parts[1].at(step) for step in (1, 2, 3, 4)] == [" a dog", " a dog", " a wolf", " a wolf"]
    assert compose("a ratio of 16:9", 4)[0].weight == 1.0
    assert compose("ANDES sAND", 4)[0].timeline == ((4, "ANDES sAND"),)
    assert compose("a AND b:2", 4, conjunction=False)[0].timeline == ((4, "a AND b:2"),)
    assert compose("a:1.2.3 AND b", 4)[0] == compose("a:1.2.3", 4)[0]


@settings(deadline=None)
@given(MARKUP, st.integers(1, 30))
def test_no_text_is_an_error(text, steps):
    runs = parse(text)
    assert runs and all(abs(run.weight) <= LIMIT**2 for run in runs)
    timeline = schedule(text, steps)
    ends = [end for end, _ in timeline]
    assert ends == sorted(set(ends)) and ends[0] >= 1 and ends[-1] == steps
    assert compose(text, steps)
    assert len(tokenize(runs, TOKENIZER)) >= 1


@given(st.text(st.characters(exclude_characters="\\()[]:|"), max_size=40).filter(lambda t: "BREAK" not in t))
def test_text_without_markup_is_itself(text):
    assert parse(text) == (Run(text),)
    assert schedule(text, 7) == [(7, text)]


@given(st.text(max_size=40).filter(lambda text: "BREAK" not in text))
def test_escaped_text_is_itself(text):
    escaped = "".join("\\" + character if character in "\\()[]" else character for character in text)
    assert parse(escaped) == (Run(text),)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 65536,
        "(" * 32768 + ")" * 32768,
        "[" * 12000 + "a" + ":1]" * 12000,
        "(a" * 32768,
        "[" + "|[a:1]" * 9000 + "]",
        "a:" + " " * 65000,
        "(a:" + "1" * 65000,
        "[a:" + "1" * 65000 + "]",
        (" " * 50 + "BREAK") * 1000,
        "AND " * 16000,
    ],
    ids=lambda text: text[:6],
)
def test_hostile_texts_take_linear_time(text):
    began = time.process_time()
    parse(text), schedule(text, 20), compose(text, 20)
    assert time.process_time() - began < 15  # seconds; what is quadratic takes minutes


def test_tokens_carry_the_weight_of_their_run():
    chunks = chunk_prompt("a (red:1.5) apple", TOKENIZER)
    assert chunks.bodies == ((320, 736, 3055),)
    assert chunks.weights() == [(1.0, 1.0, 1.5, 1.0, *[1.0] * 73)]
    assert chunks.ids(0) == [(START_ID, 320, 736, 3055, END_ID, *[0] * 72)]
    assert chunks.count == 3


def test_no_token_spans_a_bracket():
    assert chunk_prompt("sun(flower)", TOKENIZER).bodies != chunk_prompt("sunflower", TOKENIZER).bodies


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("", [0]),
        ("a BREAK b", [1, 1]),
        ("a BREAK", [1]),
        ("BREAK a", [0, 1]),
        ("BREAK", [0]),
        ("a BREAK BREAK b", [1, 0, 1]),
        ("a " * 75, [75]),
        ("a " * 75 + "BREAK a", [75, 1]),
        ("a " * 76, [75, 1]),
        ("a " * 60 + ", " + "a " * 30, [61, 30]),
        ("a " * 60 + ", " + "(a a:1.2) " * 15, [61, 30]),
        ("a " * 30 + ", " + "a " * 60, [75, 16]),
    ],
)
def test_chunks(text, lengths):
    chunks = chunk_prompt(text, TOKENIZER)
    assert [len(body) for body in chunks.bodies] == lengths
    assert [len(row) for row in chunks.ids()] == [len(row) for row in chunks.weights()] == [77] * len(lengths)


def test_short_texts_are_followed_by_empty_chunks():
    chunks = chunk_prompt("a", TOKENIZER)
    assert chunks.ids(at_least=2) == [(START_ID, 320, *[END_ID] * 75), (START_ID, *[END_ID] * 76)]
    assert chunks.weights(at_least=2)[1] == (1.0,) * 77
    assert len(chunk_prompt("a " * 80, TOKENIZER).ids(at_least=1)) == 2


@given(MARKUP)
def test_chunks_lose_no_token(text):
    runs = parse(text)
    chunks = tokenize(runs, TOKENIZER)
    assert [token for body in chunks.bodies for token in body] == [
        token for run in runs for token in TOKENIZER.encode(run.text)
    ]


def test_token_report():
    first, second, third = report("a [(cat:1.3)::2] AND dog:0.5", TOKENIZER, steps=3)
    assert (first.text, first.part, first.steps, first.weight) == ("a (cat:1.3)", 0, (1, 2), 1.0)
    assert [(token.text, token.weight) for token in first.chunks[0]] == [("a ", 1.0), ("cat ", 1.3)]
    assert (second.text, second.steps, second.count) == ("a ", (3,), 1)
    assert (third.text, third.part, third.weight) == (" dog", 1, 0.5)
    (long,) = report("one " * 70 + ", " + "two " * 10, TOKENIZER, steps=3)
    assert [len(chunk) for chunk in long.chunks] == [71, 10]
    assert long.count == 81 and long.chunks[0][-1].id == COMMA_ID
    assert [token.text for token in long.beyond] == ["two "] * 6
    alternating = report("[a|b]", TOKENIZER, steps=4)
    assert [(entry.text, entry.steps) for entry in alternating] == [("a", (1, 3)), ("b", (2, 4))]
    (literal,) = report("[a|b] AND c", TOKENIZER, "plain", steps=4)
    assert literal.text == "[a|b] AND c"
