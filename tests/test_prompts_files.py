"""Prompt files: every format, every kind of bad input, memory that does not grow."""

import io
import os
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddgen.errors import InputError, UsageError
from ddgen.io.lines import MAX_LINE_BYTES, BadLine, PromptLine, collect_faults
from ddgen.io.prompts import PromptFile, check_encoding, guess_format, stream
from ddgen.io.settings import KEYS
from ddgen.request import Request


def read(data: str | bytes, format: str = "", encoding: str = "utf-8") -> list[PromptLine | BadLine]:
    raw = data.encode() if isinstance(data, str) else data
    return list(stream(io.BytesIO(raw), "prompt file 'p'", format, encoding))


def one(data: str | bytes, format: str = "", encoding: str = "utf-8") -> PromptLine | BadLine:
    found = read(data, format, encoding)
    assert len(found) == 1, found
    return found[0]


def good(data: str | bytes, format: str = "") -> tuple[str, dict[str, object]]:
    line = one(data, format)
    assert isinstance(line, PromptLine), line
    return line.prompt, dict(line.settings)


TEXT = [
    ("a red apple", "a red apple", {}),
    ("  a red apple \r\n", "a red apple", {}),
    ("a cup --steps 20", "a cup", {"steps": (20,)}),
    ("a cup --steps 20,30 --guidance 5,7.5", "a cup", {"steps": (20, 30), "guidance": (5.0, 7.5)}),
    (
        '--prompt "a cat" --negative_prompt "bad, ugly" --cfg_scale 7',
        "a cat",
        {"negative": ("bad, ugly",), "guidance": (7.0,)},
    ),
    ("--prompt a cat on a mat --seed 3", "a cat on a mat", {"seed": (3,)}),
    ("a cup --seed 3-5", "a cup", {"seed": (3, 4, 5)}),
    ("a cup --seed 1,4-5", "a cup", {"seed": (1, 4, 5)}),
    ("a cup --guidance-interval 0.2:0.8", "a cup", {"guidance_interval": ((0.2, 0.8),)}),
    ("a cup --sigmas 14.6,7,2,0", "a cup", {"sigmas": ((14.6, 7.0, 2.0, 0.0),)}),
    ("a cup --size 512x768,64x64", "a cup", {"size": ("512x768", "64x64")}),
    ("a cup --steps=20", "a cup", {"steps": (20,)}),
    ("a cup \\--steps 20", "a cup --steps 20", {}),
    ("a well--known cat -- yes", "a well--known cat -- yes", {}),
    ("\\#1 cat", "#1 cat", {}),
    ('--prompt "say \\"hi\\""', 'say "hi"', {}),
    ('--prompt ""', "", {}),
    ("(a:1.2) [b] {x|y} --scheduler karras", "(a:1.2) [b] {x|y}", {"spacing": ("karras",)}),
]


@pytest.mark.parametrize(("line", "prompt", "settings"), TEXT)
def test_text_line(line: str, prompt: str, settings: dict[str, object]) -> None:
    assert good(line, "txt") == (prompt, settings)


