"""What every script of the toolkit shares at its command line: exit codes, one-line errors, argument types."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

EXIT_OK = 0
EXIT_GATE_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal with work left, a job wrapper requeues on it


class UserError(Exception):
    """Input or usage that is wrong in a way the user can mend; the message says what is wrong and what to do."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one line on a wrong flag instead of the whole usage text."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str):
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (--help lists the flags)\n")


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main function and exit with its code; UserError and OSError become one line and exit code 2."""
    try:
        code = main()
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
        code = EXIT_USAGE
    except BrokenPipeError:
        code = EXIT_OK  # the reader (head, less) has seen enough
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        code = EXIT_USAGE
    sys.exit(code or EXIT_OK)


class StopSignal:
    """Remembers SIGTERM and SIGUSR1 (SLURM's warning before pre-emption), so that a loop ends between two items.

    Use as a context manager; truthy once a signal has come.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self):
        self._previous = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self):
        return self.received is not None

    def _remember(self, number, frame):
        self.received = signal.Signals(number)


def positive_int(text: str) -> int:
    """argparse type: an integer of 1 or more."""
    value = _number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def non_negative_int(text: str) -> int:
    """argparse type: an integer of 0 or more."""
    value = _number(text, int)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    value = _number(text, float)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def fraction(text: str) -> float:
    """argparse type: a number in 0..1."""
    value = _number(text, float)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not within 0..1")
    return value


def _number(text: str, kind: type):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of type {kind.__name__}") from None


def existing_dir(path: str | Path, what: str) -> Path:
    """The path when it is a folder; raises UserError naming `what` otherwise."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{what}: there is no folder {path}")
    return path


def existing_file(path: str | Path, what: str) -> Path:
    """The path when it is a file; raises UserError naming `what` otherwise."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what}: there is no file {path}")
    return path


def resolve_device(name: str):
    """The torch.device of `name` ('auto', 'cpu', 'cuda', 'cuda:1', ...); raises UserError when it can't be had."""
    import torch  # scripts that need no device start without torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device
