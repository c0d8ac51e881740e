"""A full disk is reported in one line naming the file, for all libraries; old files stay, partial ones are removed."""

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from cli import EXIT_USAGE, UserError

import h5py
import matplotlib.figure
import numpy as np
import pytest
import torch
from small_disk import small_disk
from small_run import exit_code, train_flags
from test_teacher_stage import FRAMES, Fake

import train
from config import Recipe
from dataset.disk import DiskFullError
from dataset.files import atomic_path, write_json, write_npy, write_png
from teacher_infer import stage
from trainer.checkpoint import save_checkpoint
from trainer.report import log_to_tensorboard

NOISE = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)  # 3 MB, incompressible


def atomically(write: Callable[[Path], object]) -> Callable[[Path], None]:
    def writer(path: Path) -> None:
        with atomic_path(path) as temporary:
            write(temporary)

    return writer


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for start in range(0, len(NOISE), 100):
            file[f"images{start}"] = NOISE[start : start + 100]


def draw(path: Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(10, 10))
    figure.figimage(NOISE)
    figure.savefig(path, format="png")


def copy_noise(path: Path) -> None:
    source = Path(__file__).parent / "data" / "format_1.pt"
    with open(path, "wb") as file:
        for _ in range(10):
            shutil.copyfileobj(open(source, "rb"), file)  # noqa: SIM115


WRITERS: dict[str, Callable[[Path], None]] = {
    "array.npy": lambda path: write_npy(path, NOISE),
    "image.png": lambda path: write_png(path, NOISE),
    "settings.json": lambda path: write_json(path, {"numbers": NOISE[:200].tolist()}),
    "last.pt": lambda path: save_checkpoint(path, Recipe(), {"model": {"weight": torch.from_numpy(NOISE)}, "step": 1}),
    "frames.npz": atomically(lambda path: np.savez_compressed(path, rgb=NOISE)),
    "rooms.mat": atomically(write_hdf5),
    "curves.png": atomically(draw),
    "table.md": atomically(lambda path: path.write_text("| row |\n" * 300_000)),
    "copy.pt": atomically(copy_noise),
}


@pytest.mark.parametrize("name", WRITERS)
def test_all_writers_report_a_full_disk(tmp_path, name):
    with small_disk(tmp_path, "1m") as disk:
        (disk / name).write_text("before")
        with pytest.raises(DiskFullError) as caught:
            WRITERS[name](disk / name)
        assert str(caught.value) == f"can't write {disk / name}: disk full"
        assert [path.name for path in disk.iterdir()] == [name] and (disk / name).read_text() == "before"


def test_disk_without_free_inodes_is_full(tmp_path):
    """There is space, but no inode."""
    with small_disk(tmp_path, "1m,nr_inodes=2") as disk:
        write_npy(disk / "one.npy", np.zeros(1))
        with pytest.raises(DiskFullError, match=r"can't write .*two\.npy: disk full"):
            write_npy(disk / "two.npy", np.zeros(1))


def test_other_errors_are_unchanged(tmp_path):
    with pytest.raises(ValueError, match="of another kind"), atomic_path(tmp_path / "file"):
        raise ValueError("of another kind")
    with (
        small_disk(tmp_path / "disk", "1m") as disk,
        pytest.raises(UserError, match="wrong input"),
        atomic_path(disk / "file") as temporary,
    ):
        temporary.write_bytes(bytes(2**20))
        raise UserError("wrong input")


def test_tensorboard_on_a_full_disk_reports_one_line(tmp_path, capfd):
    with small_disk(tmp_path, "1m") as disk, pytest.raises(DiskFullError, match=r"can't write .*events: disk full"):
        log_to_tensorboard(disk, {"step": 1, "loss": 0.5}, NOISE)
    assert "Traceback" not in capfd.readouterr().err


class SecondFile(Fake):
    """A teacher that writes a second file per frame in its last step."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def finish(self, prepared, output):
        write_npy(self.folder / f"{prepared}.npy", NOISE)
        return output


def test_full_disk_stops_a_stage_without_failing_frames(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        big = Fake(lambda stem: NOISE.astype(np.float32))
        for teacher, output in ((big, disk / "big"), (SecondFile(disk / "side"), tmp_path / "out")):
            with pytest.raises((UserError, DiskFullError), match=r"can't write .*\.npy: disk full$"):
                stage.run_stage(FRAMES, output, teacher)
            assert not (output / "failed_frames.jsonl").exists()


def test_training_on_a_full_disk_keeps_old_checkpoints(manifest, tmp_path, capfd):
    with small_disk(tmp_path / "disk", "20m") as disk:  # less than a checkpoint
        for name in ("best.pt", "last.pt"):
            (disk / name).write_text("before")
        flags = [*train_flags(manifest, tmp_path / "out"), "--epochs", 1, "--checkpoint-dir", disk]
        assert exit_code(train.main, *flags) == EXIT_USAGE
        error = capfd.readouterr().err
        assert error == f"train.py: error: can't write {disk / 'best.pt'}: disk full\n"
        assert {path.name: path.read_text() for path in disk.iterdir()} == dict.fromkeys(
            ("best.pt", "last.pt"), "before"
        )


PRINTS = """
    from cli import run

    def main():
        {body}

    if __name__ == "__main__":
        run(main)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("body", ["print('a line')", "print('a line', flush=True)", "print('line\\n' * 10**6)"])
def test_full_disk_for_standard_output_is_one_line(tmp_path, monkeypatch, body, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(PRINTS.format(body=body)))
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, script], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (EXIT_USAGE, "script.py: error: can't write standard output: disk full\n")


@pytest.mark.parametrize("body", ["print('a line')", "print('line\\n' * 10**6)"])
def test_closed_pipe_is_not_an_error(tmp_path, body):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(PRINTS.format(body=body)))
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, "")
