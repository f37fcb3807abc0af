"""Pipes, closed streams, terminals and signals: what `ddgen` promises to the shell around it."""

import io
import os
import pty
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image
from program import Place, command, environment

ENDINGS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def whole(place: Place) -> list[str]:
    """Return the pictures, every one of which must be whole, and see that no temp is left."""
    names = [name for name in place.files() if name.endswith(".png")]
    for name in names:
        Image.open(place.path / name).load()
    assert not [name for name in place.files() if name.endswith(".part")]
    return names


def test_a_reader_that_goes_away_ends_the_program_silently(place: Place) -> None:
    done = place.shell("ddgen sample x -n 4 --steps 2 -q | true; echo ${PIPESTATUS[0]}", FAKE_DELAY="0.1")
    assert (done.stdout, done.stderr) == (b"141\n", b"")
    assert whole(place), "the picture that could not be announced is there"


def test_the_first_line_is_enough_for_head(place: Place) -> None:
    done = place.shell(
        "ddgen sample x -n 30 --steps 2 -q | head -1; echo ${PIPESTATUS[0]}", FAKE_DELAY="0.05"
    )
    path, code = done.stdout.decode().split()
    assert code == "141" and path in whole(place)


def test_help_for_a_reader_that_goes_away(place: Place) -> None:
    done = place.shell("ddgen --help | true; echo ${PIPESTATUS[0]}")
    assert done.stdout in (b"141\n", b"0\n") and done.stderr == b""


def test_a_full_standard_output_keeps_the_picture(place: Place) -> None:
    done = place.shell("ddgen sample x --seed 7 > /dev/full")
    assert done.returncode == 7
    assert b"standard output: no space left" in done.stderr
    assert whole(place) == ["x-7.png"]


@pytest.mark.parametrize(
    "script", ["ddgen --help >&-", "ddgen --version >/dev/full", "ddgen config show >/dev/full"]
)
def test_lost_output_is_never_a_success(place: Place, script: str) -> None:
    done = place.shell(script)
    assert done.returncode == 7 and done.stderr.startswith(b"ddgen: error: standard output")


def test_closed_standard_error_drops_messages_only(place: Place) -> None:
    done = place.shell("ddgen sample x --seed 7 -n 2 2>&-")
    assert (done.returncode, done.stdout) == (0, b"x-7.png\nx-8.png\n")
    assert whole(place) == ["x-7.png", "x-8.png"]


def test_all_streams_closed_but_one(place: Place) -> None:
    done = place.shell("ddgen sample x --seed 7 -o a.png <&- 2>&- >out")
    assert done.returncode == 0 and (place.path / "out").read_bytes() == b"a.png\n"
    whole(place)


def test_libraries_that_print_do_not_reach_the_results(place: Place) -> None:
    done = place.run("sample", "x", "--seed", "7", FAKE_NOISE="1")
    assert done.stdout == b"x-7.png\n"
    assert b"a library talks" in done.stderr
    piped = place.run("sample", "x", "-o", "-", FAKE_NOISE="1")
    Image.open(io.BytesIO(piped.stdout)).load()


def test_paths_for_xargs(place: Place) -> None:
    done = place.shell("ddgen sample 'a fox' --seed 7 -n 2 -0 -o 'a dir/' | xargs -0 ls")
    assert done.stdout == b"a dir/a-fox-7.png\na dir/a-fox-8.png\n"


def test_standard_input_is_one_prompt(place: Place) -> None:
    assert place.run("sample", "-", "-s", "7", stdin=b"\xef\xbb\xbfa tulip\r\n").stdout == b"a-tulip-7.png\n"
    assert place.run("sample", "-s", "8", stdin=b"a tulip").stdout == b"a-tulip-8.png\n"
    assert (
        place.run("sample", "a fox", "-", "-s", "9", stdin=b"a tulip").stdout
        == b"a-fox-9.png\na-tulip-9.png\n"
    )
    assert place.run("sample", "a fox", "-s", "1", stdin=b"not read").stdout == b"a-fox-1.png\n"


def test_standard_input_closed_is_no_matter_with_a_prompt(place: Place) -> None:
    assert place.shell("ddgen sample x --seed 7 <&-").stdout == b"x-7.png\n"


@pytest.mark.parametrize("number", ENDINGS)
def test_a_signal_ends_it_as_a_shell_expects(place: Place, number: signal.Signals) -> None:
    for moment in random.Random(int(number)).sample(range(1, 80), 4):
        running = place.start(
            "sample", "x", "-n", "60", "--steps", "1", "--size", "512x512", "--batch-size", "1"
        )
        time.sleep(moment / 100)
        running.send_signal(number)
        out, error = running.communicate(timeout=20)
        if not error or b"ddgen/cli" not in error and b"KeyboardInterrupt" in error:
            continue  # it came before the first line of ddgen ran
        assert running.returncode == -number, (moment, error)
        lines = error.decode().splitlines()
        assert re.fullmatch(r"ddgen: interrupted(; \d+ of 60 images saved)?", lines[-1]), lines
        assert len(lines) <= 2
        announced = out.decode().split()
        there = whole(place)
        assert set(announced) <= set(there)
        for name in there:
            (place.path / name).unlink()


