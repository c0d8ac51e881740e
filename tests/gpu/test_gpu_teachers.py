"""The teachers' networks with random weights on a GPU, against the same code on the CPU.

A GPU runs them in half precision. Depth of random weights spans a few per cent, so differences are measured against a
map's spread (max - min).
"""

import cv2
import numpy as np
import pytest
from small_run import call, exit_code
from test_depth_parity import da3_folder, depth_anything, raw_depth, zoe_depth
from test_teacher_segmentation import BOXES, write_weights

from dataset.files import read_npy
from teacher_infer import depth_backends, object_backends, run_da3

pytestmark = pytest.mark.gpu
RESOLUTION = 252  # pixels, half of DA3's own
BATCH = 2


def pictures(count: int = 3) -> list[np.ndarray]:
    """Smooth random images, uint8 [120,160,3]."""
    small = np.random.default_rng(0).integers(0, 255, (count, 12, 16, 3), dtype=np.uint8)
    return [cv2.resize(image, (160, 120), interpolation=cv2.INTER_CUBIC) for image in small]


def mean_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean absolute difference, as a fraction of the expected map's spread."""
    return float(np.abs(found - expected).mean() / np.ptp(expected))


@pytest.fixture(scope="module")
def da3_small(gpu, tmp_path_factory):
    return da3_folder("da3-small", tmp_path_factory.mktemp("da3-small"))


@pytest.mark.parametrize("name", ["da3-small", "da3metric-large"])
def test_da3_depth_is_that_of_the_cpu(name, gpu, tmp_path):
    folder, images = str(da3_folder(name, tmp_path)), pictures()
    expected = [raw for raw, _ in raw_depth(depth_backends.DA3(folder, "cpu", RESOLUTION, BATCH), images)]
    backend = depth_backends.DA3(folder, str(gpu), RESOLUTION, BATCH)
    found = [raw for raw, _ in raw_depth(backend, images)]
    differences = [mean_difference(a, b) for a, b in zip(found, expected, strict=True)]
    distinct = [len(np.unique(raw)) for raw in found]
    print(f"{name}: mean difference / spread {differences}, distinct values {distinct}")
    assert max(differences) < 0.01 < 2 * mean_difference(found[1], expected[0]), "less than between two images"
    assert min(distinct) > 1000, "the head is in half precision"
    assert backend.provenance["precision"] == "half"


@pytest.mark.parametrize("build", [depth_anything, zoe_depth])
def test_transformers_depth_is_that_of_the_cpu(build, gpu, tmp_path):
    build(tmp_path)
    depths = {}
    for device in ("cpu", str(gpu)):
        backend = depth_backends.Transformers(str(tmp_path), device, BATCH)
        prepared = [backend.prepare(str(n), image, None) for n, image in enumerate(pictures())]
        depths[device] = list(map(backend.finish, prepared, backend.infer(prepared)))
    for found, expected in zip(depths[str(gpu)], depths["cpu"], strict=True):
        print(f"mean difference / spread {mean_difference(found, expected)}, {len(np.unique(found))} distinct values")
        assert mean_difference(found, expected) < 0.01
        assert len(np.unique(found)) > 0.5 * len(np.unique(expected))


def test_sam2_masks_are_those_of_the_cpu(gpu, tmp_path):
    folder, (rgb, *_) = write_weights(tmp_path), pictures()
    boxes = np.float32(BOXES)[:, :4]
    backends = {
        device: object_backends.YoloSam2(folder / "yolov8n.pt", folder / "sam2.1_hiera_tiny.pt", None, device)
        for device in ("cpu", str(gpu))
    }
    (masks, ious), (expected, expected_ious) = (backends[device].masks_of(rgb, boxes) for device in (str(gpu), "cpu"))
    agreement = (masks == expected).mean(axis=(1, 2))
    print(f"pixels that agree: {agreement}, predicted IoU {ious}, on the CPU {expected_ious}")
    assert agreement.min() > 0.95 and ious == pytest.approx(expected_ious, abs=0.02)
    found = backends[str(gpu)].find([(str(n), image) for n, image in enumerate(pictures())])
    assert found == [[]] * 3, "YOLO with random weights finds nothing"


@pytest.fixture
def stage_flags(da3_small, gpu, tmp_path):
    """A function that returns the flags of run_da3.py on nine frames."""
    (tmp_path / "rgb").mkdir()
    for number, image in enumerate(pictures(9)):
        cv2.imwrite(str(tmp_path / f"rgb/{number}.png"), image)

    def flags(out: str, device: object) -> list[object]:
        model = ["--model-id", da3_small, "--process-res", RESOLUTION, "--fx", 130]
        return ["--input-dir", tmp_path / "rgb", "--output-dir", tmp_path / out, *model, "--device", device]

    return flags


def test_depth_stage_writes_what_it_writes_on_the_cpu(stage_flags, gpu, tmp_path):
    """A whole batch, one that is filled up, and threads that read and write."""
    for out, device in (("found", gpu), ("expected", "cpu")):
        assert call(run_da3.main, *stage_flags(out, device)) == 0
    for number in range(9):
        found, expected = (read_npy(tmp_path / f"{out}/{number}.npy") for out in ("found", "expected"))
        assert found.shape == (120, 160) and mean_difference(found, expected) < 0.01


def test_depth_stage_out_of_memory_is_one_line(stage_flags, gpu, little_memory, tmp_path, capsys):
    little_memory(2**26)
    capsys.readouterr()
    assert exit_code(run_da3.main, *stage_flags("out", gpu)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "out of GPU memory: use a smaller --batch-size" in line or "error: out of memory (" in line
    assert not list((tmp_path / "out").rglob("*.npy"))
