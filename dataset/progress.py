"""Progress of long loops: a bar on a terminal, plain lines in a log."""

import time

from tqdm import tqdm

PROGRESS_SECONDS = 30.0  # between log lines


class Progress:
    """A tqdm bar on a terminal; a plain line every 30 seconds in a log.

    Args:
        total: number of frames.
        done: frames that an earlier run finished.
        doing: description, printed before the numbers.
    """

    def __init__(self, total: int, done: int = 0, doing: str = ""):
        # disable=None: no bar without a terminal
        self.bar = tqdm(total=total, initial=done, unit="frame", desc=doing or None, disable=None)
        self.total, self.done, self.initial = total, done, done
        self.doing = f"{doing}: " if doing else ""
        self.start = self.last = time.monotonic()

    def update(self, frames: int) -> None:
        """Advance by a number of finished frames."""
        self.done += frames
        self.bar.update(frames)
        now = time.monotonic()
        if self.bar.disable and now - self.last > PROGRESS_SECONDS:
            self.last = now
            rate = (self.done - self.initial) / (now - self.start)
            print(f"{self.doing}{self.done}/{self.total} frames, {rate:.2f} frames/s", flush=True)

    def close(self) -> None:
        """Close the bar."""
        self.bar.close()
