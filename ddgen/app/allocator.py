"""What the C library does with memory that is freed: keep it, which is quick, or give it back, which is small.

glibc hands a large block back to the system when it is freed and asks for it anew at the next layer; the kernel
then clears each page at first touch. That is 3 GB a step for an SD1.5-shaped U-Net at 512 x 512 (an eighth of the
processor time) and 10 GB for its autoencoder (more than a quarter). The price of keeping is a heap with holes:
while decoding, the peak grew from 1.9 to 2.3 GB. Left to itself glibc does something between, and learns with
every large block that is freed to keep blocks of that size: with `--offload blocks` that cost 260 MB of 3.2 GB.
"""

import ctypes

# From glibc's malloc.h. The argument of mallopt is an int: 2 GiB is the most that can be asked for.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
KEEP = 2**31 - 1
SMALL = 256 * 1024  # bytes; maps and weights that count are larger
MAPPED = 65536  # blocks; glibc's own limit


def keep_freed_memory() -> bool:
    """Tell the C library to reuse freed blocks of any size; return whether it understood (glibc does)."""
    return _told((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEEP))


def give_back_freed_memory() -> bool:
    """Tell the C library to give every larger block back as soon as it is freed; return whether it
    understood."""
    return _told((M_MMAP_MAX, MAPPED), (M_MMAP_THRESHOLD, SMALL), (M_TRIM_THRESHOLD, SMALL))


def _told(*settings: tuple[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([bool(mallopt(name, value)) for name, value in settings])
