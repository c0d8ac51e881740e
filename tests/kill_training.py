"""Run train.py's main() repeatedly, each time from its last checkpoint, and kill it at random moments.

    python kill_training.py CHECKPOINT_DIR KILLS flags of train.py ...

This is a separate process, because it forks children, which saves importing torch again and is not allowed after a
backward pass. Prints one line per kill; every checkpoint must load after each.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import train
from trainer.checkpoint import load_checkpoint

MAX_DELAY = 1.8  # maximum delay of a kill, in seconds


def fork_script(script_main: Callable[[], int]) -> int:
    """Run a script's main function in a forked child; returns its process id."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = script_main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def main() -> None:
    checkpoints, kills, *flags = sys.argv[1:]
    sys.argv = ["train.py", *flags, "--resume", "auto"]
    rng = random.Random(0)
    for number in range(int(kills)):
        child, signal_sent = fork_script(train.main), rng.choice((signal.SIGKILL, signal.SIGTERM))
        time.sleep(rng.uniform(0.2, MAX_DELAY))
        if os.waitpid(child, os.WNOHANG)[0]:
            print("the run ended before the last kill")
            break
        os.kill(child, signal_sent)
        os.waitpid(child, 0)
        named = [path for path in Path(checkpoints).glob("*.pt") if not path.name.startswith(".")]
        steps = {path.name: load_checkpoint(path)["step"] for path in named}
        print(f"kill {number + 1}: {signal_sent.name}, checkpoints {steps}", flush=True)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(fork_script(train.main), 0)[1]))


if __name__ == "__main__":
    main()
