"""Lock files: one process at a time. A process that ends, killed or not, gives its lock up."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

UNSUPPORTED_ERRNOS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # what file systems without locks say
POLL_SECONDS = 0.5


@contextmanager
def wait_for_lock(path: Path, awaited: str) -> Iterator[None]:
    """Hold a lock file in the body; while another process holds it, tell so in one line and wait.

    Where the file system has no locks, the file's existence is the lock. It outlives a process that was killed on
    another machine and has to be removed by hand then, so the line names it.

    Args:
        path: the lock file, which goes away after the body; its folder exists.
        awaited: what the other process does, for that line.
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
    """Hold a lock file in the body unless another process does; yields whether the body may go ahead.

    It may where the file system has no locks, too: a lock that outlives its process would stop all later ones.
    """
    lock = FileLock(path, fallback_to_soft=False)
    free = _try_acquire(lock)
    if not free:
        yield free is None
        return
    with _release_after(lock):
        yield True


def _try_acquire(lock: BaseFileLock) -> bool | None:
    """Whether the lock was free and is held now; None where the file system has no such locks."""
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
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: whoever has it open sees that and starts over
        lock.release()