BAD = [
    ("txt", "a --stpes 3", "unknown key 'stpes'", "did you mean 'steps'?"),
    ("txt", "a --model x", "'model' is not allowed in a prompt file", "give --model on the command line"),
    (
        "txt",
        "a --steps 3 --steps 4",
        "'--steps' is given twice",
        "write several values with commas: --steps 20,30",
    ),
    (
        "txt",
        "a --steps",
        "'--steps' has no value",
        "write --steps VALUE, or \\--steps if it is part of the prompt",
    ),
    ("txt", "--steps 3", "the line has no prompt", 'write it before the options or behind --prompt ""'),
    ("txt", "a --prompt b", "the prompt is given twice", "write it before the options or behind --prompt"),
    ("txt", "a --steps x", "steps 'x' is not a whole number", "write it as 20"),
    ("txt", "a --guidance nan", "guidance 'nan' is not a finite number", "write it as 7.5"),
    ("txt", "a --seed 9-1", "seed range '9-1' has -7 values", "give 1 to 1000"),
    ("txt", "a --seed 1-99999", "seed range '1-99999' has 99999 values", "give 1 to 1000"),
    ("txt", "a\0b", "NUL byte at column 2", "take it out: tr -d '\\000'"),
    ("jsonl", '{"prompt": "a", "ouput": 1}', "unknown key 'ouput'", "did you mean 'output'?"),
    (
        "jsonl",
        '{"prompt": "a", "model": "x"}',
        "'model' is not allowed in a prompt file",
        "give --model on the command line",
    ),
    ("jsonl", '{"prompt": "a"', "not JSON at column 15 (expecting ',' delimiter)", "write one object a line"),
    (
        "jsonl",
        '{"prompt": "a", "prompt": "b"}',
        "key 'prompt' is given twice",
        "keep one; several values are a list: [20, 30]",
    ),
    (
        "jsonl",
        '{"prompt": "a", "cfg": 1, "guidance": 2}',
        "'guidance' is given twice (again as 'guidance')",
        "keep one of them",
    ),
    ("jsonl", '{"prompt": "a", "cfg": NaN}', "'NaN' is not JSON", "write a finite number"),
    ("jsonl", '{"prompt": "a", "cfg": 1e999}', "guidance 'inf' is not a finite number", "write it as 7.5"),
    ("jsonl", '{"prompt": "a", "steps": true}', "steps 'True' is not a whole number", "write it as 20"),
    ("jsonl", '{"prompt": "a", "steps": 2.5}', "steps '2.5' is not a whole number", "write it as 20"),
    (
        "jsonl",
        '{"prompt": "a", "seed": ' + "9" * 5000 + "}",
        "a number is too long",
        "write numbers of at most 20 digits",
    ),
    ("jsonl", '{"prompt": ' + "[" * 30000 + "}", "nested too deeply", "write one flat object a line"),
    ("jsonl", '{"prompt": 3}', "'prompt' is not text", 'write "prompt": "..."'),
    ("jsonl", "{}", "the line has no prompt", 'add "prompt": "..."'),
    ("jsonl", "[1]", "not a JSON object", 'write {"prompt": "..."}'),
    ("jsonl", '{"prompt": "a", "steps": []}', "'steps' has 0 values", "give 1 to 1000"),
]


@pytest.mark.parametrize(("format", "line", "message", "hint"), BAD)
def test_bad_line_names_itself_and_its_mend(format: str, line: str, message: str, hint: str) -> None:
    found = one(line, format)
    assert isinstance(found, BadLine)
    if "ouput" in line:  # the nearest of what is allowed, not of what is refused
        assert found.message == message and "ddgen batch --help" in found.hint
        return
    assert (found.message, found.hint) == (message, hint)
    assert str(found.error()) == f"prompt file 'p' line 1: {message}; {hint}"


def test_every_setting_of_a_request_can_stand_in_a_line() -> None:
    assert {field.name for field in fields(Request)} - {"prompts"} <= set(KEYS)


def test_comments_and_blank_lines_keep_the_numbers() -> None:
    lines = read("# title\n\na cat\n   \n# more\na dog")
    assert [(line.number, line.prompt) for line in lines if isinstance(line, PromptLine)] == [
        (3, "a cat"),
        (6, "a dog"),
    ]


def test_bad_byte_in_line_812_is_named_and_the_rest_is_read() -> None:
    data = b"a red apple\n" * 811 + "größe ".encode() + b"in \xff red\n" + b"a cat\n" * 3
    lines = read(data)
    bad = [line for line in lines if isinstance(line, BadLine)]
    assert [(b.number, b.message) for b in bad] == [(812, "invalid UTF-8 at column 10")]
    assert bad[0].hint == "fix the line or use --encoding"
    assert len(lines) == 815


