"""Data and a student that several test files share; making them costs seconds."""

import os
import signal
from pathlib import Path

import pytest
from small_run import call, train_flags, write_data

# before anything imports torch: on a busy machine its threads wait for each other, and steps of 0.4 s take 10 s
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    """The manifest of a data folder that no test may change."""
    return write_data(tmp_path_factory.mktemp("box_room") / "data")


@pytest.fixture(scope="session")
def trained(manifest, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run: checkpoints/ and runs/."""
    import train  # tests of the early stages start without torch

    out = tmp_path_factory.mktemp("trained")
    assert call(train.main, *train_flags(manifest, out)) == 0
    return out


@pytest.fixture(autouse=True)
def heed_ctrl_c():
    """A shell that runs the tests in the background has SIGINT ignored, and what is ignored stays so in the scripts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
