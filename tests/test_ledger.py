"""The papers of a batch: lock, ledger, list of failures, run seed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddgen.app.ledger import FailedList, Ledger, Lock, Shard, run_seed
from ddgen.errors import BusyError, InputError, OutputError

ID = "0123456789abcdef" * 2


def test_ledger_is_appended_to_and_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ID not in ledger
    ledger.append(ID, "a.png", seconds=1.5)
    assert ID in ledger and ID in Ledger(tmp_path / "ledger.jsonl")
    record = json.loads((tmp_path / "ledger.jsonl").read_text())
    assert record == {"schema": "ddgen/1", "type": "image", "id": ID, "file": "a.png", "seconds": 1.5}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "3",
        '{"type": "image"}',
        '{"schema": "ddgen/2", "type": "image", "id": "%s"}' % ID,
        '{"schema": "ddgen/1", "type": "image", "id": "zz"}',
        '{"schema": "ddgen/1", "type": "image", "id": 3}',
        "\xff\xfe",
        "[" * 50_000,
    ],
)
def test_a_line_that_is_torn_or_strange_is_counted_and_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).append(ID, "a.png")
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    ledger = Ledger(path)
    assert ID in ledger and ledger.bad_lines == 1


def test_the_line_after_a_torn_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"schema": "ddg')
    ledger = Ledger(path)
    ledger.append(ID, "a.png")
    again = Ledger(path)
    assert ID in again and again.bad_lines == 1


def test_full_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="too many symbolic links"):
        Ledger(tmp_path / "ledger.jsonl").append(ID, "a.png")


def test_failures_are_put_in_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "failed.jsonl"
    path.write_text("old\n")
    failures = FailedList(path)
    failures.add({"prompt": "é\n"})
    failures.add_comment("a\nb\rc é")
    assert path.read_text() == "old\n"
    failures.finish()
    assert path.read_text() == '{"prompt": "\\u00e9\\n"}\n# a\\nb\\rc \\xe9\n'
    FailedList(path).finish()
    assert not path.exists() and not list(tmp_path.glob(".*"))


HOLD = """
import sys
from pathlib import Path
from ddgen.app.ledger import Lock, Shard
lock = Lock(Path(sys.argv[1]), Shard(int(sys.argv[2]), int(sys.argv[3])))
print("held", flush=True)
sys.stdin.read()
"""


def hold(directory: Path, index: int = 1, count: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(directory), str(index), str(count)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def release(holder: subprocess.Popen[str], *, kill: bool = False) -> None:
    if kill:
        holder.kill()
    holder.communicate()


def test_two_runs_exclude_each_other_and_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    with pytest.raises(BusyError, match=rf"is in use by ddgen pid {holder.pid} since \d\d:\d\d"):
        Lock(tmp_path, Shard())
    with pytest.raises(BusyError):
        Lock(tmp_path, Shard(1, 2))
    release(holder, kill=True)
    Lock(tmp_path, Shard()).release()


def test_shards_run_beside_each_other(tmp_path: Path) -> None:
    holder = hold(tmp_path, 1, 2)
    Lock(tmp_path, Shard(2, 2)).release()
    for taken in (Shard(1, 2), Shard()):
        with pytest.raises(BusyError):
            Lock(tmp_path, taken)
    release(holder)


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("keep")
    (tmp_path / ".ddgen.lock").symlink_to(target)
    with pytest.raises(OutputError):
        Lock(tmp_path, Shard())
    assert target.read_text() == "keep"


def test_run_seed_is_that_of_whoever_came_first(tmp_path: Path) -> None:
    assert run_seed(tmp_path, 5) == run_seed(tmp_path, 6) == 5
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="holds no seed; remove it, or give --seed"):
        run_seed(tmp_path, 7)


def test_descriptors_do_not_leak(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        Lock(tmp_path, Shard(1, 3)).release()
        Ledger(tmp_path / "ledger.jsonl").append(ID, "a.png")
    assert len(os.listdir("/proc/self/fd")) == before
