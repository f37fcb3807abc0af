"""Run the installed `ddgen` as a user does, from another directory, with a pipeline that costs nothing."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(sys.executable).with_name("ddgen")
FAKE = Path(__file__).with_name("fake_pipeline")


def command() -> list[str]:
    """Return how `ddgen` is called: the console script of this Python, else the module."""
    return [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "ddgen"]


def environment(home: Path, *, fake: bool = True, **more: str) -> dict[str, str]:
    """Return a bare environment with an empty home and, unless `fake` is False, the fake pipeline."""
    kept = {
        name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH") if name in os.environ
    }
    plain = {"HOME": str(home), "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"}
    found = {**kept, **plain, **more}
    found["PATH"] = f"{SCRIPT.parent}:{found.get('PATH', '/usr/bin:/bin')}"
    if fake:
        found["PYTHONPATH"] = str(FAKE)
    return found


def default_signals() -> None:
    """Undo what the parent ignores."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Place:
    """A directory to work in, with an empty home beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path / "work"
        self.home = path / "home"
        self.path.mkdir()
        self.home.mkdir()

    def run(
        self, *arguments: str | bytes, stdin: bytes | None = None, fake: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `ddgen ARGUMENTS`; standard input is /dev/null unless given."""
        return subprocess.run(
            [*command(), *arguments],
            cwd=self.path,
            env=environment(self.home, fake=fake, **variables),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=120,
        )

    def shell(self, script: str, fake: bool = True, **variables: str) -> subprocess.CompletedProcess[bytes]:
        """Run a script in bash, where `ddgen` is on the PATH."""
        bash = shutil.which("bash")
        assert bash is not None
        return subprocess.run(
            [bash, "-c", script],
            cwd=self.path,
            env=environment(self.home, fake=fake, **variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start `ddgen ARGUMENTS` with signals at their defaults."""
        return subprocess.Popen(
            [*command(), *arguments],
            cwd=self.path,
            env=environment(self.home, **variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=default_signals,  # a background job of a shell inherits some of them ignored
        )

    def files(self) -> list[str]:
        """Return every file below the directory."""
        return sorted(str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_file())
