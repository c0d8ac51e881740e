"""What every script of the toolkit shares at its command line: exit codes, one-line errors, argument types."""

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
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

if TYPE_CHECKING:
    import torch  # at run time only where it is needed: scripts that need no device start without it

Number = TypeVar("Number", int, float)

EXIT_OK = 0
EXIT_GATE_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal with work left, a job wrapper requeues on it
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError: no space, no quota, or ulimit --file-size
PROJECT = "indoor-student"  # its name in pyproject.toml
CHECKOUT = Path(__file__).resolve().parent
TRACEBACK_VARIABLE = "STUDENT_TRACEBACK"  # environment variable; 1 shows the traceback behind a one-line error


class UserError(Exception):
    """Input or usage that is wrong in a way the user can mend; the message says what is wrong and what to do."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one line on a wrong flag instead of the whole usage text."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and exit."""
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (--help lists the flags)\n")


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main function and exit with its code.

    UserError and OSError become one line and exit code 2, a signal one line and exit code 75.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller (>&-)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text of the terminal's encoding
    try:
        require_own_checkout(Path(inspect.getfile(main)))
        with stop_on_signals():
            code = main()
        sys.stdout.flush()  # what it raises at the end of the process no one catches
    except KeyboardInterrupt as stopped:
        print(f"{Path(sys.argv[0]).name}: stopped by {stopped or 'SIGINT'}; finished files stay", file=sys.stderr)
        code = EXIT_STOPPED
    except UserError as error:
        code = report_error(error)
    except BrokenPipeError:
        flush_or_discard_output()
        code = EXIT_OK  # the reader (head, less) has seen enough
    except OSError as error:  # a full disk, a folder that may not be written
        unnamed = error.errno in DISK_FULL_ERRNOS and error.filename is None
        if flush_or_discard_output("\n" if unnamed else "") and unnamed:
            error.filename = "standard output"
        code = report_error(error)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):  # of torch's CPU allocator
            raise
        code = report_error(
            UserError(f"out of memory ({str(error) or 'no details'}): use smaller batches or allow more")
        )
    sys.exit(code or EXIT_OK)


def flush_or_discard_output(text: str = "") -> bool:
    """Whether standard output can't be written, a text to begin with; then what is left for it goes nowhere."""
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
    """Message for an error whose number is one of DISK_FULL_ERRNOS."""
    cause = "larger than the limit on files (ulimit -f)" if error.errno == errno.EFBIG else "disk full"
    return f"can't write {error.filename or 'a file'}: {cause}"


def find_checkout(script: Path) -> Path | None:
    """The checkout of this project that a script lies in; None for one that lies in none."""
    return next((folder for folder in script.resolve().parents if (folder / "cli.py").is_file()), None)


def require_own_checkout(script: Path) -> None:
    """Raise UserError when a script would run with the modules of another checkout than its own."""
    own = find_checkout(script)
    if own and own != CHECKOUT:
        raise UserError(
            f"this Python has the modules of another checkout installed, {CHECKOUT}: run make setup in {own} and use "
            f"its .venv/bin/python, or export PYTHONPATH={own}"
        )


def report_missing_module(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook of the project's scripts: a module that can't be imported is one line and exit code 2."""
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
        # a shared library that is missing, broken, or too large for the memory that the process may take
        sys.exit(report_error(UserError(f"a package does not load: {error}").with_traceback(trace)))
    module = (error.name or "").partition(".")[0]
    sys.exit(report_error(UserError(f"there is no module {module} here: {install_hint(module)}").with_traceback(trace)))


def install_hint(module: str) -> str:
    """How to get a module that this Python lacks: the extra of the project that has it, or all of them."""
    with suppress(metadata.PackageNotFoundError):
        for requirement in metadata.requires(PROJECT) or ():
            name, _, marker = requirement.partition(";")
            extra = re.search(r"extra == ['\"](\w+)", marker)
            if extra and re.match(rf"{re.escape(module.replace('_', '-'))}\b", name.replace("_", "-"), re.IGNORECASE):
                return f"run pip install --editable '{CHECKOUT}[{extra[1]}]', or make setup, or bash setup_hpc.sh"
    return f"run make setup in {CHECKOUT}, or bash setup_hpc.sh"


# Installed by the import of this module, which scripts import before any package that may be missing.
sys.excepthook = report_missing_module


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """A signal came where no loop waits for one; its name is the message."""


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle STOP_SIGNALS in the body, but for those that the caller ignores, as nohup does with SIGHUP.

    Signals come to the main thread; in another one nothing is handled.
    """
    main = threading.current_thread() is threading.main_thread()
    heeded = [number for number in STOP_SIGNALS if main and signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """STOP_SIGNALS raise Stopped in the body, so that temporary files are removed on the way out."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    with handle_signals(stop):
        yield


class StopSignal:
    """Remembers Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 (SLURM's warning), so that a loop ends between two items.

    Use as a context manager; truthy once a signal has come. A second Ctrl-C doesn't wait for the item in hand.
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
    """CPUs that this process may use: a job has fewer than its node. Only Linux tells; elsewhere all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def flag(default: Any, help: str = "", **settings: Any) -> Any:
    """A dataclass field that add_flags() makes a flag of.

    Args:
        default: the field's default, or a function that gives it.
        help: what it is, without the default.
        settings: more for argparse's add_argument(): type, which checks the range, nargs, metavar, action.
    """
    settings["help"] = help
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=settings)
    return dataclasses.field(default=default, metadata=settings)


def add_flags(parser: argparse.ArgumentParser, defaults: Any, *names: str) -> None:
    """Add a flag for each field of a dataclass that was made with flag().

    Args:
        parser: which gets the flags.
        defaults: an instance of the dataclass; what it holds is told as the defaults.
        names: only these fields, in this order.
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
    """Values of the flags that add_flags() made of a dataclass's fields, those that stand on the command line."""
    values = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(kind)}
    chosen = {name: value for name, value in values.items() if value is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}


def positive_int(text: str) -> int:
    """Argparse type: an integer of 1 or more."""
    value = _number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def non_negative_int(text: str) -> int:
    """Argparse type: an integer of 0 or more."""
    value = _number(text, int)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def positive_float(text: str) -> float:
    """Argparse type: a finite number above 0."""
    value = _number(text, float)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def fraction(text: str) -> float:
    """Argparse type: a number in 0..1."""
    value = _number(text, float)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not within 0..1")
    return value


def _number(text: str, kind: type[Number]) -> Number:
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


def resolve_device(name: str) -> torch.device:
    """The torch.device of `name` ('auto', 'cpu', 'cuda', 'cuda:1', ...); raises UserError when it can't be had."""
    import torch

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


def check_compiler(device: torch.device) -> None:
    """Raise UserError if torch.compile does not work on a device, usually because there is no C++ compiler."""
    import torch

    try:
        torch.compile(lambda x: 2 * x)(torch.ones(8, device=device))
    except Exception as error:  # Inductor, Triton and the compiler each raise their own kinds
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"--compile does not work here ({reason[:160]}): install a C++ compiler (g++), or leave the flag out"
        ) from None
