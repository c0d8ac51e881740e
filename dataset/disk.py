"""A disk or a quota that is full, told alike whichever library meets it."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli import DISK_FULL_ERRNOS, UserError, disk_error_message

PROBE_BYTES = 2**20


class DiskFullError(OSError):
    """A file can't be written: its disk or a quota is full, or files may not grow so large. The message names it."""

    def __init__(self, target: str | Path, number: int = errno.ENOSPC):
        super().__init__(number, "disk full", str(target))

    def __str__(self) -> str:
        return disk_error_message(self)


@contextmanager
def reraise_disk_full(target: Path) -> Iterator[None]:
    """An exception of the body that a full disk may have caused becomes a DiskFullError that names the target.

    Libraries raise what they like (torch a RuntimeError, NumPy an OSError without a number), so the disk is asked.
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
    """Whether a megabyte can't be written to a folder for lack of space."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            left = PROBE_BYTES
            while left:  # what just fits is written before the error comes
                left -= probe.write(bytes(left)) or 0
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno in DISK_FULL_ERRNOS
    return False
