"""Command-line code shared by all scripts: exit codes, one-line errors, signals, flags and argument types."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import inspect
import io
import os
import re
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

if TYPE_CHECKING:
    import torch  # imported only where needed, so that scripts without a device start quickly

Number = TypeVar("Number", int, float)

EXIT_OK = 0
EXIT_GATE_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal with work left; job wrappers requeue on it
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota exceeded, ulimit -f exceeded
PROJECT = "indoor-student"  # name in pyproject.toml
CHECKOUT = Path(__file__).resolve().parent
# torch raises RuntimeError: of the CPU's allocator, of the GPU's, and of the GPU's libraries
TORCH_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|_ALLOC_FAILED")
TRACEBACK_VARIABLE = "STUDENT_TRACEBACK"  # set this environment variable to 1 to see the traceback of an error


class UserError(Exception):
    """Wrong input or usage that the user can fix; the message says what is wrong and what to do."""


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that reports a wrong flag in one line instead of the whole usage text."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Print the message as one line and exit."""
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (--help lists the flags)\n")


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main function and exit with its return value.

    UserError, OSError and out-of-memory errors are printed as one line with exit code 2, signals with exit code 75.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller closed it (>&-)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may not fit the terminal's encoding
    try:
        require_own_checkout(Path(inspect.getfile(main)))
        with stop_on_signals():
            code = main()
        sys.stdout.flush()  # here its errors are caught; at interpreter exit they would not be
    except KeyboardInterrupt as stopped:
        print(f"{Path(sys.argv[0]).name}: stopped by {stopped or 'SIGINT'}; finished files are kept", file=sys.stderr)
        code = EXIT_STOPPED
    except UserError as error:
        code = report_error(error)
    except BrokenPipeError:
        flush_or_discard_output()
        code = EXIT_OK  # the reader (head, less) has quit
    except OSError as error:  # full disk, missing permission
        unnamed = error.errno in DISK_FULL_ERRNOS and error.filename is None
        if flush_or_discard_output("\n" if unnamed else "") and unnamed:
            error.filename = "standard output"
        code = report_error(error)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not TORCH_OUT_OF_MEMORY.search(str(error)):
            raise
        details = textwrap.shorten(str(error), 200, placeholder="...") or "no details"
        code = report_error(UserError(f"out of memory ({details}): use smaller batches or raise the limit"))
    sys.exit(code or EXIT_OK)


def flush_or_discard_output(text: str = "") -> bool:
    """Print a text and flush standard output; if that fails, discard all further output and return True."""
    try:
        print(text, end="", flush=True)
    except OSError:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        return True
    return False


def report_error(error: BaseException) -> int:
    """Print an error as one line on stderr and return EXIT_USAGE; TRACEBACK_VARIABLE=1 prints the traceback first."""
    if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(error)
    text = str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        text = disk_error_message(error)
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(text.split())}", file=sys.stderr)
    return EXIT_USAGE


def disk_error_message(error: OSError) -> str:
    """The message for an OSError with one of DISK_FULL_ERRNOS."""
    cause = "file size limit exceeded (ulimit -f)" if error.errno == errno.EFBIG else "disk full"
    return f"can't write {error.filename or 'a file'}: {cause}"


def find_checkout(script: Path) -> Path | None:
    """The checkout of this project that contains a script; None if there is none."""
    return next((folder for folder in script.resolve().parents if (folder / "cli.py").is_file()), None)


def require_own_checkout(script: Path) -> None:
    """Raise UserError if a script would import modules from a checkout other than its own."""
    own = find_checkout(script)
    if own and own != CHECKOUT:
        raise UserError(
            f"this Python has a different checkout installed ({CHECKOUT}): run make setup in {own} and use its "
            f".venv/bin/python, or export PYTHONPATH={own}"
        )


