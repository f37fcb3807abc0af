"""How things are measured: a fresh process, or a worker that repeats one call; ours and the peer in turn.

Both sides of a row run in one session on one machine, alternating, so that whatever else the machine does
falls on both; what is reported is the median of the ratios of neighbours. Where a row's work is counted, a
bare matrix product runs in the same turn: what it would need for that work is the limit.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
Sample = Callable[[], float]


class Absent(Exception):
    """A row that cannot be taken here; says what is missing."""


@dataclass(frozen=True)
class Ran:
    """One finished process: wall seconds, and the most memory it held in megabytes (10^6 bytes)."""

    seconds: float
    megabytes: float


PATIENCE = 1800.0  # seconds that a command or one call of a worker may take
LAUNCHER = """
import os, signal, sys, time
start = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, file_actions=[
    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
_, status, usage = os.wait4(child, 0)
print(status, time.perf_counter() - start, usage.ru_maxrss)
"""
"""A process is born with the peak of the one that started it (Linux), so one that is always small does."""


def run(argv: Sequence[str], *, patience: float = PATIENCE, **variables: str) -> Ran:
    """Run a command to its end in an empty directory, its output thrown away. variables: of its environment.

    Raises:
        RuntimeError: it failed, or took longer than its patience (exit -9); with what it wrote to standard error.
    """
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryFile() as errors:
        launched = subprocess.run(
            [sys.executable, "-I", "-S", "-c", LAUNCHER, str(patience), *argv],
            cwd=work,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**surroundings(), **variables},
            text=True,
        )
        words = launched.stdout.split()
        code = os.waitstatus_to_exitcode(int(words[0])) if words else launched.returncode
        if code != 0:
            errors.seek(0)
            raise RuntimeError(f"{argv}: exit {code}\n{errors.read().decode(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return Ran(float(words[1]), int(words[2]) * unit / 1e6)


def surroundings() -> dict[str, str]:
    """Return the environment of a command: one in which Python keeps what it has compiled, as an install
    does."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Worker:
    """A process that has prepared one call (a function of bench/workers*.py) and times it whenever asked.

    work: operations of one call, where the function counts them, else None. patience: seconds that it may take to
    prepare, or for one call, before it is killed.
    """

    def __init__(self, name: str, *arguments: str, patience: float = PATIENCE) -> None:
        self._patience = patience
        argv = [sys.executable, "-W", "ignore", "-m", "bench.workers", name, *arguments]
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.work: float | None = json.loads(self._line())

    def __call__(self) -> float:
        """Return the seconds that the call took."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(json.loads(self._line()))

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        late = threading.Timer(self._patience, self.process.kill)
        late.start()
        line = self.process.stdout.readline()
        late.cancel()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace")
            self.close()
            raise RuntimeError(f"worker {self.process.args} ended with exit {code}\n{said}")
        return line


@dataclass(frozen=True)
class Pair:
    """What one row compares. `close` ends what was started for it.

    ours, peer: each call returns one sample. target: the most that ours / peer (or ours - peer) may be.
    repeats, warmups: the most samples of each side that are worth their time, and how many are thrown away.
    limit:      the seconds of a bare matrix product of `work` operations, which `ours` needs as well.
    """

    what: str
    ours: Sample
    peer_name: str
    peer: Sample
    unit: str = "s"
    target: float | None = None
    compare: str = "ratio"
    close: Callable[[], None] = lambda: None
    repeats: int = 7
    warmups: int = 1
    limit: Sample | None = None


@dataclass(frozen=True)
class Result:
    """A row as it is written down, with its raw samples in the order they were taken, and the machine."""

    name: str
    what: str
    peer_name: str
    unit: str
    compare: str
    target: float | None
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    machine: Mapping[str, object] = field(default_factory=dict)

    @property
    def comparisons(self) -> list[float]:
        """Of neighbours: ours / peer, or ours - peer."""
        pairs = zip(self.ours, self.peer, strict=True)
        return [a - b if self.compare == "difference" else a / b for a, b in pairs]

    @property
    def comparison(self) -> float:
        return median(self.comparisons)

    @property
    def holds(self) -> bool | None:
        return None if self.target is None else self.comparison <= self.target

    @property
    def of_limit(self) -> float | None:
        """Which part of the matrix product's speed is reached: the median of neighbours."""
        if not self.limit:
            return None
        return median(bare / ours for bare, ours in zip(self.limit, self.ours, strict=True))


def measure(name: str, pair: Pair, repeats: int, machine: Mapping[str, object]) -> Result:
    """Take up to `repeats` samples of both sides in turn, after those that do not count."""
    result = Result(
        name, pair.what, pair.peer_name, pair.unit, pair.compare, pair.target, machine=machine
    )  # fmt: skip
    try:
        for _ in range(pair.warmups):
            pair.ours()
            pair.peer()
        for i in range(min(repeats, pair.repeats)):
            # The order alternates, so that neither always follows the other.
            sides = [(result.ours, pair.ours), (result.peer, pair.peer)]
            for samples, sample in sides[:: 1 if i % 2 == 0 else -1]:
                samples.append(round(sample(), 5))
            if pair.limit is not None:
                result.limit.append(round(pair.limit(), 5))
    finally:
        pair.close()
    return result


def to_json(results: Sequence[Result]) -> str:
    """Return results as a file holds them; rows of one session share their machine."""
    machines: list[Mapping[str, object]] = []
    rows = []
    for result in results:
        if result.machine not in machines:
            machines.append(result.machine)
        rows.append(vars(result) | {"machine": machines.index(result.machine)})
    return json.dumps({"machines": machines, "rows": rows}, indent=1) + "\n"


def from_json(text: str) -> list[Result]:
    data = json.loads(text)
    return [Result(**(row | {"machine": data["machines"][row["machine"]]})) for row in data["rows"]]


def merged(kept: Sequence[Result], new: Sequence[Result], order: Sequence[str]) -> list[Result]:
    """Return the new results and those of before whose rows were not taken again, in the order of the rows.

    Results of rows that are no more are dropped.
    """
    found = {result.name: result for result in (*kept, *new)}
    return [found[name] for name in order if name in found]
