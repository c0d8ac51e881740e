"""How far a long loop has come: a bar on a terminal, a plain line now and then in a log."""

import time

from tqdm import tqdm

PROGRESS_SECONDS = 30.0  # between two lines in a log


class Progress:
    """A tqdm bar on a terminal, a plain line every half minute in a log.

    Args:
        total: frames of the loop.
        done: those that an earlier run has done.
        doing: what is done to them, before the numbers.
    """

    def __init__(self, total: int, done: int = 0, doing: str = ""):
        # disable=None: off where there is no terminal
        self.bar = tqdm(total=total, initial=done, unit="frame", desc=doing or None, disable=None)
        self.total, self.done, self.before = total, done, done
        self.doing = f"{doing}: " if doing else ""
        self.start = self.last = time.monotonic()

    def update(self, frames: int) -> None:
        """Count frames that are done."""
        self.done += frames
        self.bar.update(frames)
        now = time.monotonic()
        if self.bar.disable and now - self.last > PROGRESS_SECONDS:
            self.last = now
            rate = (self.done - self.before) / (now - self.start)
            print(f"{self.doing}{self.done}/{self.total} frames, {rate:.2f} frames/s", flush=True)

    def close(self) -> None:
        """End the bar."""
        self.bar.close()
