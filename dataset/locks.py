"""Lock files for mutual exclusion between processes. A lock is released when its process ends, even if killed."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

UNSUPPORTED_ERRNOS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # from file systems without locks
POLL_SECONDS = 0.5


@contextmanager
def wait_for_lock(path: Path, awaited: str) -> Iterator[None]:
    """Hold a lock file in the body; if another process holds it, print one line and wait.

    On file systems without locks, the file's existence is the lock. If its process is killed on another machine, the
    file must be removed by hand, so the line names it.

    Args:
        path: the lock file, removed after the body; its folder must exist.
        awaited: what the other process does, for the printed line.
    """
    lock: BaseFileLock = FileLock(path, fallback_to_soft=False)
    if (free := _try_acquire(lock)) is None:
        lock = SoftFileLock(path.with_name(f"{path.name}.soft"))
        free = _try_acquire(lock)
    if not free:
        print(f"waiting for another process, which {awaited} (lock file {lock.lock_file})", flush=True)
        lock.acquire(poll_interval=POLL_SECONDS)
    with _release_after(lock):
        yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Try to hold a lock file in the body; yields False if another process holds it.

    Yields True on file systems without locks: a lock file left by a killed process would block all later ones.
    """
    lock = FileLock(path, fallback_to_soft=False)
    free = _try_acquire(lock)
    if not free:
        yield free is None
        return
    with _release_after(lock):
        yield True


def _try_acquire(lock: BaseFileLock) -> bool | None:
    """Acquire the lock; False if another process holds it, None if the file system has no locks."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in UNSUPPORTED_ERRNOS:
            raise
        Path(lock.lock_file).unlink(missing_ok=True)
        return None
    return True


@contextmanager
def _release_after(lock: BaseFileLock) -> Iterator[None]:
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(
            missing_ok=True
        )  # while still held: a process that has it open notices and starts over
        lock.release()