def test_the_shell_sees_the_signal(place: Place) -> None:
    script = "ddgen sample x -n 50 --steps 9 -q & pid=$!; sleep 0.6; kill -TERM $pid; wait $pid; echo $?"
    assert place.shell(script, FAKE_DELAY="0.1").stdout.split()[-1] == b"143"


def test_an_ignored_signal_stays_ignored(place: Place) -> None:
    running = subprocess.Popen(
        [*command(), "sample", "x", "--seed", "7", "--steps", "8"],
        cwd=place.path,
        env=environment(place.home, FAKE_DELAY="0.1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    time.sleep(0.6)
    running.send_signal(signal.SIGHUP)
    out, _ = running.communicate(timeout=20)
    assert (running.returncode, out) == (0, b"x-7.png\n")


def on_a_terminal(place: Place, *arguments: str, **variables: str) -> tuple[int, bytes]:
    """Run `ddgen ARGUMENTS` on a terminal; return the exit code and what the terminal got."""
    main, other = pty.openpty()
    running = subprocess.Popen(
        [*command(), *arguments],
        cwd=place.path,
        env=environment(place.home, **variables),
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
    )
    os.close(other)
    shown = b""
    try:
        while part := os.read(main, 1 << 16):
            shown += part
    except OSError:
        pass  # the other side is closed
    os.close(main)
    return running.wait(timeout=20), shown


def screen(data: bytes) -> str:
    """Return what a terminal shows after the few controls that rich uses."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|\r|\n|.", data.decode(), re.S):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith("\x1b"):
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + 1 :]
            column += 1
    return "\n".join(line.rstrip() for line in lines).rstrip()


def test_a_terminal_gets_a_bar_that_goes_away(place: Place) -> None:
    code, shown = on_a_terminal(place, "sample", "a fox", "--seed", "7", "--steps", "12", FAKE_DELAY="0.05")
    assert code == 0
    assert b"/12" in shown and b"steps" in shown
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") > 0, "the cursor comes back"
    assert screen(shown).splitlines() == [
        "ddgen: sticker, 1 x 128x128, ddim 12 steps, guidance 2.5, seed 7",
        "a-fox-7.png",
    ]


def test_a_prompt_cannot_steer_the_terminal(place: Place) -> None:
    evil = "a [/b] {x} \x1b]0;owned\x07 \u202e cat \x9b2J"
    code, shown = on_a_terminal(place, "sample", evil, "--seed", "7", "--steps", "3", FAKE_DELAY="0.05")
    assert code == 0
    assert b"\x1b]" not in shown and b"\x07" not in shown and "\u202e".encode() not in shown
    assert "\x9b".encode() not in shown
    code, shown = on_a_terminal(place, "sample", evil, "--plan", "--color", "never")
    assert code == 0 and b"\x1b" not in shown
    code, shown = on_a_terminal(place, "sample", "x", "--sampler", evil, "--color", "never")
    assert code == 2 and b"\x1b" not in shown and b"\\x1b]0;owned\\x07" in shown


def test_a_terminal_is_no_place_for_a_picture_nor_a_source_of_prompts(place: Place) -> None:
    code, shown = on_a_terminal(place, "sample", "x", "-o", "-", "--color", "never")
    assert code == 2
    assert (
        b"refusing to write a picture to a terminal; redirect it with '>FILE' or use --output FILE" in shown
    )
    code, shown = on_a_terminal(place, "sample", "-", "--color", "never")
    assert code == 2 and b"standard input is a terminal; pipe a prompt in" in shown
    code, shown = on_a_terminal(place, "sample", "--color", "never")
    assert code == 2 and b"no prompt is given" in shown


def test_colours_are_for_terminals_that_want_them(place: Place) -> None:
    def error(**variables: str) -> bytes:
        return on_a_terminal(place, "sample", "x", "--steps", "0", **variables)[1]

    assert b"\x1b[1;31merror:\x1b[0m" in error()
    assert b"\x1b" not in error(NO_COLOR="1")
    assert b"\x1b" not in error(TERM="dumb")
    assert b"\x1b" not in place.run("sample", "x", "--steps", "0").stderr
    assert b"\x1b" in place.run("sample", "x", "--steps", "0", FORCE_COLOR="1").stderr
    assert b"\x1b" in place.run("sample", "x", "--steps", "0", "--color", "always").stderr
    assert b"\x1b" in on_a_terminal(place, "--help")[1]
    assert b"\x1b" not in place.run("--help").stdout
