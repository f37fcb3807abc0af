"""Messages and progress: nothing steers the terminal, an error is one line, settings are read as written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddgen.cli import console, process, progress, settings
from ddgen.errors import DdgenError, InputError, OutputError, UsageError


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what goes to standard error."""
    lines: list[str] = []
    monkeypatch.setattr(process, "write_error", lines.append)
    monkeypatch.setattr(console, "manners", console.Manners(color="never"))
    return lines


@given(text=st.text(st.characters()))
def test_nothing_that_steers_a_terminal_is_printed(text: str) -> None:
    shown = console.safe(text)
    shown.encode()
    assert all(c == "\n" or c.isprintable() or ord(c) > 0x9F and c not in "\u2028\u2029\u202e" for c in shown)
    assert console.safe(shown) == shown


def test_plain_text_is_left_alone() -> None:
    for text in ("a red apple", "ein Äpfel", "りんご", "🍎 👩‍🚀", "a [/b] cat {x} [red]"):
        assert console.safe(text) == text
    assert console.safe("a\x1b[2J\x07\u202e\udce9\x9b") == "a\\x1b[2J\\x07\\u202e\\xe9\\x9b"


@given(message=st.text(st.characters(), min_size=1), hint=st.text(st.characters(), max_size=90))
def test_an_error_is_one_short_line(message: str, hint: str) -> None:
    line = console.line_of(DdgenError(message, hint))
    assert (
        "\n" not in line
        and len(console.line_of(DdgenError(message * 50, "use it")).encode()) <= console.MAX_LINE
    )


def test_errors_as_lines_and_as_json(said: list[str]) -> None:
    error = OutputError("'out/a.png' exists", "use --force to replace it", id="output.exists")
    assert console.fail(error) == 7
    assert said.pop() == "ddgen: error: 'out/a.png' exists; use --force to replace it\n"
    console.manners.json = True
    console.fail(error)
    assert json.loads(said.pop()) == {
        "schema": "ddgen/1",
        "type": "error",
        "code": 7,
        "id": "output.exists",
        "thing": "out/a.png",
        "message": "'out/a.png' exists",
        "mend": "use --force to replace it",
    }


def test_quiet_is_quiet_but_for_errors(said: list[str]) -> None:
    console.manners.quiet = True
    console.say("hello")
    console.warn("careful")
    console.detail("by the way")
    assert said == []
    console.fail(DdgenError("no"))
    assert len(said) == 1


def test_what_is_live_steps_aside(said: list[str]) -> None:
    class Bar:
        def hide(self) -> None:
            said.append("hide")

        def show(self) -> None:
            said.append("show")

    console.keep_live(Bar())
    console.say("hello")
    console.keep_live(None)
    console.say("alone")
    assert said == ["hide", "hello\n", "show", "alone\n"]


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_every_ten_seconds(said: list[str]) -> None:
    clock = Clock()
    log = progress.LogProgress(600, "steps", clock)
    for _ in range(100):
        clock.now += 0.25
        log.advance(1)
    assert said == ["ddgen: 40/600 steps, 4/s, 2 min left\n", "ddgen: 80/600 steps, 4/s, 2 min left\n"]


def test_events_are_ten_a_second_and_the_last(said: list[str]) -> None:
    clock = Clock()
    events = progress.EventProgress(100, "steps", clock)
    for _ in range(100):
        clock.now += 0.01
        events.advance(1)
    found = [json.loads(line) for line in said]
    assert 9 <= len(found) <= 12 and found[-1] == {
        "schema": "ddgen/1",
        "type": "progress",
        "done": 100,
        "total": 100,
        "unit": "steps",
    }


def test_the_kind_of_progress(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, kind in ((True, progress.BarProgress), (False, progress.LogProgress)):
        monkeypatch.setattr(process, "is_terminal", lambda number, terminal=terminal: terminal)
        assert type(progress.make_progress("auto", 1, "steps")) is kind
    console.manners.quiet = True
    assert type(progress.make_progress("bar", 1, "steps")) is progress.Progress


def test_durations() -> None:
    assert [progress.duration(x) for x in (0.2, 89, 90, 5400, 7500)] == [
        "0 s",
        "89 s",
        "2 min",
        "1 h 30 min",
        "2 h 5 min",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("007", 7),
        ("1,2", (1, 2)),
        ("10-12", (10, 11, 12)),
        ("1,5-6", (1, 5, 6)),
        ("7-7", (7,)),
        (str(2**63), 2**63),
    ],
)
def test_seeds(text: str, value: object) -> None:
    assert settings.seeds(text) == value


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1e99", "3-1", "1,,2", "0x7", "٣", "1-99999999999", "a"])
def test_no_seeds(text: str) -> None:
    with pytest.raises(ValueError, match="use one as"):
        settings.seeds(text)


def test_lists_and_words() -> None:
    assert settings.numbers("3,2,1") == (3.0, 2.0, 1.0, 0.0) == settings.numbers("3,2,1,0")
    assert settings.pair("0.1:0.8") == (0.1, 0.8)
    assert settings.truth("on") and not settings.truth("0")
    assert settings.picture_format("jpg") == "jpeg"
    for reader, text in (
        (settings.numbers, "1,x"),
        (settings.pair, "1"),
        (settings.truth, "maybe"),
        (settings.whole, "1_0"),
    ):
        with pytest.raises(ValueError):
            reader(text)


def test_origins(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(settings, "config_directory", lambda: tmp_path / "ddgen")
    (tmp_path / "ddgen").mkdir()
    (tmp_path / "ddgen" / "config.toml").write_text("[sample]\nsteps = 5\neta = 0.5\noffline = true\n")
    monkeypatch.setenv("DDGEN_STEPS", "6")
    monkeypatch.setenv("DDGEN_ETA", "")
    found = settings.resolve({"steps": None, "num": "3"})
    assert found["steps"] == settings.Found(6, "DDGEN_STEPS") and found["eta"] == settings.Found(
        0.5, "config"
    )
    assert found["num"] == settings.Found(3, "flag") and found["offline"] == settings.Found(True, "config")
    assert found["width"] == settings.Found(None, "model") and found["quality"] == settings.Found(
        92, "built-in"
    )
    assert settings.resolve({"steps": "7"})["steps"] == settings.Found(7, "flag")
    monkeypatch.setenv("DDGEN_STEPS", "x")
    with pytest.raises(UsageError, match="DDGEN_STEPS 'x' is not a whole number"):
        settings.resolve({})
    (tmp_path / "ddgen" / "config.toml").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not valid UTF-8"):
        settings.resolve({})
