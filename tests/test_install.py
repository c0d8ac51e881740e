"""Scripts if the project is not installed, installed from a different checkout, or partly installed."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from cli import EXIT_OK, EXIT_USAGE

import pytest

ROOT = Path(__file__).resolve().parents[1]
IN_FOLDERS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("benchmarks", "cluster", "dataset", "rooms", "teacher_infer")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text()
)
LIGHT = "dataset/label_remapper.py"  # starts without torch


def call(python: object, *arguments: object, folder: Path = ROOT.parent, **environment: str):
    """Run a script from a folder outside the checkout."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(part) for part in (python, *arguments)]
    return subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True)


def assert_one_line(done, *words: str) -> None:
    assert done.returncode == EXIT_USAGE, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout
    assert all(word in done.stderr for word in words), done.stderr


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """A Python without any packages."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=False)
    return folder / "bin/python"


@pytest.fixture(scope="module")
def other_checkout(tmp_path_factory) -> Path:
    """A second checkout, whose scripts run in this one's environment."""
    folder = tmp_path_factory.mktemp("other") / "checkout"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "data", "checkpoints", "runs", "engines", "predictions")
    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


@pytest.mark.parametrize("script", IN_FOLDERS)
def test_folder_script_without_the_project_prints_one_line(bare_python, script):
    assert_one_line(call(bare_python, ROOT / script, "--help"), "make setup", "setup_hpc.sh")


@pytest.mark.parametrize("script", ["train.py", "export_trt.py", "predict.py", "eval_distillation.py"])
def test_top_level_script_without_packages_prints_one_line(bare_python, script):
    assert_one_line(call(bare_python, ROOT / script, "--help"), "is not installed", "make setup", "setup_hpc.sh")


def test_script_of_a_different_checkout_is_rejected_with_a_hint(other_checkout):
    script = other_checkout / LIGHT
    assert_one_line(call(sys.executable, script, "--name", "wall"), str(ROOT), f"PYTHONPATH={other_checkout}")
    assert call(sys.executable, script, "--name", "wall", PYTHONPATH=str(other_checkout)).returncode == EXIT_OK
    assert call(sys.executable, ROOT / LIGHT, "--name", "wall").returncode == EXIT_OK
    module = call(sys.executable, "-m", "dataset.label_remapper", "--name", "wall", folder=other_checkout)
    assert module.returncode == EXIT_OK, "the current folder comes first on the path"


def test_script_of_a_different_checkout_with_a_newer_import_is_rejected(other_checkout):
    script = other_checkout / "dataset/newer.py"
    script.write_text("from cli import run\nfrom dataset.files import something_newer\n")
    assert_one_line(call(sys.executable, script), "different checkout", f"PYTHONPATH={other_checkout}")


def test_all_modules_come_from_this_checkout(tmp_path):
    """Other packages, such as sam2, also install top-level modules."""
    script = "import sys, importlib.util as util; [print(util.find_spec(name).origin) for name in sys.argv[1:]]"
    names = [path.stem for path in ROOT.glob("*.py")] + [path.parent.name for path in ROOT.glob("*/__init__.py")]
    found = call(sys.executable, "-c", script, *names, folder=tmp_path).stdout.splitlines()
    assert len(found) == len(names) > 15
    assert not [origin for origin in found if not Path(origin).is_relative_to(ROOT)]


def test_missing_extra_is_named(tmp_path):
    (tmp_path / "embreex").mkdir()
    error = "raise ModuleNotFoundError(\"No module named 'embreex'\", name='embreex')"
    (tmp_path / "embreex/__init__.py").write_text(error)
    done = call(sys.executable, ROOT / "rooms/render_rooms.py", "--help", PYTHONPATH=str(tmp_path))
    assert_one_line(done, "module embreex is not installed", "[rooms]", "make setup")


def test_traceback_variable_shows_the_traceback():
    command = (sys.executable, ROOT / LIGHT, "--name", "no such name")
    assert_one_line(call(*command), "no such name")
    shown = call(*command, STUDENT_TRACEBACK="1")
    assert shown.returncode == EXIT_USAGE and "Traceback" in shown.stderr and "format_name" in shown.stderr


@pytest.mark.parametrize("old", ["dataset/rooms.py", "dataset/prepare_rooms.py"])
def test_moved_scripts_run_under_their_old_names(old):
    done = call(sys.executable, ROOT / old, "--help")
    assert done.returncode == EXIT_OK and "is now rooms/" in done.stderr and "--scenes" in done.stdout
