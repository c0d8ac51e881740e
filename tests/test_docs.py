"""The README's own code, and the checker of the pages."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, save

from dataset.files import read_image
from dataset.frames import to_network_rgb

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "docs" / "check_docs.py"
ALLOWED = ("numpy", "numpy.libs", "cv2", "opencv_python.libs", "onnxruntime", "flatbuffers", "google", "packaging")


def small_student(path: Path) -> None:
    """A graph with the student's contract: depth is the mean colour, seg the colours twice."""
    nodes = [
        helper.make_node("ReduceMean", ["rgb"], ["depth"], axes=[1]),
        helper.make_node("Concat", ["rgb", "rgb"], ["seg"], axis=1),
    ]
    tensors = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 240, 320])
        for name, channels in {"rgb": 3, "depth": 1, "seg": 6}.items()
    }
    graph = helper.make_graph(nodes, "small", [tensors["rgb"]], [tensors["depth"], tensors["seg"]])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("size", [(640, 480), (1280, 720), (480, 640), (1001, 751)])
def test_the_code_of_the_readme_runs_with_three_packages_alone(tmp_path, size):
    """It crops and resizes as training does: the graph gets the same pixels."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    packages = tmp_path / "packages"
    packages.mkdir()
    site = Path(np.__file__).parents[1]
    for name in ALLOWED:
        if (site / name).exists():
            (packages / name).symlink_to(site / name)
    (tmp_path / "engines").mkdir()
    small_student(tmp_path / "engines/student_fp32.onnx")
    image = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "photo.jpg"), image)
    (tmp_path / "readme.py").write_text(f"{code}\nnp.save('depth.npy', depth)\n")
    command = [sys.executable, "-S", "readme.py"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(packages)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+\.\d\d m, floor \d+%\n", done.stdout)
    rgb = to_network_rgb(read_image(tmp_path / "photo.jpg"), 320, 240)
    session = onnxruntime.InferenceSession(tmp_path / "engines/student_fp32.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(["depth"], {"rgb": rgb.transpose(2, 0, 1)[None].astype(np.float32) / 255})[0]
    # OpenCV and Pillow decode JPEG with different rounding
    np.testing.assert_allclose(np.load(tmp_path / "depth.npy"), expected, atol=3 / 255)


@pytest.fixture(scope="module")
def checker():
    specification = importlib.util.spec_from_file_location("check_docs", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


FAULTS = {
    "[a](data.md#no-such-heading)": "no heading of data.md",
    "[a](gone.md)": "does not exist",
    "Read `dataset/gone.py`.": "dataset/gone.py does not exist",
    "Type `make nothing`.": "make has no target nothing",
    "    python print_model_shapes.py --gone": "print_model_shapes.py has no flag --gone",
    "It takes 12.3 ms.": "has a figure (12.3 ms) and no command",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_wrong_page_is_found(checker, text):
    (fault,) = checker.check_page(ROOT / "docs/results.md", f"# Page\n\n{text}\n")
    assert FAULTS[text] in fault


def test_a_message_that_no_script_prints_is_found(checker):
    page = ROOT / "docs/troubleshooting.md"
    rows = "| `module ... is not installed` | a | b |\n| `module ... has gone fishing` | a | b |\n"
    (fault,) = checker.check_page(page, f"# Page\n\n{rows}")
    assert "no script prints 'module ... has gone fishing'" in fault
