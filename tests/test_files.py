"""Writing files: whole or not at all, whoever kills the writer and whatever the system refuses."""

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ddgen.errors import OutputError
from ddgen.io import files

OLD, NEW = b"old" * 1000, b"new" * 2000
CAMPAIGN = Path(__file__).with_name("campaign_files.py")


def campaign(writer: str, kills: int, directory: Path) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN), writer, str(kills), str(directory)],
        capture_output=True,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout)


def test_kill_minus_nine_tears_nothing(tmp_path: Path) -> None:
    found = campaign("publish", 150, tmp_path)
    assert found["files"] > 50
    assert (found["torn"], found["lost"], found["left"]) == (0, 0, 0), found


def test_the_same_campaign_finds_a_naive_writer_out(tmp_path: Path) -> None:
    found = campaign("naive", 60, tmp_path)
    assert found["torn"] >= 12, found


class Faulty:
    """The module `os` whose call number `at` fails: that one alone, or from then on."""

    CALLS = ("open", "write", "fsync", "link", "replace", "rename", "makedirs")

    def __init__(self, at: int, code: int, *, lasting: bool) -> None:
        self.at, self.code, self.lasting, self.calls = at, code, lasting, 0

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        if name not in self.CALLS:
            return real

        def call(*arguments: object, **options: object) -> object:
            self.calls += 1
            if self.calls == self.at or (self.lasting and self.calls > self.at):
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **options)

        return call


CODES = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS, errno.EMFILE, errno.EPERM]


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize("force", [False, True], ids=["new file", "old file"])
def test_every_call_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, lasting: bool, force: bool
) -> None:
    for at in range(1, 40):
        directory = tmp_path / str(at)
        target = directory / "sub" / "a.png"
        if force:
            target.parent.mkdir(parents=True)
            target.write_bytes(OLD)
        faulty = Faulty(at, code, lasting=lasting)
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", faulty)
            try:
                files.publish(target, NEW, force=force)
                failed = False
            except OutputError as error:
                failed = True
                assert error.exit_code == 7 and error.hint and "'" in error.message
        there = target.read_bytes() if target.exists() else None
        left = list(directory.rglob("*.part")) if directory.exists() else []
        assert left == []
        assert there in (OLD if force else None, NEW), "whole, or as it was"
        if not failed:
            assert there == NEW
        if faulty.calls < at:
            return  # every call has had its turn
    raise AssertionError("there is no end of calls")


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(files.os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:7]))
    files.publish(tmp_path / "a", NEW)
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == NEW


def test_a_taken_name_is_never_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(OLD)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("a", "dangling"):
        with pytest.raises(FileExistsError):
            files.publish(tmp_path / name, NEW)
    assert (tmp_path / "a").read_bytes() == OLD and not (tmp_path / "nowhere").exists()
    files.publish(tmp_path / "a", NEW, force=True)
    assert (tmp_path / "a").read_bytes() == NEW


def test_without_links_a_taken_name_is_still_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*arguments: object, **options: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(files.os, "link", no_links)
    files.publish(tmp_path / "a", NEW)
    assert (tmp_path / "a").read_bytes() == NEW
    with pytest.raises(FileExistsError):
        files.publish(tmp_path / "a", OLD)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_writers_of_one_name_do_not_both_win(tmp_path: Path) -> None:
    for round in range(30):
        won: list[int] = []
        begin = threading.Barrier(4)

        def write(
            number: int, round: int = round, won: list[int] = won, begin: threading.Barrier = begin
        ) -> None:
            begin.wait()
            try:
                files.publish(tmp_path / str(round), bytes([number]) * 1000)
                won.append(number)
            except FileExistsError:
                pass

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and (tmp_path / str(round)).read_bytes() == bytes(won) * 1000


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        files.publish(tmp_path / "a", NEW)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_what_is_no_plain_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "null", "directory"):
        with pytest.raises(OutputError):
            files.publish(tmp_path / name, NEW, force=True)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and (tmp_path / "null").is_symlink()


def test_sweep_takes_what_is_dead_and_leaves_what_lives(tmp_path: Path) -> None:
    host = os.uname().nodename
    plain = "".join(c if c.isalnum() else "_" for c in host)[:32]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [
        f".ddgen-{plain}-{os.getpid()}-ab.part",
        f".ddgen-other-{dead.pid}-ab.part",
        "a.part",
        ".ddgen-x",
        "a.png",
    ]
    for name in (*kept, f".ddgen-{plain}-{dead.pid}-ab.part"):
        (tmp_path / name).touch()
    assert files.sweep(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    assert files.sweep(tmp_path, now=os.stat(tmp_path / "a.png").st_mtime + 2 * files.DAY) == 2
    assert files.sweep(tmp_path / "nowhere") == 0


def test_probe_leaves_nothing_and_makes_nothing(tmp_path: Path) -> None:
    files.probe_directory(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for wrong, words in (("file", "is a file"), ("file/x", "is a file"), ("dangling", "is a dangling link")):
        with pytest.raises(OutputError, match=words):
            files.probe_directory(tmp_path / wrong)


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    path.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], capture_output=True
        ).returncode
    ):
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_read_only_disk_is_found_by_trying(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 * 1024) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(OutputError, match="output directory '.*/new': read-only file system"):
            files.probe_directory(disk / "new")


def test_a_full_disk_keeps_what_is_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256 * 1024) as disk:
        files.publish(disk / "old", OLD)
        made = []
        with pytest.raises(OutputError) as told:
            for number in range(100):
                made.append(files.publish(disk / str(number), bytes([number]) * 20_000))
        assert (told.value.exit_code, told.value.id) == (
            7,
            "output.enospc",
        ) and "no space left" in told.value.message
        assert 5 < len(made) < 14
        with pytest.raises(OutputError):
            files.publish(disk / "old", b"x" * 100_000, force=True)
        assert (disk / "old").read_bytes() == OLD
        assert all(path.read_bytes() == bytes([number]) * 20_000 for number, path in enumerate(made))
        assert sorted(path.name for path in disk.iterdir()) == sorted(["old", *map(str, range(len(made)))])
