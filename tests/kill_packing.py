"""Run pack.py's main repeatedly and kill it at random times; runs as a separate process, see kill_training.py.

    python kill_packing.py CACHE_DIR KILLS flags of pack.py ...

Prints one line per kill, and the maximum disk space of the cache folder.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from kill_training import fork_script

import dataset.cache
import pack

SECONDS_A_FRAME = 0.1
LONGEST = 0.5  # maximum seconds until a kill


def slow(function):
    """Delay each call of a function."""

    def wrapped(*arguments):
        time.sleep(SECONDS_A_FRAME)
        return function(*arguments)

    return wrapped


def disk_use(folder: Path) -> int:
    """Disk usage in bytes of a folder that another process writes to."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def frames_packed(cache: Path) -> list[str]:
    return [path.read_text().strip() for path in sorted(cache.glob("*/packed.json"))]


def main() -> None:
    folder, kills, *flags = sys.argv[1:]
    cache = Path(folder)
    sys.argv = ["pack.py", *flags, "--cache-dir", folder, "--num-workers", "1"]
    dataset.cache.read_frame = slow(dataset.cache.read_frame)
    dataset.cache.SAVE_INTERVAL = 0.05
    moments, most = random.Random(1), 0
    for number in range(int(kills)):
        child, sent = fork_script(pack.main), moments.choice((signal.SIGKILL, signal.SIGTERM))
        end = time.monotonic() + moments.uniform(0.1, LONGEST)
        while time.monotonic() < end:
            most = max(most, disk_use(cache))
            time.sleep(0.01)
        if os.waitpid(child, os.WNOHANG)[0]:
            print("packing has ended before its last kill")
            break
        os.kill(child, sent)
        os.waitpid(child, 0)
        print(f"kill {number + 1}: {sent.name}, packed {frames_packed(cache)}", flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(fork_script(pack.main), 0)[1])
    print(f"most {max(most, disk_use(cache))}")
    sys.exit(code)


if __name__ == "__main__":
    main()
