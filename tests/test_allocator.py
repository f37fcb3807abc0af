"""Freed memory stays in the process, or leaves it: seen in page faults and in what it holds, in a process of its own."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import sys

from ddgen.app.allocator import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("not glibc")
faults = []
for _ in range(16):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * 80_000_000 for _ in range(2)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(max(faults[-3:]))
"""


HOLES = """
import ctypes
import sys

from ddgen.app.allocator import give_back_freed_memory, keep_freed_memory

if sys.argv[1] != "as it is":
    keep_freed_memory()  # as an earlier call of this process may have
    if not give_back_freed_memory():
        sys.exit("not glibc")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def taken(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block

libc.free(taken(30_000_000))
held = []
for _ in range(20):  # each with a small one behind it
    held.append(taken(8_000_000))
    taken(100_000)
for block in held:
    libc.free(block)
resident = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(resident.split()[1])
"""


def faults(way: str) -> int:
    return told(SCRIPT, way)


def told(script: str, way: str) -> int:
    ran = subprocess.run([sys.executable, "-c", script, way], capture_output=True, text=True, timeout=120)
    if "not glibc" in ran.stderr:
        pytest.skip("this C library has no mallopt")
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


def test_blocks_are_reused() -> None:
    """160 MB are 39,000 pages: touched anew in every round as it is, never again once the heap is kept."""
    kept = faults("keep")
    assert kept < 2_000
    if sys.platform == "linux":
        assert faults("as it is") > 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_blocks_leave_holes_that_are_given_back() -> None:
    """160 MB in blocks that a small one follows: held after they are freed as it is, gone with the setting."""
    given = told(HOLES, "give back")
    assert told(HOLES, "as it is") - given > 140_000  # KiB
