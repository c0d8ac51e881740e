"""Fixtures shared by several test files: data and a trained student."""

import os
import signal
from pathlib import Path

from cli import EXIT_USAGE, UserError

import pytest
from small_run import call, train_flags, write_data

# must be set before torch is imported: on a busy machine its threads wait for each other, and steps of 0.4 s take 10 s
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    """The manifest of a data folder; tests must not modify it."""
    return write_data(tmp_path_factory.mktemp("box_room") / "data")


@pytest.fixture(scope="session")
def trained(manifest, tmp_path_factory) -> Path:
    """The output folder of a finished run: checkpoints/ and runs/."""
    import train  # imported here, so that tests that need no torch start quickly

    out = tmp_path_factory.mktemp("trained")
    assert call(train.main, *train_flags(manifest, out)) == 0
    return out


@pytest.fixture
def importer(capsys, monkeypatch):
    """Runs corridor_loader.py in this process: (exit code, standard output, lines of standard error)."""
    from dataset import corridor_loader

    def run(*arguments: object) -> tuple[int, str, list[str]]:
        monkeypatch.setattr("sys.argv", ["corridor_loader.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            code = corridor_loader.main()
        except UserError as error:
            return EXIT_USAGE, capsys.readouterr().out, [f"error: {error}"]
        printed = capsys.readouterr()
        return code, printed.out, printed.err.splitlines()

    return run


@pytest.fixture(autouse=True)
def restore_sigint():
    """Restore SIGINT: a shell that runs the tests in the background ignores it, and child processes inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
