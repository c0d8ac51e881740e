"""Threads that work a little ahead of the loop that takes their results."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

PREFETCH = 4  # items a thread begun before their turn: one that takes long holds up no other thread


def threaded_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """The function's results in the order of the items, computed in threads.

    Memory holds PREFETCH results a thread, however many items there are. An item's exception is raised in its turn; what
    is only waiting then is left out, as it is when the caller stops taking results.
    """
    workers = max(workers, 1)
    begun: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                begun.append(pool.submit(function, item))
                if len(begun) > PREFETCH * workers:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
