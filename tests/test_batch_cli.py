"""`ddgen batch` through the installed command and a real shell: bad input row by row, streams, signals,
locks.
"""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DDGEN = str(Path(sys.executable).with_name("ddgen"))
FAST = "--steps 2 --sampler euler"


def shell(command: str, cwd: Path, **more: object) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HOME": str(cwd),
        "PATH": f"{Path(DDGEN).parent}:{os.environ['PATH']}",
    }
    for name in [name for name in environment if name.startswith(("DDGEN_", "XDG_"))]:
        del environment[name]
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        **more,
    )  # type: ignore[call-overload]


GOOD = "a red apple\n"
ROWS = [
    (
        "none.txt",
        None,
        "",
        4,
        "prompt file 'none.txt': no such file; check the path or use '-' for standard input",
    ),
    ("d", "dir", "", 4, "prompt file 'd': is a directory; name the files in it: d/*.txt"),
    ("p.txt", b"# only\n\n", "", 4, "prompt file 'p.txt' has no prompts; write one per line"),
    ("p.txt", b"", "", 4, "prompt file 'p.txt' has no prompts; write one per line"),
    (
        "p.txt",
        "a cat\n".encode("utf-16"),
        "",
        4,
        "prompt file 'p.txt': looks like UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
    ),
    (
        "p.txt",
        GOOD.encode() * 811 + b"a great big \xff\n",
        "",
        4,
        "prompt file 'p.txt' line 812: invalid UTF-8 at column 13; fix the line or use --encoding",
    ),
    (
        "p.txt",
        b"a\0b\n",
        "",
        4,
        "prompt file 'p.txt' line 1: NUL byte at column 2; take it out: tr -d '\\000'",
    ),
    (
        "p.txt",
        b"x" * 70_000,
        "",
        4,
        "prompt file 'p.txt' line 1: the line is longer than 65536 bytes; one prompt a line; shorten it",
    ),
    (
        "p.txt",
        b"a --stpes 3\n",
        "",
        4,
        "prompt file 'p.txt' line 1: unknown key 'stpes'; did you mean 'steps'?",
    ),
    (
        "p.txt",
        b"a --steps 0\n",
        "",
        4,
        "prompt file 'p.txt' line 1: --steps 0 is out of range; use 1 to 1000",
    ),
    ("p.txt", b"a --size 100x100\n", "", 4, "prompt file 'p.txt' line 1: --width 100 is not a multiple of "),
    (
        "p.txt",
        b"a --model x\n",
        "",
        4,
        "prompt file 'p.txt' line 1: 'model' is not allowed in a prompt file; give --model on",
    ),
    (
        "p.jsonl",
        b'{"prompt": "a"}\n{"prompt": "b", "guidence": 1}\n',
        "",
        4,
        "prompt file 'p.jsonl' line 2: unknown key 'guidence'; did you mean 'guidance'?",
    ),
    (
        "p.jsonl",
        b'{"prompt": NaN}\n',
        "",
        4,
        "prompt file 'p.jsonl' line 1: 'NaN' is not JSON; write a finite number",
    ),
    (
        "p.txt",
        b"{" + b"|".join(b"%d" % i for i in range(20)) + b"}" * 1 + b" {a|b}\n",
        "--max-expansions 30",
        4,
        "prompt file 'p.txt' line 1: the prompt stands for 40 texts, at most 30 are allowed; take options out, or"
        " allow more: --max-expansions N",
    ),
    (
        "p.txt",
        b"__none__\n",
        "",
        4,
        "prompt file 'p.txt' line 1: wildcard folder 'wildcards': no such file or directory; name it with --wildcards,"
        " or write \\__ for plain underscores",
    ),
    ("p.txt", GOOD.encode(), "--address ray://10.0.0.5:10001", 2, "--address is for Ray alone; add --engine ray"),
    ("p.txt", GOOD.encode(), "--engine rya --workers 2", 2, "unknown engine 'rya'; did you mean 'ray'?"),
    ("p.txt", GOOD.encode(), "--worker-cores 1", 2, "--worker-cores is for Ray alone; add --engine ray"),
    ("p.txt", GOOD.encode(), "--no-expand --wildcards x", 2, "--wildcards does not go with --no-expand; drop one"),
    ("p.txt", GOOD.encode(), "--resume", 2, "no such option '--resume'; see 'ddgen batch --help'"),
    ("p.txt", GOOD.encode(), "--steps 0", 2, "--steps 0 is out of range; use 1 to 1000"),
    (
        "p.txt",
        GOOD.encode(),
        "--steps 20,x",
        2,
        "--steps: steps '20,x' is not a whole number; write it as 20",
    ),
    ("p.txt", GOOD.encode(), "--shard 3/2", 2, "--shard '3/2' is no part of a whole; use 1/8 to 8/8"),
    (
        "p.txt",
        GOOD.encode(),
        "--encoding utf-16",
        2,
        "--encoding utf-16 is not a byte encoding; convert the file: iconv -f utf-16 -t UTF-8",
    ),
    (
        "p.txt",
        GOOD.encode(),
        "-o a.png",
        2,
        "a batch does not fit into 'a.png'; give a directory, as in --output out/",
    ),
    (
        "p.txt",
        GOOD.encode(),
        "-o -",
        2,
        "a batch does not fit into standard output; give a directory, as in --output out/",
    ),
    ("p.txt", GOOD.encode(), "-o '../{nope}.png'", 2, "--output '../{nope}.png': unknown field 'nope'"),
    ("p.txt", GOOD.encode(), "--engine rya", 2, "unknown engine 'rya'; did you mean 'ray'?"),
    ("p.txt", GOOD.encode(), "--style nto", 2, "unknown style 'nto'; did you mean 'noto'?"),
    ("p.txt", GOOD.encode(), "--events", 2, "--events needs --json; add --json"),
    (
        "p.txt",
        GOOD.encode(),
        "-o p.txt/x",
        7,
        "output directory 'p.txt/x': 'p.txt' is a file; choose another with --output",
    ),
    (
        "p.txt",
        GOOD.encode(),
        "-o '{prompt}/{seed}.png' -s 7 --guidance 2,3",
        4,
        "prompt file 'p.txt' line 1: a second picture would be called",
    ),
]


