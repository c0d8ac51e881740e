"""Map a function over items in threads or processes, with bounded prefetching."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from cli import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

PREFETCH = 4  # items per worker in flight, so that one slow item does not block the others


def threaded_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Like map(function, items), computed in threads.

    Holds about PREFETCH results per thread in memory. An exception is raised when its item's turn comes. Then, and if
    the caller stops iterating, queued items are cancelled.
    """
    return _map(ThreadPoolExecutor(max(workers, 1)), function, items, max(workers, 1))


def process_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Like threaded_map(), in processes; `function`, items and results are pickled.

    Signals are left to this process: the workers finish their items. Raises UserError if a worker was killed.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _leave_signals_to_parent)
    try:
        yield from _map(pool, function, items, workers)
    except BrokenProcessPool:
        raise UserError("a worker process was killed, perhaps for lack of memory: use fewer workers") from None


def _leave_signals_to_parent() -> None:
    """Ignore the signals that a terminal or SLURM sends to all processes; end with the parent if that is killed."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _map(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    futures: deque[Future[Result]] = deque()
    with executor as pool:
        try:
            for item in items:
                futures.append(pool.submit(function, item))
                if len(futures) > PREFETCH * workers:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
