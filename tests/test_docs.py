"""The pages in docs/: what they link to is there, every command they show exists, the site builds without a warning."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddgen.cli import program

DOCS = Path(__file__).resolve().parents[1] / "docs"
SITE = DOCS / "site" / "mkdocs.yml"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    shown = re.findall(r"^(?:\$ |    )ddgen ([a-z]+)", page.read_text(), re.M)
    assert [name for name in shown if name not in program.COMMANDS] == []


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r"^  - [^:]+: ([\w-]+\.md)$", SITE.read_text(), re.M)
    assert len(named) > 8
    assert [name for name in named if not (DOCS / name).is_file()] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("needs the extra `docs`")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(SITE), "-d", str(tmp_path / "site")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "how-it-works" / "index.html").is_file()
