"""Rendered rooms for benchmarks, through the same two scripts that the demo uses."""

import subprocess
import sys
from pathlib import Path

DATASET = Path(__file__).resolve().parents[1] / "dataset"


def render(folder: Path, scenes: int, seed: int) -> None:
    """A data folder of rendered rooms, two frames a scene."""
    mat = folder / "rooms.mat"
    for script, *arguments in (
        ("rooms.py", "--out", mat, "--scenes", scenes, "--frames-per-scene", 2, "--seed", seed),
        ("nyu_loader.py", "--mat", mat, "--out", folder),
    ):
        subprocess.run([sys.executable, DATASET / script, *map(str, arguments)], check=True)
