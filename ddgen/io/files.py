"""The one place that writes files. A final name holds a whole file or nothing, whatever dies meanwhile.

    temp beside the target (O_EXCL) -> write, fsync -> link, or rename if forced -> fsync of the directory

A link cannot replace a file, so two runs cannot overwrite each other's pictures; where a file system has no
links, a rename after a look takes its place. Temps are called `.ddgen-HOST-PID-RANDOM.part`; those whose
process is gone are swept by the next run.
"""

import errno
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from ddgen.errors import OutputError

DAY = 86_400  # seconds
Data = bytes | Iterable[bytes | memoryview]
_PREFIX, _SUFFIX = ".ddgen-", ".part"
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}
_REASONS = {
    errno.ENOSPC: ("no space left", "free some space or choose another place with --output"),
    errno.EDQUOT: ("disk quota exceeded", "free some space or choose another place with --output"),
    errno.EFBIG: ("over the file size limit", "raise it with 'ulimit -f unlimited'"),
    errno.EROFS: ("read-only file system", "choose another with --output"),
    errno.EACCES: ("permission denied", "choose another with --output"),
    errno.EPERM: ("permission denied", "choose another with --output"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one with --output"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", "choose another with --output"),
    errno.EISDIR: ("is a directory", "choose another name with --output"),
    errno.ELOOP: ("too many symbolic links", "choose another with --output"),
    errno.EMFILE: ("too many open files", "raise the limit with 'ulimit -n 4096'"),
}
_temps: set[str] = set()


def publish(path: str | os.PathLike[str], data: Data, *, force: bool = False) -> Path:
    """Write `data`, whole or in pieces, under `path`, making the directories above it; return the path.

    Raises:
        FileExistsError: the name is taken and `force` is not given.
        OutputError: anything else that the system refuses; no existing file is changed and no temp is left.
    """
    target = Path(path)
    if force:
        refuse_special(target)
    directory = target.parent
    try:
        _make_directories(directory)
        temp = _write_temp(directory, data)
    except OSError as error:
        raise _refused(f"'{target}'", error) from error
    try:
        if force:
            os.replace(temp, target)
        else:
            _link(temp, target)
    except FileExistsError:
        raise
    except OSError as error:
        raise _refused(f"'{target}'", error) from error
    finally:
        _discard(temp)
    _sync_directory(directory)
    return target


def exists(path: str | os.PathLike[str]) -> bool:
    """Tell whether the name is taken, be it by a dangling link."""
    return os.path.lexists(path)


def refuse_special(path: Path) -> None:
    """Refuse to replace what is no plain file: renaming over /dev/null would destroy it.

    Raises:
        OutputError: the name belongs to a directory, a device, a pipe or a socket.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        raise OutputError(
            f"'{path}' is a directory", f"use --output '{path}/' to write into it", id="output.directory"
        )
    if not stat.S_ISREG(mode):
        raise OutputError(
            f"'{path}' is not a plain file",
            "use '--output -' to write to standard output",
            id="output.special",
        )


def probe_directory(path: str | os.PathLike[str]) -> None:
    """Prove that files can be made in a directory, or in the nearest one above that exists. Leaves nothing.

    Raises:
        OutputError: it is no directory, or the system refuses.
    """
    wanted = Path(path)
    nearest = wanted
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    what = f"output directory '{wanted}'"
    if not nearest.is_dir():
        kind = "is a dangling link" if nearest.is_symlink() else "is a file"
        raise OutputError(
            f"{what}: '{nearest}' {kind}", "choose another with --output", id="output.not-directory"
        )
    try:
        _discard(_write_temp(nearest, b"ddgen"))
    except OSError as error:
        raise _refused(what, error) from error


def sweep(directory: str | os.PathLike[str], *, now: float | None = None) -> int:
    """Remove temps whose process on this host is gone, or that are older than a day; return how many."""
    now = time.time() if now is None else now
    host = _host()
    removed = 0
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return 0
    for entry in entries:
        if not (entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX)):
            continue
        owner, _, rest = entry.name[len(_PREFIX) : -len(_SUFFIX)].rpartition("-")[0].rpartition("-")
        try:
            old = now - entry.stat(follow_symlinks=False).st_mtime > DAY
            if old or (owner == host and rest.isdigit() and not _alive(int(rest))):
                os.unlink(entry.path)
                removed += 1
        except OSError:
            continue  # another run was faster, or it is not ours to remove
    return removed


def remove_temps() -> None:
    """Remove the temp in hand: for a signal handler that is about to end the process."""
    for temp in list(_temps):
        _discard(temp)


def reason(error: OSError) -> tuple[str, str]:
    """Return what the system said in a few lower-case words, and a mend."""
    known = _REASONS.get(error.errno or 0)
    if known is not None:
        return known
    words = os.strerror(error.errno) if error.errno else str(error)
    return words[:1].lower() + words[1:], "choose another place with --output"


def _refused(what: str, error: OSError) -> OutputError:
    words, mend = reason(error)
    name = errno.errorcode.get(error.errno or 0, "unknown").lower()
    return OutputError(f"{what}: {words}", mend, id=f"output.{name}")


def _make_directories(directory: Path) -> None:
    missing = []
    above = directory
    while not above.exists() and above != above.parent:
        missing.append(above)
        above = above.parent
    os.makedirs(directory, exist_ok=True)
    for made in missing:
        _sync_directory(made.parent)


def _write_temp(directory: Path, data: Data) -> str:
    temp = os.path.join(directory, f"{_PREFIX}{_host()}-{os.getpid()}-{os.urandom(4).hex()}{_SUFFIX}")
    _temps.add(temp)
    try:
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            for piece in (data,) if isinstance(data, bytes) else data:
                rest = memoryview(piece)
                while rest:
                    written = os.write(descriptor, rest)
                    if written == 0:
                        raise OSError(errno.EIO, "nothing was written")
                    rest = rest[written:]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        _discard(temp)
        raise
    return temp


def _link(temp: str, target: Path) -> None:
    try:
        os.link(temp, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target)) from error
        os.rename(temp, target)


def _sync_directory(directory: Path) -> None:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NO_DIRECTORY_SYNC:
            return
        raise _refused(f"'{directory}'", error) from error
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise _refused(f"'{directory}'", error) from error
    finally:
        os.close(descriptor)


def _discard(temp: str) -> None:
    try:
        os.unlink(temp)
    except OSError:
        pass  # published by a rename, or gone with its directory; a later sweep takes what is left
    _temps.discard(temp)


def _host() -> str:
    return "".join(c if c.isalnum() else "_" for c in os.uname().nodename)[:32] or "host"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