@pytest.mark.parametrize(("name", "data", "flags", "code", "line"), ROWS)
def test_bad_input_row_by_row(
    tmp_path: Path, name: str, data: bytes | str | None, flags: str, code: int, line: str
) -> None:
    if data == "dir":
        (tmp_path / name).mkdir()
    elif isinstance(data, bytes):
        (tmp_path / name).write_bytes(data)
    done = shell(f"ddgen batch {name} {flags}", tmp_path)
    assert done.stderr.startswith(f"ddgen: error: {line}") and done.stdout == ""
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.png"))


def test_several_faults_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a --x 1\n" * 9)
    done = shell("ddgen batch p.txt", tmp_path)
    assert done.returncode == 4
    lines = done.stderr.splitlines()
    assert len(lines) == 5
    for number, line in enumerate(lines, 1):
        assert line.startswith(f"ddgen: error: prompt file 'p.txt' line {number}: unknown key 'x'; ")
    assert lines[-1].endswith(" (+4 more)")


def test_long_prompts_are_told_or_refused(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n" + "word " * 80 + "\n")
    command = "ddgen batch p.txt -o out --steps 1"
    strict = shell(f"{command} --strict-tokens", tmp_path)
    mend = "shorten it, or drop --strict-tokens"
    error = f"ddgen: error: prompt file 'p.txt' line 2: prompt has 80 tokens, over 75; {mend}\n"
    assert (strict.returncode, strict.stderr) == (4, error)
    told = shell(command, tmp_path)
    assert told.returncode == 0
    assert "1 prompt is long, the longest has 80 tokens; read in chunks of 75" in told.stderr


def test_a_stream_tells_or_refuses_long_prompts_too(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n" + "word " * 80 + "\n" + "word " * 90 + "\na dog\n")
    command = "ddgen batch - -o out --steps 1 --seed 7 < p.txt"
    strict = shell(f"{command} --strict-tokens", tmp_path)
    lines = [line for line in strict.stderr.splitlines() if line.startswith("ddgen: error: ")]
    mend = "shorten it, or drop --strict-tokens"
    place = "ddgen: error: standard input line"
    assert lines == [
        f"{place} {line}: prompt has {count} tokens, over 75; {mend}" for line, count in ((2, 80), (3, 90))
    ]
    assert strict.returncode == 3 and "2 saved, 0 skipped, 2 failed" in strict.stderr
    assert len((tmp_path / "out" / "failed.jsonl").read_text().splitlines()) == 2
    again = shell("ddgen batch out/failed.jsonl -o out --steps 1 --seed 7", tmp_path)
    assert again.returncode == 0 and "2 prompts are long, the longest has 90 tokens" in again.stderr
    told = shell(f"{command.replace('< p', '--json --events < p')}", tmp_path)
    events = [json.loads(line) for line in told.stdout.splitlines()]
    warning = "a prompt has 80 tokens; read in chunks of 75"
    assert [event["message"] for event in events if event["type"] == "warning"] == [warning]
    assert [event["type"] for event in events].count("skip") == 4
    assert told.returncode == 0 and told.stderr == "ddgen: 0 saved, 4 skipped, 0 failed\n"


def test_a_stream_goes_on_after_a_prompt_that_jpeg_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("x" * 40_000 + "\na cat\n")
    done = shell("ddgen batch - -o out --format jpeg --steps 1 --seed 7 < p.txt", tmp_path)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "standard input line 1: the prompt needs " in done.stderr and "1 saved, 0 skipped, 1 failed" in done.stderr


def test_output_that_fails_midway_tells_what_was_kept(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\na bird\n")
    done = shell("ulimit -f 8; ddgen batch p.txt -o out --steps 1 --batch-size 1", tmp_path)
    assert done.returncode == 7 and "Traceback" not in done.stderr
    assert "of 3 images saved; when that is mended, the same command continues" in done.stderr
    assert "over the file size limit" in done.stderr and not list((tmp_path / "out").glob("*.png"))
    again = shell("ddgen batch p.txt -o out --steps 1", tmp_path)
    assert again.returncode == 0 and "ddgen: 3 saved, 0 skipped, 0 failed" in again.stderr


def test_stdin_rows(tmp_path: Path) -> None:
    closed = shell("ddgen batch - <&-", tmp_path)
    assert (closed.returncode, closed.stderr) == (
        4,
        "ddgen: error: standard input is closed; give a file: ddgen batch prompts.txt\n",
    )
    (tmp_path / "p.txt").write_text(GOOD)
    both = shell("ddgen batch - p.txt < p.txt", tmp_path)
    assert both.returncode == 2 and "'-' does not go with other files" in both.stderr
    master, slave = pty.openpty()
    terminal = subprocess.run(
        [DDGEN, "batch", "-"], stdin=slave, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    os.close(master)
    os.close(slave)
    assert terminal.returncode == 2
    assert terminal.stderr == "ddgen: error: standard input is a terminal; pipe prompts in, or give a file\n"


def test_a_batch_is_made_resumed_and_planned(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red {apple|car}\na fox --seed 7\n")
    command = f"ddgen batch p.txt -o out {FAST}"
    first = shell(f"{command} -0", tmp_path)
    assert first.returncode == 0 and "ddgen: 3 saved, 0 skipped, 0 failed" in first.stderr
    paths = first.stdout.split("\0")
    assert len(paths) == 4 and paths[3] == "" and all((tmp_path / path).exists() for path in paths[:3])
    assert any(path.startswith("out/a-fox-7-") for path in paths)
    again = shell(command, tmp_path)
    assert (
        again.returncode == 0 and again.stdout == "" and "ddgen: 0 saved, 3 skipped, 0 failed" in again.stderr
    )
    planned = shell(f"{command} --plan --json", tmp_path)
    assert [json.loads(line)["state"] for line in planned.stdout.splitlines()] == ["done"] * 3
    (tmp_path / paths[0]).unlink()
    more = shell(f"{command} --json --check", tmp_path)
    records = [json.loads(line) for line in more.stdout.splitlines()]
    assert [(record["type"], record["path"]) for record in records] == [("image", paths[0])]
    (tmp_path / paths[0]).write_text("mine")
    clash = shell(command, tmp_path)
    assert clash.returncode == 7 and "exists and is another picture" in clash.stderr


def test_stream_of_ndjson_while_prompts_still_arrive(tmp_path: Path) -> None:
    """The second prompt is sent only after the first picture is announced: a reader that waited for the end
    would hang.
    """
    command = [DDGEN, "batch", "-", "-o", "out", "--json", *FAST.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
    ) as running:
        assert running.stdin is not None and running.stdout is not None and running.stderr is not None
        running.stdin.write("a red apple\n")
        running.stdin.flush()
        first = json.loads(running.stdout.readline())
        assert first["type"] == "image" and (tmp_path / first["path"]).exists()
        running.stdin.write('a fox --stpes 3\na --prompt "b"\na fox')
        running.stdin.close()
        rest = [json.loads(line) for line in running.stdout]
        assert [record["type"] for record in rest] == ["failed", "failed", "image"]
        running.stderr.read()
        assert running.wait() == 3
    assert (tmp_path / "out" / "failed.jsonl").read_text().count("# standard input line") == 2


def start(tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    (tmp_path / "p.txt").write_text("".join(f"prompt {index}\n" for index in range(40)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [DDGEN, "batch", "p.txt", "-o", "out", "--steps", "30", "--batch-size", "2", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_first_signal_stops_at_the_next_step_and_tells_how_to_go_on(tmp_path: Path) -> None:
    running = start(tmp_path)
    assert running.stdout is not None
    running.stdout.readline()
    busy = shell("ddgen batch p.txt -o out", tmp_path)
    assert busy.returncode == 10 and f"is in use by ddgen pid {running.pid} since" in busy.stderr
    running.send_signal(signal.SIGINT)
    out, error = running.communicate(timeout=60)
    assert running.returncode == -signal.SIGINT and "Traceback" not in error
    saved = len(list((tmp_path / "out").glob("*.png")))
    assert "ddgen: stopping at the next step; again to quit now" in error
    assert f"ddgen: interrupted; {saved} of 40 images saved; run the same command to continue" in error
    assert not list((tmp_path / "out").glob(".*.part")) and 0 < saved < 40


def test_second_signal_quits_at_once(tmp_path: Path) -> None:
    running = start(tmp_path)
    assert running.stdout is not None
    running.stdout.readline()
    running.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == -signal.SIGTERM and time.monotonic() - begun < 2


@pytest.mark.parametrize(("redirect", "code"), [("| head -n 1", 141), ("> /dev/full", 7), (">&-", 7)])
def test_pipes(tmp_path: Path, redirect: str, code: int) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog --steps 3\na bird --steps 4\na fox --steps 5\n")
    done = shell(f"ddgen batch p.txt -o out -q --batch-size 1 {FAST} {redirect}", tmp_path)
    assert done.returncode == code and "Traceback" not in done.stderr
    if code == 141:
        assert done.stdout.startswith("out/") and done.stderr == ""
    for path in (tmp_path / "out").glob("*.png"):
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")


def test_a_batch_of_hours_says_so_before_it_begins(tmp_path: Path) -> None:
    """For a file of what is still to be made; for a stream, whose end nobody knows, of one picture."""
    (tmp_path / "two.txt").write_text("a red apple\na tulip\n")
    (tmp_path / "one.txt").write_text("a red apple\n")
    slow = f"export PYTHONPATH={Path(__file__).parent / 'slow_machine'}"
    batch = f"ddgen batch {FAST} --seed 7 --progress none"
    found = shell(
        f"{slow}; {batch} one.txt -o out; {batch} two.txt -o out; {batch} two.txt -o new; cat two.txt | {batch} - -o s",
        tmp_path,
    )
    told = [line for line in found.stderr.splitlines() if line.startswith("ddgen: sticker on ")]
    assert found.returncode == 0 and len(told) == 4, found.stderr
    hours = [float(line.split("about ")[1].split()[0]) for line in told]
    assert all(" h" in line for line in told), told
    assert hours[1] == hours[0], "one of the two is there already"
    assert hours[2] == pytest.approx(2 * hours[0], rel=0.1)
    assert hours[3] == hours[0] and " h a picture" in told[3]
