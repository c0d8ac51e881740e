"""The host's memory while it trains or scores on its own processor."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h; see mallopt(3)
NEVER = 2**31 - 1  # bytes that would have to be free at the heap's end before they are given back


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free, for the next step's or frame's.

    By default each large tensor gets fresh pages, which the kernel has to clear, and gives them back when it is freed;
    without that a training step takes a tenth to a fifth less time, and Table IV's scoring half. PyTorch keeps a GPU's
    memory by itself. Does nothing with other C libraries.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
