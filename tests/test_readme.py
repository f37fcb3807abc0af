"""README tells the truth: its commands run and print what it shows, its help is the program's, its links lead somewhere.

In a ```console block a line starting with "$ " is typed into bash in an empty directory (prompts/ beside it), and the lines below it
are what must come out on standard output and standard error, where "..." stands for anything.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```console\n(.*?)^```", README, re.S | re.M)


def transcript(block: str) -> list[tuple[str, str]]:
    """Split a console block into (command, expected output); a trailing backslash continues a command."""
    found: list[tuple[str, str]] = []
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        while command.endswith("\\"):
            more, _, output = output.partition("\n")
            command = command[:-1] + more.strip()
        found.append((command, output.strip()))
    return found


def matches(expected: str, seen: str) -> bool:
    pattern = ".*".join(re.escape(piece) for piece in expected.split("..."))
    return re.fullmatch(pattern, seen.strip(), re.S) is not None


@pytest.mark.parametrize("block", BLOCKS, ids=[transcript(block)[0][0][:50] for block in BLOCKS])
def test_console_block(block: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    work = tmp_path / "work"
    home.mkdir()
    shutil.copytree(ROOT / "prompts", work / "prompts")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(home), "COLUMNS": "100", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    for command, expected in transcript(block):
        run = ["bash", "-c", command]
        done = subprocess.run(run, cwd=work, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
        assert done.returncode == 0 or "exit" in expected, f"{command}: {done.stdout}"
        if expected:
            assert matches(expected, done.stdout), f"$ {command}\n{done.stdout}\n--- README says ---\n{expected}"


def test_opens_with_two_commands() -> None:
    """The first makes a picture, the second passes the tests; .ci/run types the second."""
    first, second = re.findall(r"^```sh\n(.*?)^```", README, re.S | re.M)[:2]
    assert first.strip() == "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/ddgen sample \"a red apple\""
    assert "pytest" in second and "venv" in second and "pip install" in second


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README):
        path = next(part for part in target if part)
        if "://" not in path:
            assert (ROOT / path).exists(), path
