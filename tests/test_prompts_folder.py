"""The files in prompts/ are what their README says, and each can be made with the model that ships."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddgen.io.settings import ALIASES, KEYS

DDGEN = str(Path(sys.executable).with_name("ddgen"))
FOLDER = Path(__file__).parents[1] / "prompts"
README = (FOLDER / "README.md").read_text()
ROWS = dict(re.findall(r"^\| `([\w.]+)` \| .* \| (\d+) \|$", README, re.MULTILINE))


def test_every_file_is_in_the_readme() -> None:
    assert set(ROWS) == {
        path.name for path in FOLDER.iterdir() if path.is_file() and path.name != "README.md"
    }


@pytest.mark.parametrize("name", sorted(ROWS))
def test_each_file_makes_what_the_readme_says(name: str, tmp_path: Path) -> None:
    command = [DDGEN, "batch", str(FOLDER / name), "-o", str(tmp_path / "out"), "--plan"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == int(ROWS[name])


def test_the_format_reference_names_every_key_and_alias() -> None:
    table = README.partition("## Settings")[2].partition("Several values")[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert set(KEYS) | {"prompt"} <= named
    assert set(ALIASES) - named <= {"s", "cfg_rescale", "cfg_interval", "no", "n"}
