"""Rendered rooms as benchmark data, made with the scripts of the demo."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli import existing_dir

ROOT = Path(__file__).resolve().parents[1]


def render_data_folder(folder: Path, scenes: int, seed: int) -> None:
    """Write a data folder of rendered rooms, two frames per scene."""
    mat = folder / "rooms.mat"
    for script, *arguments in (
        ("rooms/render_rooms.py", "--out", mat, "--scenes", scenes, "--frames-per-scene", 2, "--seed", seed),
        ("dataset/nyu_loader.py", "--mat", mat, "--out", folder),
    ):
        subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], check=True)


def rendered_manifest(folder: Path, frames: int, seed: int) -> Path:
    """Render `frames` frames, rounded up to even, and write their manifest, without teachers; returns its path."""
    render_data_folder(folder, -(-frames // 2), seed)
    flags = ["--rgb-dir", folder / "rgb", "--depth-dir", folder / "depth", "--allow-missing-teachers"]
    flags += ["--output", folder / "manifest.jsonl"]
    subprocess.run([sys.executable, ROOT / "teacher_infer" / "build_manifest.py", *map(str, flags)], check=True)
    return folder / "manifest.jsonl"


@contextmanager
def data_folder(given: str | None, scenes: int, seed: int) -> Iterator[Path]:
    """Yield the folder given by --data, else a temporary one of rendered rooms; raises UserError if it is missing."""
    if given:
        yield existing_dir(given, "--data")
        return
    with tempfile.TemporaryDirectory() as name:
        render_data_folder(Path(name), scenes, seed)
        yield Path(name)