def test_other_encodings() -> None:
    line = one("größe".encode("latin-1"), encoding=check_encoding("latin-1"))
    assert isinstance(line, PromptLine) and line.prompt == "größe"
    with pytest.raises(UsageError, match="iconv -f utf-16"):
        check_encoding("utf-16")
    for name in ("klingon", "zlib", "base64", "a\0b"):
        with pytest.raises(UsageError):
            check_encoding(name)


@pytest.mark.parametrize("text", ["a red apple\na cat\n", "größe\n"])
@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_refused_whole(text: str, codec: str) -> None:
    with pytest.raises(InputError, match="looks like UTF-16; convert it: iconv -f UTF-16 -t UTF-8"):
        read(text.encode(codec))


def test_bom_and_crlf_are_accepted_in_every_format() -> None:
    bom = b"\xef\xbb\xbf"
    assert good(bom + b"a cat\r\n") == ("a cat", {})
    assert good(bom + b'{"prompt": "a cat"}\r\n') == ("a cat", {})
    assert good(bom + b"prompt,steps\r\na cat,3\r\n", "csv") == ("a cat", {"steps": (3,)})
    assert good(bom + b'prompts = ["a cat"]\r\n', "toml") == ("a cat", {})


def test_overlong_line_is_one_bad_line_and_is_never_held() -> None:
    lines = read(b"a\n" + b"x" * (3 * MAX_LINE_BYTES) + b"\nb\n" + b"y" * MAX_LINE_BYTES + b"\n")
    assert [line.number for line in lines] == [1, 2, 3, 4]
    assert isinstance(lines[1], BadLine) and f"longer than {MAX_LINE_BYTES} bytes" in lines[1].message
    assert isinstance(lines[3], PromptLine)


def test_too_many_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddgen.io.lines.MAX_LINES", 10)
    assert len(read("a\n" * 10)) == 10
    with pytest.raises(InputError, match="has more than 10 lines"):
        read("a\n" * 11)


def test_last_line_without_its_end_is_a_prompt() -> None:
    assert good("a cat") == ("a cat", {})
    assert read("") == []


def test_csv() -> None:
    table = 'prompt,steps,cfg\n"a cat, sitting",20,\n\n"two\nlines",5,7\na "b" c,,\n'
    assert [
        (line.number, line.prompt, dict(line.settings))
        for line in read(table, "csv")
        if isinstance(line, PromptLine)
    ] == [
        (2, "a cat, sitting", {"steps": (20,)}),
        (4, "two\nlines", {"steps": (5,), "guidance": (7.0,)}),
        (6, 'a "b" c', {}),
    ]
    assert good("prompt\tsteps\na, b\t3\n", "tsv") == ("a, b", {"steps": (3,)})
    bad = read('prompt,steps\na,1,2\nb,x\n"c"d,1\ne,4\n', "csv")
    assert [type(line).__name__ for line in bad] == ["BadLine", "BadLine", "BadLine", "PromptLine"]
    assert bad[0].message == "3 cells under 2 columns"  # type: ignore[union-attr]
    never_closed = read('prompt,steps\n"a,1\nb,2\n', "csv")
    assert [line.number for line in never_closed] == [2] and isinstance(never_closed[0], BadLine)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("steps,seed", "no column 'prompt'"),
        ("prompt,stpes", "unknown key 'stpes'"),
        ("prompt,cfg,guidance", "a column twice"),
    ],
)
def test_csv_header(header: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(f"{header}\na,1\n", "csv")


def test_toml() -> None:
    text = 'prompts = ["a cat", {prompt = "a dog", steps = [20, 30]}]\n'
    text += '[defaults]\nsteps = 5\nnegative = "blurry"\n'
    assert [
        (line.prompt, dict(line.settings)) for line in read(text, "toml") if isinstance(line, PromptLine)
    ] == [
        ("a cat", {"steps": (5,), "negative": ("blurry",)}),
        ("a dog", {"steps": (20, 30), "negative": ("blurry",)}),
    ]
    tables = '[[prompts]]\nprompt = "a"\n\n[[prompts]]\nprompt = "b"\nstpes = 3\n'
    bad = [line for line in read(tables, "toml") if isinstance(line, BadLine)]
    assert [(line.number, line.message) for line in bad] == [(4, "unknown key 'stpes'")]


@pytest.mark.parametrize(
    "text",
    [
        "prompts = [",
        "promts = []",
        "prompts = 3",
        'prompts = ["a"]\nprompts = ["b"]',
        "prompts = " + "[" * 20000,
        'prompts = [{prompt = "a", cfg = nan}]',
        'prompts = [{prompt = "a", seed = 1979-05-27}]',
        "prompts = [{a = {b = 1}}]",
    ],
)
def test_bad_toml(text: str) -> None:
    try:
        assert any(isinstance(line, BadLine) for line in read(text, "toml"))
    except InputError:
        pass


def test_toml_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="over 8 MiB"):
        read(b'# x\nprompts = ["a"]\n' + b"#" * (9 * 2**20), "toml")


