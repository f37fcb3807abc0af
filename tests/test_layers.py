"""The layers hold: an import points down, torch stays out of what answers at once, files are readable."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ddgen

ROOT = Path(ddgen.__file__).parent

# An import may only point to a smaller number; packages of one number do not know each other.
RANKS = {
    "errors": 0,
    "request": 1,
    "conditioning": 1,
    "io": 2,
    "diffusion": 3,
    "nets": 3,
    "text": 3,
    "weights": 4,
    "app": 5,
    "cli": 6,
}

FREE_OF_TORCH = sorted(
    [f"ddgen.cli.{path.stem}" for path in (ROOT / "cli").glob("*.py")]
    + [f"ddgen.io.{path.stem}" for path in (ROOT / "io").glob("*.py")]
    + [f"ddgen.app.{name}" for name in ("plan", "naming", "produce")]
    + [f"ddgen.weights.{name}" for name in ("registry", "header", "spec", "arch")]
    + [f"ddgen.text.{name}" for name in ("tokens", "prompt", "chunks", "config")]
    + [f"ddgen.diffusion.{name}" for name in ("samplers", "spacing")]
    + ["ddgen", "ddgen.request", "ddgen.errors", "ddgen.conditioning", "ddgen.nets.config"]
)


def modules() -> list[Path]:
    return sorted(
        path
        for path in ROOT.rglob("*.py")
        if path.name != "__init__.py" and path.parent != ROOT or path.stem in RANKS
    )


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, package of ddgen) of every import, also those inside functions and for type checking."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "ddgen" and len(parts) > 1 and parts[1] in RANKS:
                yield node.lineno, parts[1]


def offences(path: Path, home: str) -> list[str]:
    return [
        f"{path.name}:{line}: {home} imports {package}"
        for line, package in imports(path)
        if package != home and RANKS[package] >= RANKS[home]
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_point_down(path: Path) -> None:
    assert offences(path, path.relative_to(ROOT).parts[0].removesuffix(".py")) == []


def test_the_walk_sees_an_offence(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "def f():\n    from ddgen.cli import console\n"
        "import ddgen.text.clip\nfrom ddgen.errors import DdgenError\n"
    )
    assert offences(bad, "nets") == ["bad.py:3: nets imports text", "bad.py:2: nets imports cli"]


def test_torch_stays_out() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {FREE_OF_TORCH}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'transformers', 'open_clip', 'diffusers', 'ray'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_imports_no_command() -> None:
    code = (
        "import sys\nfrom ddgen.cli.program import run\nassert run(['--help']) == 0\n"
        "late = {'ddgen.cli.sample', 'ddgen.app.plan', 'numpy', 'PIL', 'pydantic', 'rich.markdown'}\n"
        "assert not late & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_numpy_waits_for_pictures() -> None:
    code = "import sys, ddgen.cli.sample, ddgen.cli.batch_run\nassert not {'numpy', 'PIL'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", sorted({path.parent.name for path in modules() if path.parent != ROOT}))
def test_layer_packages_are_empty_and_files_readable(package: str) -> None:
    assert (ROOT / package / "__init__.py").read_text() == ""
    for path in (ROOT / package).glob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_no_import_starts_something() -> None:
    assert not list(ROOT.rglob("utils.py"))
    for path in modules():
        for node in ast.parse(path.read_text()).body:
            call = node.value if isinstance(node, ast.Expr) else None
            assert not isinstance(call, ast.Call), f"{path}:{node.lineno}: a call when imported"
