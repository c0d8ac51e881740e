"""Invalid input to training, evaluation and prediction: one line on stderr, exit code 2, no partial files."""

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cli import EXIT_USAGE, UserError, cpu_count

import numpy as np
import pytest
import torch
from small_run import STEMS, copy_data, exit_code, train_flags

import eval_distillation
import predict
import train
from config import Recipe
from dataset.files import read_npy, read_png_raw, write_npy, write_png
from deployment.images import calibration_images
from evaluation.held_out import find_test_rows

ROOT = Path(__file__).resolve().parents[1]


def check_one_line(code: int, error: str, words: str) -> None:
    """Check that stderr is one line that contains `words`."""
    assert code == EXIT_USAGE, error
    assert error.count("\n") == 1 and error.endswith("\n"), error
    assert error.count(".py: error: ") == 1 and words in error, error


def edit_rows(manifest: Path, change: Callable[[dict], None]) -> None:
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    for entry in entries:
        change(entry)
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def change_row(change: Callable[[dict], None], stem: str = STEMS[1]) -> Callable[[Path], None]:
    """Return a function that changes one row of a manifest."""
    return lambda manifest: edit_rows(manifest, lambda entry: change(entry) if entry["stem"] == stem else None)


def change_map(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Return a function that changes one map of every frame."""

    def corrupt(manifest: Path) -> None:
        for path in (manifest.parent / name).rglob("*.npy"):
            write_npy(path, change(read_npy(path)))

    return corrupt


def no_valid_depth(manifest: Path) -> None:
    """Remove all valid depth and the teachers."""
    change_map("depth", lambda depth: np.full_like(depth, np.nan))(manifest)
    edit_rows(manifest, lambda entry: [entry.pop(name) for name in ("da3_depth", "sam2_seg", "labels")])


def unknown_class(manifest: Path) -> None:
    for path in (manifest.parent / "labels").rglob("*.png"):
        write_png(path, np.full(read_png_raw(path).shape, 17, np.uint8))


INVALID_DATA = {
    "a missing column": (change_row(lambda row: row.pop("depth")), "line 2: the row has no column 'depth'"),
    "an outside path": (
        change_row(lambda row: row.update(rgb="../../etc/passwd")),
        "points outside the manifest's folder",
    ),
    "an absolute path": (
        change_row(lambda row: row.update(depth="/etc/passwd")),
        "points outside the manifest's folder",
    ),
    "an unknown split": (change_row(lambda row: row.update(split="holdout")), "split 'holdout' is not one of"),
    "an empty manifest": (lambda manifest: manifest.write_text("\n"), "lists no frames"),
    "not JSON": (lambda manifest: manifest.write_text("rgb,depth\n"), "line 1: not JSON"),
    "no manifest": (lambda manifest: manifest.unlink(), "there is no manifest"),
    "a different shape": (change_map("depth", lambda depth: depth[:60]), "depth is 160x60 but the image is 160x120"),
    "millimetres as .npy": (change_map("depth", lambda depth: depth * 1000), "can't be metres"),
    "confidence above 1": (change_map("confidence", lambda c: c * 255), "confidence must be in 0..1"),
    "an unknown class": (unknown_class, "unknown class 17"),
    "an unknown class of a teacher": (change_map("sam2_seg", lambda seg: seg + np.uint8(40)), "unknown class"),
    "depth without readings": (no_valid_depth, "depth"),
    "an image in two splits": (
        change_row(lambda row: row.update(rgb=f"rgb/{STEMS[0]}.png"), STEMS[5]),
        f"frames {STEMS[0]} (train) and {STEMS[5]} (test) are the same image",
    ),
    "JSON nested too deeply": (lambda manifest: manifest.write_text("[" * 100_000 + "\n"), "nested too deeply"),
    "missing files": (lambda manifest: shutil.rmtree(manifest.parent / "depth"), "there is no file"),
}


@pytest.mark.parametrize("case", INVALID_DATA)
def test_training_rejects_invalid_data(manifest, tmp_path, capfd, case):
    corrupt, words = INVALID_DATA[case]
    manifest = copy_data(manifest, tmp_path / "data")
    corrupt(manifest)
    code = exit_code(train.main, *train_flags(manifest, tmp_path / "out"))
    check_one_line(code, capfd.readouterr().err, words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", INVALID_DATA)
def test_evaluation_rejects_invalid_data(manifest, trained, tmp_path, capfd, case):
    corrupt, words = INVALID_DATA[case]
    manifest = copy_data(manifest, tmp_path / "data")
    corrupt(manifest)
    flags = ("--checkpoint", trained / "checkpoints/best.pt", "--output-dir", tmp_path / "out", "--device", "cpu")
    code = exit_code(eval_distillation.main, "--manifest", manifest, *flags)
    check_one_line(code, capfd.readouterr().err, words)
    assert not list((tmp_path / "out").glob("table_4.*"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data-limit", "-3"], "--data-limit: -3 is not 1 or more"),
        (["--epochs", "0"], "--epochs: 0 is not 1 or more"),
        (["--batch-size", "four"], "'four' is not a number"),
        (["--lr", "nan"], "--lr: nan is not a finite number above 0"),
        (["--device", "cuda:7"], "--device cuda:7: this machine has"),
        (["--device", "tpu"], "--device tpu"),
        (["--resume", "gone.pt"], "there is no checkpoint gone.pt"),
        (["--encoder-weights", "gone.pt"], "gone.pt"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_training_rejects_invalid_flags(manifest, tmp_path, capfd, flags, words):
    code = exit_code(train.main, *train_flags(manifest, tmp_path / "out"), *flags)
    check_one_line(code, capfd.readouterr().err, words)
    assert not (tmp_path / "out/checkpoints").exists()


def test_diverged_run_saves_its_batch_and_no_best_checkpoint(manifest, tmp_path, capfd):
    flags = ("--lr", "1e9", "--seed", 10**20, "--epochs", 4)
    code = exit_code(train.main, *train_flags(manifest, tmp_path / "out"), *flags)
    check_one_line(code, capfd.readouterr().err, "training has diverged: the loss was not finite in 3 steps in a row")
    assert not (tmp_path / "out/checkpoints/best.pt").exists()
    (batch,) = (tmp_path / "out/runs").glob("*/not_finite.pt")
    assert torch.load(batch, weights_only=True)["rgb"].isfinite().all()


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def write_invalid_checkpoints(trained: Path, folder: Path) -> dict[str, str]:
    """Write invalid checkpoints to a folder; returns {file name: expected words of the message}."""
    good = (trained / "checkpoints/best.pt").read_bytes()
    content = torch.load(trained / "checkpoints/best.pt", weights_only=True)
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}}, folder / "foreign.pt")
    torch.save(content | {"ema": {"conv.weight": torch.zeros(3)}, "model": {}}, folder / "weights.pt")
    torch.save(content | {"class_names": ["floor", "wall"]}, folder / "classes.pt")
    broken = {name: torch.full_like(value, torch.nan) for name, value in content["ema"].items() if value.ndim == 4}
    torch.save(content | {"ema": content["ema"] | broken}, folder / "nan.pt")
    torch.save(content | {"notes": Bomb(folder / "marker")}, folder / "bomb.pt")
    (folder / "old_bomb.pt").write_bytes(pickle.dumps(Bomb(folder / "marker")))
    (folder / "empty.pt").touch()
    (folder / "cut.pt").write_bytes(good[: len(good) // 2])
    (folder / "text.pt").write_text("404 not found")
    (folder / "byte.pt").write_bytes(b"K")
    return {
        "foreign.pt": "is not a checkpoint of this student",
        "weights.pt": "a different model",
        "classes.pt": "classes floor, wall",
        "nan.pt": "of its tensors are not finite",
        "bomb.pt": "objects other than tensors",
        "old_bomb.pt": "objects other than tensors",
        "empty.pt": "not a readable checkpoint",
        "cut.pt": "not a readable checkpoint",
        "text.pt": "text.pt",
        "byte.pt": "not a readable checkpoint",
        "gone.pt": "there is no checkpoint",
    }


def test_invalid_checkpoints_are_rejected_and_never_executed(manifest, trained, tmp_path, capfd):
    out = tmp_path / "out"
    image = ("--input", manifest.parent / f"rgb/{STEMS[0]}.png")
    scripts = {
        eval_distillation.main: ("--manifest", manifest, "--output-dir", out, "--device", "cpu", "--checkpoint"),
        predict.main: (*image, "--output-dir", out, "--device", "cpu", "--checkpoint"),
        train.main: (*train_flags(manifest, out), "--resume"),
    }
    for name, words in write_invalid_checkpoints(trained, tmp_path).items():
        for main, flags in scripts.items():
            if name in ("classes.pt", "nan.pt") and main is train.main:
                continue
            code = exit_code(main, *flags, tmp_path / name)
            check_one_line(code, capfd.readouterr().err, words)
            assert not (tmp_path / "marker").exists(), f"{main.__module__} ran what is in {name}"
            assert not out.exists()
    code = exit_code(train.main, *train_flags(manifest, out), "--encoder-weights", tmp_path / "bomb.pt")
    check_one_line(code, capfd.readouterr().err, "bomb.pt")
    assert not (tmp_path / "marker").exists()
    with pytest.raises((TypeError, AttributeError, pickle.UnpicklingError)):
        torch.load(tmp_path / "bomb.pt", weights_only=False).missing  # noqa: B018
    assert (tmp_path / "marker").exists(), "without weights_only the payload runs"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--input", "gone.png"], "there is no file gone.png"),
        (["--input", "gone.mp4"], "--input gone.mp4: not a readable image, folder, video or camera"),
        (["--input", "text.mp4"], "--input text.mp4: not a readable image, folder, video or camera"),
        (["--input", "77"], "--input 77: not a readable image, folder, video or camera"),
        (["--input", "text.png"], "text.png is not a readable image"),
        (["--input", "empty"], "contains no images"),
        (["--input", "grey.png", "--fx", "500"], "--fx and --fy go together"),
        (["--input", "grey.png", "--fx", "-1", "--fy", "500"], "--fx: -1"),
        (["--input", "grey.png", "--fx", "0.825", "--fy", "1.1"], "--fx --fy: fx 0.825 and fy 1.1 for an image of"),
        (["--input", "grey.png", "--camera", "metres.json"], "metres.json: fx 0.00193"),
        (["--input", "grey.png", "--camera", "gone.json"], "gone.json"),
        (["--input", "grey.png", "--camera", "text.png"], "not readable JSON"),
        (["--input", "grey.png", "--device", "cuda:7"], "--device cuda:7"),
    ],
)
def test_prediction_rejects_invalid_input(trained, tmp_path, monkeypatch, capfd, flags, words):
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "grey.png", np.full((120, 160, 3), 90, np.uint8))
    (tmp_path / "empty").mkdir()
    for name in ("text.png", "text.mp4"):
        (tmp_path / name).write_text("404 not found")
    metres = {"fx": 0.00193, "fy": 0.00193, "cx": 80, "cy": 60, "width": 160, "height": 120}
    (tmp_path / "metres.json").write_text(json.dumps(metres))
    code = exit_code(predict.main, "--checkpoint", trained / "checkpoints/best.pt", "--device", "cpu", *flags)
    check_one_line(code, capfd.readouterr().err, words)
    assert not (tmp_path / "predictions").exists()


def test_evaluation_rejects_invalid_flags(manifest, trained, tmp_path, capfd):
    flags = ("--checkpoint", trained / "checkpoints/best.pt", "--manifest", manifest, "--output-dir", tmp_path / "out")
    for wrong, words in (
        (["--split", "holdout"], "holdout"),
        (["--data-limit", "-3"], "-3 is not 1 or more"),
        (["--device", "cuda:7"], "cuda:7"),
    ):
        check_one_line(exit_code(eval_distillation.main, *flags, *wrong), capfd.readouterr().err, words)
    edit_rows(copy := copy_data(manifest, tmp_path / "data"), lambda row: row.update(split="train"))
    code = exit_code(eval_distillation.main, *flags, "--manifest", copy)
    check_one_line(code, capfd.readouterr().err, "no frame of the split 'test'")
    assert not (tmp_path / "out").exists()


def test_links_to_outside_data_need_permission(manifest, trained, tmp_path, capfd):
    data, outside = copy_data(manifest, tmp_path / "data"), tmp_path / "disk2"
    (data.parent / "rgb").rename(outside)
    (data.parent / "rgb").symlink_to(outside)
    checkpoint, allowed = trained / "checkpoints/best.pt", ("--allow-links-to", outside)
    evaluation = ("--checkpoint", checkpoint, "--manifest", data, "--output-dir", tmp_path / "table", "--device", "cpu")
    training = train_flags(data, tmp_path / "run")
    for main, flags in ((train.main, training), (eval_distillation.main, evaluation)):
        check_one_line(exit_code(main, *flags), capfd.readouterr().err, f"allow it with --allow-links-to {outside}")
        assert exit_code(main, *flags, *allowed) == 0
        check_one_line(exit_code(main, *flags, "--allow-links-to", "gone"), capfd.readouterr().err, "no folder gone")
    with pytest.raises(UserError, match="--allow-links-to"):
        find_test_rows(data, {}, 9)
    rows, _ = find_test_rows(data, {}, 9, [outside])
    assert len(calibration_images(data, rows, 2, Recipe(), [outside])) == 2


def test_any_file_name_can_be_printed(tmp_path):
    """Names outside the terminal's encoding must not raise UnicodeEncodeError."""
    (tmp_path / "script.py").write_text(
        "from cli import UserError, run\n"
        "def main():\n    print('caf\\udce9', 'é')\n    raise UserError('caf\\udce9')\nrun(main)\n"
    )
    for encoding in ("utf-8:strict", "ascii:strict"):
        command = [sys.executable, str(tmp_path / "script.py")]
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
        assert done.returncode == EXIT_USAGE and done.stdout.startswith("caf\\udce9 "), done.stderr
        assert done.stderr == "script.py: error: caf\\udce9\n"


RESOURCE_LIMITS = {  # {body of a script: beginning of stderr}
    "raise MemoryError": "script.py: error: out of memory (no details): use smaller batches or raise the limit",
    "import torch; torch.empty(2**45)": "script.py: error: out of memory (",
    "import torch; raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB.')": (
        "script.py: error: out of memory (CUDA out of memory. Tried to allocate 9 GiB.): use smaller batches"
    ),
    "raise RuntimeError('CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate')": "script.py: error: out of memory (",
    "import os; raise OSError(27, os.strerror(27), 'last.pt')": (
        "script.py: error: can't write last.pt: file size limit exceeded (ulimit -f)"
    ),
}


@pytest.mark.parametrize("body", RESOURCE_LIMITS)
def test_resource_limits_are_reported_in_one_line(tmp_path, body):
    (tmp_path / "script.py").write_text(f"from cli import run\ndef main():\n    {body}\nrun(main)\n")
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True)
    assert (
        done.returncode == EXIT_USAGE and done.stderr.count("\n") == 1 and done.stderr.startswith(RESOURCE_LIMITS[body])
    )


