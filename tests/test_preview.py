"""The picture in the terminal: the right protocol, and bytes that a terminal understands."""

import base64
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddgen.cli import preview

DDGEN = str(Path(sys.executable).with_name("ddgen"))
HALVES = np.zeros((64, 64, 3), np.uint8)
HALVES[:32] = (255, 0, 0)
HALVES[32:] = (0, 0, 255)


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "mlterm"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, "blocks"),
        ({}, "blocks"),
    ],
)
def test_kind_is_told_from_the_environment(environment: dict[str, str], kind: str) -> None:
    assert preview.kind_of(environment) == kind


def test_half_blocks_show_the_colours_in_their_places() -> None:
    pytest.importorskip("chafa")
    lines = preview.draw(HALVES, "blocks", 20, 10).decode().split("\n")
    assert len(lines) == 10
    assert "255;0;0" in lines[0] and "0;0;255" not in lines[0]
    assert "0;0;255" in lines[-1] and "255;0;0" not in lines[-1]
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", "".join(lines))
    assert set(shown) <= set(" ▀▄█")


def test_graphics_protocols() -> None:
    pytest.importorskip("chafa")
    kitty = preview.draw(HALVES, "kitty", 20, 10)
    assert kitty.count(b"\x1b_G") >= 1 and kitty.rstrip().endswith(b"\x1b\\")
    iterm = preview.draw(HALVES, "iterm2", 20, 10)
    assert b"\x1b]1337;File=inline=1" in iterm
    body = iterm.partition(b":")[2].rstrip(b"\x07\n\x1b\\")
    assert base64.b64decode(body + b"=" * (-len(body) % 4))[:4] in (b"II*\0", b"\x89PNG")
    sixel = preview.draw(HALVES, "sixel", 20, 10)
    assert sixel.startswith(b"\x1bP") and sixel.rstrip().endswith(b"\x1b\\") and b"#" in sixel


def test_through_a_terminal_and_without_one(tmp_path: Path) -> None:
    pytest.importorskip("chafa")
    command = [
        DDGEN,
        "sample",
        "a red apple",
        "--steps",
        "1",
        "--seed",
        "1",
        "--preview",
        "-o",
        "a.png",
        "--progress",
        "none",
    ]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert (
        refused.stderr == "ddgen: error: --preview needs a terminal on standard error; leave --preview out\n"
    )
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    for name in ("TMUX", "TERM_PROGRAM", "LC_TERMINAL"):
        environment.pop(name, None)
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=slave, env=environment
    ) as running:
        os.close(slave)
        seen = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:
                break
            if not piece:
                break
            seen += piece
        assert running.stdout is not None and running.stdout.read() == b"a.png\n"
        assert running.wait(60) == 0
    os.close(master)
    assert "▄".encode() in seen or "▀".encode() in seen
