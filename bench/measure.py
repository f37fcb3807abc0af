"""How things are measured: a fresh process, or a worker that repeats one call; ours and the peer in turn.

Both sides of a row run in one session on one machine, alternating, so that whatever else the machine does
falls on both; what is reported is the median of the ratios of neighbours.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
Sample = Callable[[], float]


@dataclass(frozen=True)
class Ran:
    """One finished process: wall seconds, and the most memory it held in megabytes (10^6 bytes).

    A process is born with the peak of the one that started it (Linux), so this one must stay small: memory
    that does not rise above our own peak is not known, and is NaN.
    """

    seconds: float
    megabytes: float


def run(argv: Sequence[str]) -> Ran:
    """Run a command to its end in an empty directory, its output thrown away.

    Raises:
        RuntimeError: it failed; with what it wrote to standard error.
    """
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(argv, cwd=work, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"{argv}: exit {process.returncode}\n{errors.read().decode(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return Ran(seconds, usage.ru_maxrss * unit / 1e6 if usage.ru_maxrss > own_peak() else float("nan"))


def own_peak() -> int:
    """Return the most memory this program has held, in KiB; 0 where a child is not born with it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    # Not getrusage: that counts what this process was itself born with.
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


class Worker:
    """A process that has prepared one call (a function of bench/workers.py) and times it whenever asked."""

    def __init__(self, name: str, *arguments: str) -> None:
        argv = [sys.executable, "-W", "ignore", "-m", "bench.workers", name, *arguments]
        self.process = subprocess.Popen(
            argv,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._line()

    def __call__(self) -> float:
        """Return the seconds that the call took."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(json.loads(self._line()))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"worker {self.process.args} ended with exit {self.process.wait()}")
        return line


@dataclass(frozen=True)
class Pair:
    """What one row compares. `close` ends what was started for it.

    ours, peer: each call returns one sample. target: the most that ours / peer (or ours - peer) may be.
    """

    what: str
    ours: Sample
    peer_name: str
    peer: Sample
    unit: str = "s"
    target: float | None = None
    compare: str = "ratio"
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Result:
    """A row as it is written down, with its raw samples in the order they were taken."""

    name: str
    what: str
    peer_name: str
    unit: str
    compare: str
    target: float | None
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    @property
    def comparison(self) -> float:
        """The median over neighbours of ours / peer, or of ours - peer."""
        pairs = zip(self.ours, self.peer, strict=True)
        return median(a - b if self.compare == "difference" else a / b for a, b in pairs)

    @property
    def holds(self) -> bool | None:
        return None if self.target is None else self.comparison <= self.target


def measure(name: str, pair: Pair, repeats: int) -> Result:
    """Take `repeats` samples of both sides in turn, after one of each that does not count."""
    ours: list[float] = []
    peer: list[float] = []
    try:
        pair.ours()
        pair.peer()
        for i in range(repeats):
            # The order alternates, so that neither always follows the other.
            for samples, sample in [(ours, pair.ours), (peer, pair.peer)][:: 1 if i % 2 == 0 else -1]:
                samples.append(round(sample(), 5))
    finally:
        pair.close()
    return Result(name, pair.what, pair.peer_name, pair.unit, pair.compare, pair.target, ours, peer)


def to_json(results: Sequence[Result], machine: dict[str, object]) -> str:
    return json.dumps({"machine": machine, "rows": [asdict(r) for r in results]}, indent=1) + "\n"


def from_json(text: str) -> tuple[dict[str, object], list[Result]]:
    data = json.loads(text)
    return data["machine"], [Result(**row) for row in data["rows"]]
