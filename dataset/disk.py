"""Detect a full disk or quota, and report it the same way for all libraries."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli import DISK_FULL_ERRNOS, UserError, disk_error_message

PROBE_BYTES = 2**20


class DiskFullError(OSError):
    """A file can't be written: disk or quota full, or file size limit exceeded. The message names the file."""

    def __init__(self, target: str | Path, number: int = errno.ENOSPC):
        super().__init__(number, "disk full", str(target))

    def __str__(self) -> str:
        return disk_error_message(self)


@contextmanager
def reraise_disk_full(target: Path) -> Iterator[None]:
    """Re-raise exceptions of the body as DiskFullError, naming the target, if the disk is full.

    Libraries raise different types (torch a RuntimeError, NumPy an OSError without errno), so this checks the disk.
    """
    try:
        yield
    except (DiskFullError, UserError):
        raise
    except Exception as error:
        if getattr(error, "errno", None) in DISK_FULL_ERRNOS or is_disk_full(target.parent):
            raise DiskFullError(target, getattr(error, "errno", None) or errno.ENOSPC) from error
        raise


def is_disk_full(folder: Path) -> bool:
    """Whether writing 1 MiB to a folder fails for lack of space."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            left = PROBE_BYTES
            while left:  # a partial write may succeed before the error is raised
                left -= probe.write(bytes(left)) or 0
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno in DISK_FULL_ERRNOS
    return False
