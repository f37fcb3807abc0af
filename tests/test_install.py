"""The wheel: small enough, complete, and able to make a picture alone in an empty environment without a network."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the tracked files, as a release would."""
    source = tmp_path_factory.mktemp("source") / "ddgen"
    ignore = shutil.ignore_patterns(".git", ".venv", "__pycache__", "runs", "dist", "build", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, source, ignore=ignore)
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (made,) = out.glob("*.whl")
    return made


def test_wheel_is_small_and_complete(wheel: Path) -> None:
    assert wheel.stat().st_size <= 95 * MEGABYTE
    with zipfile.ZipFile(wheel) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist()}
    assert max(sizes.values()) <= 48 * MEGABYTE
    for name in ("ddgen/py.typed", "ddgen/weights.toml", "ddgen/models/sticker.safetensors"):
        assert name in sizes, name
    assert not [name for name in sizes if name.startswith(("tests/", "bench/", "prompts/"))]
    assert [name for name in sizes if name.endswith("licenses/LICENSE")]
    assert [name for name in sizes if name.endswith("licenses/NOTICE")]


@pytest.mark.slow
def test_wheel_samples_offline_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Only the wheel is installed; its dependencies are lent by path, since they are gigabytes. HOME is empty and there is no route."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    # A plain path in a .pth is appended to sys.path; the .pth files in that directory (an editable ddgen) are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    where = subprocess.run([python, "-c", "import ddgen; print(ddgen.__file__)"], cwd=work, check=True, capture_output=True, text=True)
    assert where.stdout.startswith(str(site)), "the installed copy must be the one that runs"

    command = ["unshare", "-rn", str(python), "-m", "ddgen", "sample", "a red apple", "--seed", "7"]
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode != 0:
        pytest.skip("unshare -rn: this machine lets nobody make a network namespace")
    env = {"PATH": os.environ["PATH"], "HOME": str(home)}
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a-red-apple-7.png\n"
    assert (work / "a-red-apple-7.png").read_bytes().startswith(b"\x89PNG")
