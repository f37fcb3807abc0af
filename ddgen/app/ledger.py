"""The papers of a batch, all in its output directory: a lock, the run's seed, the ledger, the list of what
failed. Torch-free.

    ledger.jsonl   one line per finished picture (and per one that `best` did not keep), only ever appended to; a cache, the pictures themselves are
    the truth
    failed.jsonl   what could not be made, a prompt file of its own; replaced whole when the run ends
    run.json       the run's seed, drawn once where --seed is not given
    .ddgen.lock    held by flock, so it dies with its process; shards hold it together, each with a lock of
    its own

With --shard 2/8 the first two are called ledger-2of8.jsonl and failed-2of8.jsonl.
"""

import errno
import fcntl
import json
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ddgen.errors import BusyError, InputError, OutputError
from ddgen.io import files

SCHEMA = "ddgen/1"
MAX_LINE = 64 * 1024  # bytes


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`: every count-th job, counted over the whole input."""

    index: int = 1
    count: int = 1

    @property
    def suffix(self) -> str:
        return "" if self.count == 1 else f"-{self.index}of{self.count}"

    def holds(self, index: int) -> bool:
        return index % self.count == self.index - 1


class Lock:
    """The right to write into a directory.

    Two runs of one shard exclude each other, and a run without shards excludes all.
    """

    def __init__(self, directory: Path, shard: Shard) -> None:
        """Take it at once; make the directory where there is none.

        Raises:
            BusyError: another run has it, named by its pid.
            OutputError: the directory cannot be made or written.
        """
        self._held: list[int] = []
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(directory, error) from error
        try:
            whole = directory / ".ddgen.lock"
            if shard.count == 1:
                self._take(whole, fcntl.LOCK_EX, directory)
            else:
                self._take(whole, fcntl.LOCK_SH, directory)
                self._take(directory / f".ddgen{shard.suffix}.lock", fcntl.LOCK_EX, directory)
        except BaseException:
            self.release()
            raise

    def _take(self, path: Path, kind: int, directory: Path) -> None:
        try:
            held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise _refused(directory, error) from error
        self._held.append(held)
        try:
            fcntl.flock(held, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # a file system without locks: whole files and no-clobber links still hold
            owner = os.pread(held, 200, 0).decode("ascii", "replace").strip()
            raise BusyError(
                f"'{directory}' is in use by ddgen {owner}"
                if owner
                else f"'{directory}' is in use by another run",
                "wait for it or choose another directory with --output",
                id="busy.directory",
            ) from None
        if kind == fcntl.LOCK_EX:
            os.ftruncate(held, 0)
            os.pwrite(held, f"pid {os.getpid()} since {time.strftime('%H:%M')}\n".encode(), 0)

    def release(self) -> None:
        for held in self._held:
            os.close(held)
        self._held.clear()


def _refused(directory: Path, error: OSError) -> OutputError:
    words, mend = files.reason(error)
    return OutputError(f"output directory '{directory}': {words}", mend, id="output.lock")


class Ledger:
    """ledger.jsonl: read once for the ids it knows, then appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: set[bytes] = set()
        self.bad_lines = 0
        self._torn = False
        try:
            with open(
                os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb"
            ) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                while line := file.readline(MAX_LINE):
                    self._read(line)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _refused(path, error) from error

    def _read(self, line: bytes) -> None:
        self._torn = not line.endswith(b"\n")
        try:
            record = json.loads(line)
            if record["schema"] != SCHEMA:
                raise ValueError("another version's")
            if record["type"] == "image":
                self.ids.add(bytes.fromhex(record["id"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            self.bad_lines += 1

    def __contains__(self, id: str) -> bool:
        return bytes.fromhex(id) in self.ids

    def append(self, id: str, file: str, **more: object) -> None:
        """Add a finished picture, in a single write.

        Raises:
            OutputError: the system refuses.
        """
        self._write({"schema": SCHEMA, "type": "image", "id": id, "file": file, **more})
        self.ids.add(bytes.fromhex(id))

    def drop(self, id: str, score: float) -> None:
        """Add a picture that was made and not kept, with its score.

        Raises:
            OutputError: the system refuses.
        """
        self._write({"schema": SCHEMA, "type": "dropped", "id": id, "score": score})

    def _write(self, record: dict[str, object]) -> None:
        data = (b"\n" if self._torn else b"") + json.dumps(record).encode() + b"\n"
        self._torn = False
        try:
            descriptor = os.open(
                self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
            )
            try:
                if os.write(descriptor, data) != len(data):
                    self._torn = True
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _refused(self.path, error) from error


@dataclass
class FailedList:
    """failed.jsonl: gathered under another name, put in place when the run ends, taken away when nothing
    failed.
    """

    path: Path
    count: int = 0
    _file: IO[str] | None = field(default=None, repr=False)

    @property
    def _gathered(self) -> Path:
        return self.path.with_name(f".{self.path.name}.part")

    def add(self, record: dict[str, object]) -> None:
        """Add a job as a line that a prompt file may hold."""
        self._write(json.dumps(record, ensure_ascii=True))

    def add_comment(self, text: str) -> None:
        """Add what was never a job: a comment line for the reader to mend."""
        self._write(
            "# " + text.encode("ascii", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
        )

    def _write(self, line: str) -> None:
        self.count += 1
        try:
            if self._file is None:
                self._file = open(self._gathered, "w", encoding="ascii")  # noqa: SIM115 (closed in `finish`)
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise _refused(self.path, error) from error

    def finish(self) -> None:
        """Put the list in place.

        Raises:
            OutputError: the system refuses.
        """
        try:
            if self._file is not None:
                os.fsync(self._file.fileno())
                self._file.close()
                self._file = None
                os.replace(self._gathered, self.path)
            elif self.count == 0:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise _refused(self.path, error) from error


def run_seed(directory: Path, drawn: int) -> int:
    """Return the seed of the batch in a directory: the one drawn first, by whichever run or shard came first.

    Raises:
        InputError: run.json is damaged.
        OutputError: it cannot be written.
    """
    path = directory / "run.json"
    try:
        files.publish(path, json.dumps({"schema": SCHEMA, "seed": drawn}).encode() + b"\n")
    except FileExistsError:
        pass
    try:
        seed = json.loads(path.read_bytes())["seed"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        seed = None
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"'{path}' holds no seed", "remove it, or give --seed", id="input.run")
    return seed


def _refused(path: Path, error: OSError) -> OutputError:
    words, mend = files.reason(error)
    return OutputError(f"'{path}': {words}", mend, id="output.ledger")
