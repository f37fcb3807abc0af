"""What a warm worker must have in common with a call to stand in for its process, and where its socket lies.

A call that a worker takes must end as if it had run by itself. Whatever a process takes from its surroundings
and cannot be handed over must therefore be equal: the program, its Python and where both are installed, the
user and his groups, the namespaces, the processors, and the variables that libraries read while they are
imported. The socket is named by all that, so another kind of call does not even find it; the worker compares
it once more, word for word.

The directory is the user's own and closed to others, or it is not used. Imports next to nothing: every call
of a picture command passes here.
"""

import os
import stat
import sys

PROTOCOL = 1
READ_AT_IMPORT = (
    "ATEN", "BLIS_", "C10_", "CUBLAS", "CUDA", "CUDNN", "DNNL_", "GLIBC_", "GOMP_", "HF_", "HIP", "HUGGINGFACE",
    "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "MKL", "NPY_", "NUMPY_", "NVIDIA", "OMP_", "ONEDNN", "OPENBLAS",
    "PYTHON", "PYTORCH", "RAYON", "ROCR_", "TOKENIZERS", "TORCH", "TRANSFORMERS", "TYPER", "TZ", "_TYPER",
)  # fmt: skip
_STATUS = ("Uid:", "Gid:", "Groups:", "CapEff:", "NoNewPrivs:", "Seccomp:", "Cpus_allowed:")
_SPACES = ("mnt", "net", "pid", "user", "ipc", "uts")

_first: dict[str, str] = {}


def remember_environment() -> None:
    """Keep the environment as the caller gave it; commands and libraries change their own."""
    _first.update(os.environ)


def environment() -> dict[str, str]:
    """Return the environment that the caller gave."""
    return dict(_first or os.environ)


def possible() -> bool:
    """Tell whether this system has what a worker is made of: /proc, handles of processes, a safe fork."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open") and os.path.isdir("/proc/self/ns")


def directory() -> str:
    """Return where the user's sockets lie, whether it exists or not."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given.startswith("/") and len(given) < 80:  # a socket's path ends at 107 bytes
        return f"{given}/ddgen"
    return f"/tmp/ddgen-{os.geteuid()}"


def is_private(path: str) -> bool:
    """Tell whether a directory is there, is this user's, and is closed to everybody else."""
    try:
        state = os.lstat(path)
    except OSError:
        return False
    mine = stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid()
    return mine and not stat.S_IMODE(state.st_mode) & 0o077


def likeness() -> list[str]:
    """Return all that must be equal, in words.

    Raises:
        OSError: the system does not tell.
    """
    from ddgen import __file__ as package
    from ddgen import __version__

    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        standing = [" ".join(line.split()) for line in lines if line.startswith(_STATUS)]
    root = os.stat("/")
    return [
        f"protocol {PROTOCOL}",
        f"ddgen {__version__} {package}",
        f"Python {sys.version} {sys.executable} {sys.prefix}",
        f"flags {sys.flags.optimize} {sys.flags.dev_mode} {sys.flags.utf8_mode} {sys.flags.hash_randomization}",
        f"options {sys.warnoptions} {sys._xoptions}",
        *(f"path {place}" for place in sys.path),
        f"root {root.st_dev} {root.st_ino}",
        *(os.readlink(f"/proc/self/ns/{name}") for name in _SPACES),
        *standing,
        *(f"{name}={os.environ[name]}" for name in sorted(os.environ) if name.startswith(READ_AT_IMPORT)),
    ]


def name(words: list[str]) -> str:
    """Return a short name for a likeness; the words themselves are compared when two have met."""
    from zlib import crc32

    return f"{crc32(os.fsencode(chr(0).join(words))):08x}"
