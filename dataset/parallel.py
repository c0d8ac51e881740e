"""Map a function over items in threads, with bounded prefetching."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

PREFETCH = 4  # items per thread in flight, so that one slow item does not block the other threads


def threaded_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Like map(function, items), computed in threads.

    Holds about PREFETCH results per thread in memory. An exception is raised when its item's turn comes. Then, and if
    the caller stops iterating, queued items are cancelled.
    """
    workers = max(workers, 1)
    futures: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                futures.append(pool.submit(function, item))
                if len(futures) > PREFETCH * workers:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
