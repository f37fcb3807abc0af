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


def test_the_table_of_parity_holds_what_the_tests_compare() -> None:
    """Every section is a kind of comparison that a test records, and every difference there is small."""
    tests = Path(__file__).parent.glob("test_*.py")
    kinds = {
        name for test in tests for name in re.findall(r'record_property\(\s*f?"([^"|]+)', test.read_text())
    }
    page = (DOCS / "parity.md").read_text()
    assert len(kinds) > 8
    sections = set(re.findall(r"^## (.+)$", page, re.M))
    assert sections <= {f"{name[0].upper()}{name[1:]}" for name in kinds} and "U-Net, against diffusers" in sections
    values = [float(value) for value in re.findall(r"^\| .+ \| ([0-9.e+-]+) \|$", page, re.M)]
    assert len(values) > 50 and max(values) < 1e-4


def test_the_table_of_parity_is_made_of_what_tests_tell() -> None:
    spec = importlib.util.spec_from_file_location("parity", DOCS / "parity.py")
    assert spec is not None and spec.loader is not None
    parity = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parity)
    told = "".join(
        f'<testcase name="{name}"><properties><property name="{kind}" value="{value}"/></properties></testcase>'
        for name, kind, value in (
            ("test_a[sd1]", "u", "1e-9"),
            ("test_b[sd1]", "u", "2e-8"),
            ("test_it_all", "u", "0.0"),
            ("test_c[x]", "v|whole", "3e-7"),
        )
    )
    rows = parity.told(parity.xml.fromstring(f"<testsuite>{told}</testsuite>"))
    assert rows == [("u", "sd1", 2e-8), ("u", "it all", 0.0), ("v", "whole", 3e-7)]
    page = parity.page(rows)
    assert "## U\n" in page and "| sd1 | 2.0e-08 |" in page and "## V\n" in page


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
