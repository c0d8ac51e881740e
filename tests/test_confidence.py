"""Confidence computed from depth: drawn surfaces, calibration on rendered rooms, and what the importer writes of it."""

import sys

from cli import UserError

import cv2
import numpy as np
import pytest
from bag_writing import DEPTH, Messages, recording, write_bag

from config import Intrinsics
from dataset import confidence as module
from dataset.confidence import sensor_confidence, tolerance
from dataset.files import read_json
from dataset.frames import read_confidence, read_depth
from dataset.manifest import read_confidence_origins, read_manifest
from dataset.rectification import Lens
from dataset.registration import Registration

WIDTH, HEIGHT = 96, 72
FOCAL = 80.0
K = (FOCAL, FOCAL, 47.5, 35.5)
CAMERA = Intrinsics(*K, WIDTH, HEIGHT)
SPLIT = ("--test-frames", 1, "--val-frames", 0, "--gap-frames", 0)


def plane(normal: tuple[float, float, float], distance: float) -> np.ndarray:
    """Depth of the plane normal . point = distance, float32 [H,W]."""
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    along = normal[0] * (u - K[2]) / FOCAL + normal[1] * (v - K[3]) / FOCAL + normal[2]
    return np.where(along > 1e-3, distance / np.maximum(along, 1e-3), 0).astype(np.float32)


