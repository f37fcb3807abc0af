"""Bad input, row by row, through a real shell: exit code, the whole line, nothing written, the mend works."""

import json
import re
from pathlib import Path

import pytest
from bad_input import ROWS
from program import Place


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, tmp_path: Path) -> None:
    row, place = ROWS[name], Place(tmp_path)
    log = tmp_path / "log"
    failed = place.shell(row.script, FAKE_LOG=str(log))
    *before, line = failed.stderr.decode().splitlines()
    pattern = re.escape("ddgen: error: " + row.line).replace(re.escape("{word}"), r"\w+")
    assert re.fullmatch(pattern, line), line
    assert all(text.startswith("ddgen: sticker, 1 x ") for text in before), (
        before
    )  # said before the model is loaded
    assert failed.returncode == row.code
    assert failed.stdout == b""
    assert log.exists() == bool(before), "what the flags tell must be told before a model is loaded"
    assert place.files() == []
    mended = place.shell(row.mend)
    assert mended.returncode == 0, mended.stderr.decode()
    assert mended.stdout or place.files()


@pytest.mark.parametrize(
    "name", ["unknown flag", "no steps", "standard input closed", "unknown model", "output read-only"]
)
def test_a_row_as_json(name: str, tmp_path: Path) -> None:
    row, place = ROWS[name], Place(tmp_path)
    failed = place.shell(row.script.replace("ddgen sample", "ddgen sample --json"))
    record = json.loads(failed.stderr.decode().splitlines()[-1])
    assert record["type"] == "error"
    assert record["code"] == row.code == failed.returncode
    assert record["id"].split(".")[0] == {2: "usage", 4: "input", 5: "model", 7: "output"}[row.code]
    assert f"{record['message']}; {record['mend']}" == row.line


def test_debug_shows_the_traceback_without_the_home(tmp_path: Path) -> None:
    place = Place(tmp_path)
    failed = place.run("sample", "x", "--debug", FAKE_FAIL="bug", HF_TOKEN="hf_secret")
    text = failed.stderr.decode()
    assert "Traceback" in text and "KeyError: 'oops'" in text and "Python 3." in text
    assert str(place.home) not in text and "hf_secret" not in text
    assert "Traceback" in place.run("sample", "x", DDGEN_DEBUG="1", FAKE_FAIL="bug").stderr.decode()


def test_long_values_do_not_make_long_lines(tmp_path: Path) -> None:
    failed = Place(tmp_path).run("sample", "x", "--sampler", "é" * 5000)
    assert failed.returncode == 2
    assert len(failed.stderr) <= 300 + len("ddgen: error: \n")


def test_json_and_a_picture_do_not_share_standard_output(tmp_path: Path) -> None:
    failed = Place(tmp_path).run("sample", "x", "--json", "-o", "-")
    assert json.loads(failed.stderr)["id"] == "usage.stdout"
    assert (failed.returncode, failed.stdout) == (2, b"")