def test_closed_standard_output_is_not_an_error(tmp_path):
    (tmp_path / "script.py").write_text("from cli import run\ndef main():\n    print('text')\nrun(main)\n")
    done = subprocess.run(f"{sys.executable} {tmp_path}/script.py >&-", shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_cpus_are_counted_where_affinity_is_unknown(monkeypatch):
    """os.sched_getaffinity() exists on Linux only."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cpu_count() == os.cpu_count()


def script(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_package_that_fails_to_load_is_reported_in_one_line():
    """For example if there is too little memory for PyTorch's libraries."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 * 10**9, 2 * 10**9))

    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    check_one_line(done.returncode, done.stderr, "can't load a package: ")


def test_errors_are_one_line_in_separate_processes(manifest, trained, tmp_path):
    """Includes output of the interpreter and of libraries on stderr."""
    corrupted = copy_data(manifest, tmp_path / "data")
    change_row(lambda row: row.pop("depth"))(corrupted)
    text = tmp_path / "text.mp4"
    text.write_text("404 not found")
    predict_flags = ("--checkpoint", trained / "checkpoints/best.pt", "--output-dir", tmp_path / "out")
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    (tmp_path / "engines").mkdir()
    for result, words in (
        (script("train.py", *train_flags(corrupted, tmp_path / "out")), "train.py: error:"),
        (script("eval_distillation.py", "--checkpoint", tmp_path / "bomb.pt", "--manifest", manifest), "bomb.pt"),
        (script("predict.py", *predict_flags, "--input", text), "text.mp4"),
        (script("benchmark_jetson.py", "--engine-dir", tmp_path / "engines"), "engines"),
    ):
        check_one_line(result.returncode, result.stderr, words)
    assert not (tmp_path / "marker").exists()
    assert not list((tmp_path / "engines").iterdir())