def test_format_is_told_by_suffix_then_by_the_first_line() -> None:
    assert guess_format("x.JSONL", b"") == "jsonl"
    assert guess_format("-", b'{"prompt": "a"}') == "jsonl"
    assert guess_format("-", b"{red|blue} apple") == "txt"
    assert guess_format("p.toml", b"a") == "toml"


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a cat\na dog --stpes 3\n" + "b --x 1\n" * 9)
    file = PromptFile(str(path))
    lines = list(file.lines())
    assert lines == list(file.lines()), "a second reading sees the same"
    faults = collect_faults(line for line in lines if isinstance(line, BadLine))
    assert faults is not None and len(faults.others) == 4 and faults.more == 5
    assert faults.message == f"prompt file '{path}' line 2: unknown key 'stpes'"
    file.close()
    with pytest.raises(InputError, match="no such file; check the path or use '-'"):
        PromptFile(str(tmp_path / "none.txt"))
    with pytest.raises(InputError, match="is a directory"):
        PromptFile(str(tmp_path))
    with pytest.raises(InputError, match="not a file name"):
        PromptFile("a\0b")


def test_a_pipe_is_read_once_and_can_be_checked_first(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b"a cat\na dog\n"))
    writer.start()
    file = PromptFile(str(pipe))
    writer.join()
    assert [line.number for line in file.lines()] == [line.number for line in file.lines()] == [1, 2]
    file.close()


def test_stream_asks_for_no_more_than_it_gives() -> None:
    class Slow(io.BytesIO):
        served = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            Slow.served += 1
            return super().readline(size if size is not None else -1)

    lines = stream(Slow(b"a\nb\nc\n"), "x")
    assert next(lines).number == 1 and Slow.served == 1


@given(st.text(), st.sampled_from(["txt", "jsonl", "csv", "toml"]))
def test_any_text_is_read_or_refused_but_never_crashes(text: str, format: str) -> None:
    try:
        read(text.encode("utf-8", "surrogatepass"), format)
    except InputError:
        pass


@given(st.binary(max_size=300), st.sampled_from(["txt", "jsonl", "csv", "toml"]))
def test_any_bytes(data: bytes, format: str) -> None:
    try:
        read(data, format)
    except InputError:
        pass


MEMORY = """
import json, sys, tracemalloc
from ddgen.io.prompts import PromptFile
file = PromptFile(sys.argv[1])
tracemalloc.start()
count = sum(1 for _ in file.lines())
print(count, tracemalloc.get_traced_memory()[1], "torch" in sys.modules)
"""


def test_memory_does_not_grow_with_the_lines_and_torch_stays_out(tmp_path: Path) -> None:
    peaks = {}
    for size in (100, 100_000):
        path = tmp_path / f"{size}.txt"
        path.write_text("".join(f"a red apple number {i} --steps 20\n" for i in range(size)))
        out = subprocess.run(
            [sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert out[0] == str(size) and out[2] == "False"
        peaks[size] = int(out[1])
    assert peaks[100_000] - peaks[100] < 2**20
