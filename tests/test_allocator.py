"""Freed memory stays in the process: seen in page faults, in a process of its own."""

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


def faults(way: str) -> int:
    ran = subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, timeout=120)
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