def report_missing_module(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook of the project's scripts: a failed import is reported in one line, with exit code 2."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if not isinstance(error, ImportError) or not script or not find_checkout(Path(script)):
        sys.__excepthook__(kind, error, trace)
        return
    try:
        require_own_checkout(Path(script))
    except UserError as refusal:
        sys.exit(report_error(refusal.with_traceback(trace)))
    if not isinstance(error, ModuleNotFoundError):
        if ".so" not in str(error):
            sys.__excepthook__(kind, error, trace)
            return
        # a shared library is missing, broken, or exceeds the process's memory limit
        sys.exit(report_error(UserError(f"can't load a package: {error}").with_traceback(trace)))
    module = (error.name or "").partition(".")[0]
    sys.exit(report_error(UserError(f"module {module} is not installed: {install_hint(module)}").with_traceback(trace)))


def install_hint(module: str) -> str:
    """How to install a missing module: the command for the extra that contains it, or for everything."""
    with suppress(metadata.PackageNotFoundError):
        for requirement in metadata.requires(PROJECT) or ():
            name, _, marker = requirement.partition(";")
            extra = re.search(r"extra == ['\"](\w+)", marker)
            if extra and re.match(rf"{re.escape(module.replace('_', '-'))}\b", name.replace("_", "-"), re.IGNORECASE):
                return f"run pip install --editable '{CHECKOUT}[{extra[1]}]', or make setup, or bash setup_hpc.sh"
    return f"run make setup in {CHECKOUT}, or bash setup_hpc.sh"


# Set on import: scripts import this module before any package that may be missing.
sys.excepthook = report_missing_module


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """Raised to end a script on a signal; the message is the signal's name."""


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Install a handler for STOP_SIGNALS in the body, except for signals that are ignored, as SIGHUP is under nohup.

    Does nothing outside the main thread, the only one that receives signals.
    """
    main = threading.current_thread() is threading.main_thread()
    handled = [number for number in STOP_SIGNALS if main and signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, old_handler in previous.items():
            signal.signal(number, old_handler)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Make STOP_SIGNALS raise Stopped in the body, so that cleanup code runs."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    with handle_signals(stop):
        yield


class StopSignal:
    """Records Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 (SLURM's warning), so that a loop can stop between two items.

    Use as a context manager; truthy after a signal. A second Ctrl-C raises Stopped at once.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> Self:
        self._handling = handle_signals(self._remember)
        self._handling.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._handling.__exit__(*exception)

    def __bool__(self) -> bool:
        return self.received is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == self.received == signal.SIGINT:
            raise Stopped("SIGINT")
        self.received = signal.Signals(number)


def cpu_count() -> int:
    """CPUs available to this process: on Linux those of its job, elsewhere all of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def flag(default: Any, help: str = "", **settings: Any) -> Any:
    """A dataclass field that add_flags() turns into a flag.

    Args:
        default: the default value, or a function that returns it.
        help: help text without the default, which add_flags() appends.
        settings: further arguments of argparse's add_argument(): type (which also checks the range), nargs, metavar,
            action.
    """
    settings["help"] = help
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=settings)
    return dataclasses.field(default=default, metadata=settings)


def add_flags(parser: argparse.ArgumentParser, defaults: Any, *names: str) -> None:
    """Add a flag for each dataclass field that was made with flag().

    Args:
        parser: parser to add the flags to.
        defaults: an instance of the dataclass; the help shows its values as defaults.
        names: add only these fields, in this order.
    """
    marked = {field.name: field.metadata for field in dataclasses.fields(defaults) if field.metadata}
    for name in names or marked:
        settings, value = dict(marked[name]), getattr(defaults, name)
        text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        text = text.replace("%", "%%")
        if "action" not in settings and value is not None:
            settings["help"] = f"{settings['help']} (default: {text})" if settings["help"] else f"default: {text}"
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, **settings)


def flag_values(arguments: argparse.Namespace, kind: type) -> dict[str, Any]:
    """{field: value} of the flags from add_flags() that were set on the command line."""
    values = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(kind)}
    chosen = {name: value for name, value in values.items() if value is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}


def positive_int(text: str) -> int:
    """Argparse type: an integer >= 1."""
    value = _number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def non_negative_int(text: str) -> int:
    """Argparse type: an integer >= 0."""
    value = _number(text, int)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def positive_float(text: str) -> float:
    """Argparse type: a finite number > 0."""
    value = _number(text, float)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def fraction(text: str) -> float:
    """Argparse type: a number in [0, 1]."""
    value = _number(text, float)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _number(text: str, kind: type[Number]) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of type {kind.__name__}") from None


def existing_dir(path: str | Path, what: str) -> Path:
    """Return the path if it is a folder; raises UserError naming `what` otherwise."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{what}: there is no folder {path}")
    return path


def parse_shard(text: str) -> tuple[int, int]:
    """Argparse type: 'i/n' is shard i of n, with i in 0..n-1."""
    try:
        index, n_shards = (int(part) for part in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form i/n, such as 0/4") from None
    if not 0 <= index < n_shards:
        raise argparse.ArgumentTypeError(f"{text}: shards are numbered from 0, so i/n needs 0 <= i < n")
    return index, n_shards


def existing_file(path: str | Path, what: str) -> Path:
    """Return the path if it is a file; raises UserError naming `what` otherwise."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what}: there is no file {path}")
    return path


def resolve_device(name: str) -> torch.device:
    """The torch.device for `name` ('auto', 'cpu', 'cuda', 'cuda:1', ...); raises UserError if it is unavailable."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def check_compiler(device: torch.device) -> None:
    """Raise UserError if torch.compile fails on a device, usually because there is no C++ compiler."""
    import torch

    try:
        torch.compile(lambda x: 2 * x)(torch.ones(8, device=device))
    except Exception as error:  # Inductor, Triton and the compiler raise different types
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"--compile failed ({reason[:160]}): install a C++ compiler (g++), or omit the flag") from None
