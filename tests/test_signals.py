"""A signal stops a script cleanly: one line, exit code 75, no partial files."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from cli import EXIT_STOPPED, STOP_SIGNALS

import pytest

SCRIPT = """
    import sys, time
    from pathlib import Path
    from cli import StopSignal, run
    from dataset.files import atomic_path

    def main():
        folder = Path(sys.argv[1])
        with atomic_path(folder / "result.txt") as temporary:
            temporary.write_text("half")
            {body}

    if __name__ == "__main__":
        run(main)
"""
WAITS = """print("ready", flush=True); time.sleep(60)"""
LOOPS = """
            with StopSignal() as stop:
                print("ready", flush=True)
                while not stop:
                    time.sleep(0.01)
                temporary.write_text("whole")
            return 75
"""


def reset_signals() -> None:
    """Restore default signal handlers: a shell that runs the tests in the background ignores SIGINT."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def start(folder: Path, body: str, before: Callable[[], None] = reset_signals) -> subprocess.Popen:
    """Start a script and wait until it prints `ready`; `before` runs in its process."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(body=body.strip())))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, script, folder], text=True, preexec_fn=before, **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_one_line_and_exit_code_75(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, WAITS)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == EXIT_STOPPED
    assert errors == f"script.py: stopped by {number.name}; finished files are kept\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.py"]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_loop_ends_between_two_items(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, LOOPS)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (EXIT_STOPPED, "")
    assert (tmp_path / "result.txt").read_text() == "whole"


def test_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    def like_nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start(tmp_path, WAITS, like_nohup)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == EXIT_STOPPED
