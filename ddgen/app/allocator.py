"""Keep freed memory in the process, so that a step does not pay for the same pages again and again.

glibc hands every large block back to the system when it is freed and asks for it anew at the next layer; the
kernel then clears each page at first touch. That is 3 GB a step for an SD1.5-shaped U-Net at 512 x 512 (an
eighth of the processor time) and 10 GB for its autoencoder (more than a quarter).
The price is a heap with holes: while decoding, the peak grew from 1.9 to 2.3 GB.
"""

import ctypes

# From glibc's malloc.h. The argument of mallopt is an int: 2 GiB is the most that can be asked for.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
KEEP = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell the C library to reuse freed blocks of any size; return whether it understood (glibc does)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, KEEP))