def noisy(depth: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(depth.shape)
    return np.where(depth > 0, np.maximum(depth + deviation * noise, 0.01), 0).astype(np.float32)


@pytest.mark.parametrize(
    ("normal", "distance"),
    [((0, 0, 1), 2.0), ((0.7, 0, 0.7), 1.5), ((0, 1, 0), 0.25)],
    ids=["wall", "slanted", "floor"],
)
def test_clean_planes_are_kept(normal, distance):
    """The floor is seen from 0.25 m, up to 4 m away, where neighbouring rows are farther apart than the tolerance."""
    depth = plane(normal, distance)
    depth[depth > 4] = 0
    found = sensor_confidence(noisy(depth, 0.001))
    assert found.shape == depth.shape and found.dtype == np.float32
    assert (found[depth > 0] > 0.5).mean() > 0.99
    assert np.median(found[depth > 0]) > 0.95
    np.testing.assert_array_equal(found[depth == 0], 0)


def test_flying_pixels_are_dropped_and_the_edge_beside_them_is_kept():
    depth = np.where(np.arange(WIDTH) < 48, np.float32(1.0), np.float32(3.0)) * np.ones((HEIGHT, 1), np.float32)
    depth[:, 48] = np.random.default_rng(0).uniform(1.2, 2.8, HEIGHT)
    found = sensor_confidence(noisy(depth, 0.002))
    assert (found[:, 48] < 0.5).mean() > 0.9
    assert (found[:, 46:48] > 0.5).mean() > 0.95 and (found[:, 49:51] > 0.5).mean() > 0.95
    assert np.median(found[:, :44]) > 0.99


def test_noise_lowers_confidence():
    wall = plane((0, 0, 1), 1.0)
    means = [sensor_confidence(noisy(wall, deviation)).mean() for deviation in (0.001, 0.005, 0.01, 0.02, 0.05)]
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.98 and means[-1] < 0.5


def test_the_tolerance_grows_with_depth():
    """The same noise in metres matters less far away: 2 % of 4 m is 8 cm."""
    near, far = (sensor_confidence(noisy(plane((0, 0, 1), z), 0.02)).mean() for z in (1.0, 4.0))
    assert far > near + 0.1
    np.testing.assert_allclose(tolerance(np.array([0.3, 1.0, 4.0])), [0.02, 0.02, 0.08])


def test_readings_alone_have_less_confidence_than_on_a_surface():
    depth = plane((0, 0, 1), 2.0)
    alone = np.zeros_like(depth)
    alone[::4, ::4] = depth[::4, ::4]
    assert sensor_confidence(alone)[alone > 0].max() < np.median(sensor_confidence(depth))


@pytest.mark.parametrize(
    "depth",
    [
        np.zeros((5, 7)),
        np.full((60, 4), np.nan),
        np.full((4, 60), -1.0),
        np.array([[1.0]]),
        np.array([[np.inf, -np.inf, np.nan, 1e-30, 1e30, 3e38, 1.0, 1.001, 0.001, 1000.0]]),
        np.where(np.random.default_rng(0).random((70, 50)) < 0.5, 1e-3, 1e3),
        np.zeros((0, 5)),
    ],
    ids=["empty", "nan", "negative", "one pixel", "extremes", "extreme steps", "no rows"],
)
def test_any_input_gives_finite_confidence(depth):
    with np.errstate(all="raise", under="ignore"):
        found = sensor_confidence(depth.astype(np.float32))
    assert found.shape == depth.shape and found.dtype == np.float32
    valid = (depth >= 1e-3) & (depth <= 1e3)
    assert not found[~valid].any()
    assert ((found[valid] > 1 / 255) & (found[valid] <= 1)).all()  # 0 means no reading, also in files of 8 bits


def test_strips_leave_no_seams(monkeypatch):
    rng = np.random.default_rng(0)
    depth = np.tile(noisy(plane((0, 0.7, 0.7), 1.5), 0.01), (4, 1))
    depth[rng.random(depth.shape) < 0.2] = 0
    found = sensor_confidence(depth)
    monkeypatch.setattr(module, "STRIP", len(depth))
    np.testing.assert_array_equal(sensor_confidence(depth), found)


def test_calibration_on_other_rooms_than_those_of_the_fit():
    """In three bands of confidence, the share of right readings is within a few points of the mean confidence."""
    pytest.importorskip("embreex")
    from benchmarks.sensor_confidence import add_noise, render_views

    rng = np.random.default_rng(0)
    found, right = [], []
    for view in render_views(3000, 16):
        reading = add_noise(view.reading, view.truth, rng)
        chosen = (reading > 0) & (view.truth > 0) & view.is_opaque
        found.append(sensor_confidence(reading)[chosen])
        right.append(np.abs(reading - view.truth)[chosen] <= tolerance(view.truth[chosen]))
    confidence, is_right = np.concatenate(found), np.concatenate(right)
    kept = confidence >= 0.5
    assert kept.mean() > 0.9 and is_right[kept].mean() > 0.97 and is_right[~kept].mean() < 0.4
    for low, high, points in ((0, 0.5, 0.1), (0.5, 0.9, 0.1), (0.9, 1.01, 0.02)):
        band = (confidence >= low) & (confidence < high)
        assert abs(confidence[band].mean() - is_right[band].mean()) < points, (low, high)


def test_the_benchmark_refuses_to_test_on_the_rooms_of_the_fit(monkeypatch):
    pytest.importorskip("embreex")
    from benchmarks import sensor_confidence as benchmark

    monkeypatch.setattr("sys.argv", ["sensor_confidence.py", "--seed", "7", "--test-seed", "7"])
    with pytest.raises(UserError, match="would be on the rooms of the fit"):
        benchmark.main()


def frames(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """A slanted wall with noise, a hole and an edge with a flying pixel; pictures that get brighter."""
    made = []
    for number in range(count):
        depth = noisy(plane((0.3, 0, 0.95), 1.5), 0.003, number)
        depth[20:40, 30:50], depth[:8] = 0.7, 0
        depth[30, 50] = 1.1
        grey = np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8)
        made.append((grey, np.rint(1000 * depth).astype(np.uint16)))
    return made


def contents(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*")}


def write_folder(folder, made):
    folder.mkdir()
    for number, (rgb, depth) in enumerate(made):
        cv2.imwrite(str(folder / f"{number:06d}.color.png"), rgb)
        cv2.imwrite(str(folder / f"{number:06d}.depth.png"), depth)
    np.savetxt(folder / "camera-intrinsics.txt", [[FOCAL, 0, K[2]], [0, FOCAL, K[3]], [0, 0, 1]])
    return folder


@pytest.mark.parametrize("source", ["bag", "folder"])
def test_the_importer_computes_missing_confidence(tmp_path, importer, source):
    made = frames(4)
    if source == "bag":
        path = write_bag(tmp_path / "drive", "mcap", recording("mcap", made, K))
    else:
        path = write_folder(tmp_path / "drive", made)
    out = tmp_path / "out"
    code, printed, _ = importer("--input", path, "--out", out, *SPLIT)
    assert code == 0 and ("confidence computed" in printed or "confidence is computed" in printed)
    for number, (_, depth) in enumerate(made):
        found = read_confidence(out / f"confidence/{number:06d}.png")
        np.testing.assert_allclose(found, sensor_confidence(depth.astype(np.float32) / 1000), atol=0.5 / 255 + 1e-6)
        assert found[30, 50] < 0.5 < np.median(found[depth > 0]) and not found[depth == 0].any()
    assert read_confidence_origins(out / "confidence.json") == {f"{n:06d}": "computed" for n in range(4)}
    assert "calibrated on a simulated" in read_json(out / "source.json")["confidence"]
    whole = contents(out)
    for name in ("splits.json", "confidence.json", "confidence/000001.png", "depth/000001.png", "rgb/000002.png"):
        (out / name).unlink()
    assert importer("--input", path, "--out", out, *SPLIT)[0] == 0
    assert contents(out) == whole
    code, _, errors = importer("--input", path, "--out", out, *SPLIT, "--confidence", "valid")
    assert code == 2 and "different settings" in errors[0]
    assert importer("--input", path, "--out", tmp_path / "valid", *SPLIT, "--confidence", "valid")[0] == 0
    expected = {name: content for name, content in whole.items() if "confidence" not in name and name != "source.json"}
    others = contents(tmp_path / "valid")
    assert "confidence" not in read_json(tmp_path / "valid/source.json") and others.pop("source.json")
    assert others == expected


def test_the_sensors_own_map_comes_first(tmp_path, importer):
    """A frame whose map is missing gets a computed one."""
    made, messages = frames(4), Messages("mcap")
    entries = recording("mcap", made, K)
    own = np.full((HEIGHT, WIDTH), 204, np.uint8)
    times = [time for topic, time, _ in entries if topic == DEPTH]
    entries += [
        ("/camera/confidence/image", time, messages.raw(time, "camera_color_optical_frame", "mono8", own))
        for time in times[:3]
    ]
    bag = write_bag(tmp_path / "drive", "mcap", entries)
    code, _, errors = importer("--input", bag, "--out", tmp_path / "out", *SPLIT, "--max-offset", 0.01)
    assert code == 0 and any("1 of 4 frames" in line for line in errors)
    assert list(read_json(tmp_path / "out/confidence.json").values()) == ["sensor"] * 3 + ["computed"]
    assert (read_confidence(tmp_path / "out/confidence/000002.png") == np.float32(0.8)).all()
    computed = sensor_confidence(made[3][1].astype(np.float32) / 1000)
    np.testing.assert_allclose(read_confidence(tmp_path / "out/confidence/000003.png"), computed, atol=0.5 / 255 + 1e-6)


def test_confidence_is_computed_before_registration(tmp_path, importer):
    made = frames(2)
    messages = Messages("mcap")
    entries = [entry for entry in recording("mcap", made, K) if entry[0] != "/camera/depth/camera_info"]
    sensor = (FOCAL, FOCAL, K[2] + 3, K[3])
    info = messages.info("camera_color_optical_frame", (WIDTH, HEIGHT), sensor)
    bag = write_bag(tmp_path / "drive", "mcap", [*entries, ("/camera/depth/camera_info", entries[0][1], info)])
    assert importer("--input", bag, "--out", tmp_path / "out", *SPLIT)[0] == 0
    depth = made[1][1].astype(np.float32) / 1000
    registration = Registration(Lens.pinhole(Intrinsics(*sensor, WIDTH, HEIGHT)), CAMERA, np.eye(4))
    registered, expected = registration.register_with(depth, sensor_confidence(depth))
    np.testing.assert_allclose(read_depth(tmp_path / "out/depth/000001.png"), registered, atol=0.0006)
    np.testing.assert_allclose(read_confidence(tmp_path / "out/confidence/000001.png"), expected, atol=0.5 / 255 + 1e-6)


def test_rows_record_what_computed_the_confidence(tmp_path, importer, monkeypatch, capsys):
    from teacher_infer import build_manifest

    out = tmp_path / "out"
    assert importer("--input", write_folder(tmp_path / "drive", frames(3)), "--out", out, *SPLIT)[0] == 0

    def rows(*flags: object):
        given = ("--rgb-dir", out / "rgb", "--depth-dir", out / "depth", "--output", out / "manifest.jsonl", *flags)
        monkeypatch.setattr(sys, "argv", ["build_manifest.py", *map(str, given), "--allow-missing-teachers"])
        build_manifest.main()
        return read_manifest(out / "manifest.jsonl")

    for row in rows():
        assert row.confidence == out / f"confidence/{row.stem}.png"
        assert row.made_by["confidence"]["backend"] == "computed"
        assert "simulated time-of-flight" in row.made_by["confidence"]["model"]
    (out / "confidence").rename(out / "other")
    assert all("confidence" not in row.made_by for row in rows("--confidence-dir", out / "other"))
    (out / "other").rename(out / "confidence")
    (out / "confidence.json").write_text('{"000000": "guessed"}')
    with pytest.raises(UserError, match="comes from 'sensor' or 'computed', not 'guessed'"):
        rows()
