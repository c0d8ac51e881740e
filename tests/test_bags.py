"""Importing ROS bags: written here with rosbags, from real frames (RGBD_FRAMES) and from drawn ones."""

import json
import os
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
import pytest
from bag_writing import (
    DEPTH,
    IMAGE,
    KINDS,
    RGB,
    START,
    Messages,
    bag_file,
    recording,
    write_bag,
)

from dataset import bag_messages
from dataset.files import read_image, read_json
from dataset.frames import find_frames, read_confidence, read_depth, read_frame
from dataset.manifest import Cameras, read_manifest

ROOT = Path(__file__).resolve().parents[1]
KITCHEN = Path(os.environ.get("RGBD_FRAMES") or ROOT.parent / "shared" / "rgbd_kitchen")
needs_kitchen = pytest.mark.skipif(not KITCHEN.is_dir(), reason=f"no real frames at {KITCHEN} (set RGBD_FRAMES)")
K_KITCHEN = (528.0, 528.0, 323.7, 240.0)
WIDTH, HEIGHT = 64, 48
K = (60.0, 60.0, 31.5, 23.5)
SPLIT = ("--test-frames", 1, "--val-frames", 0, "--gap-frames", 0)


def kitchen(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    files = sorted(KITCHEN.glob("*.color.jpg"))[:: 300 // count][:count]
    return [
        (cv2.imread(str(f))[..., ::-1], cv2.imread(str(f).replace("color.jpg", "depth.png"), cv2.IMREAD_UNCHANGED))
        for f in files
    ]


def drawn(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """A wall with a gradient, so that JPEG is near; each frame brighter than the last, depth unique to the frame."""
    x = np.arange(WIDTH, dtype=np.uint8)[None].repeat(HEIGHT, 0)
    frames = []
    for number in range(count):
        rgb = np.stack([x * 2, x * 2 + 20, np.full_like(x, 10 * number % 200)], -1)
        depth = (1000 + 10 * number + x.astype(np.uint16)).astype(np.uint16)
        depth[:4, :4] = 0
        frames.append((rgb, depth))
    return frames


def check_frames(out: Path, frames, numbers, max_rgb: float = 0, max_depth: float = 0.0006) -> None:
    """The folder holds these frames, under their number among the colour pictures, within the encoding's error."""
    assert sorted(find_frames(out / "rgb")) == [f"{number:06d}" for number in numbers]
    for number in numbers:
        rgb, millimetres = frames[number]
        found = read_image(find_frames(out / "rgb")[f"{number:06d}"])
        assert np.abs(found.astype(int) - rgb).mean() <= max_rgb, number
        depth = read_depth(out / f"depth/{number:06d}.png")
        expected = np.where(millimetres == 65535, 0, millimetres) / 1000
        assert np.abs(depth - expected).max() <= max_depth * max(1, expected.max()), number
        np.testing.assert_array_equal(depth > 0, expected > 0)


@needs_kitchen
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("colour", "depth", "compression", "max_rgb", "max_depth"),
    [
        ("rgb8", "16UC1", "", 0, 0),
        ("bgr8", "32FC1", "zip", 0, 1e-6),
        ("jpeg", "compressedDepth", "", 3, 0),
        ("jpeg", "compressedDepth 32FC1", "zip", 3, 0.005),
    ],
)
def test_real_frames_come_back(tmp_path, importer, kind, colour, depth, compression, max_rgb, max_depth):
    frames = kitchen(4)
    compression = {"bag": "lz4"}.get(kind, "zstd") if compression else ""
    bag = write_bag(tmp_path / "corridor", kind, recording(kind, frames, K_KITCHEN, colour, depth), compression)
    code, printed, errors = importer("--input", bag, "--out", tmp_path / "out", *SPLIT)
    assert code == 0 and errors == [], errors
    check_frames(tmp_path / "out", frames, range(4), max_rgb, max_depth + 1e-6)
    assert f"colour {RGB}" in printed and f"depth {DEPTH}" in printed
    camera = Cameras.read(tmp_path / "out/camera.json").for_frame("000000")
    assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height) == (*K_KITCHEN, 640, 480)
    times = read_json(tmp_path / "out/times.json")
    assert times == pytest.approx({f"{n:06d}": n / 30 for n in range(4)}, abs=1e-8)
    assert set(read_json(tmp_path / "out/recordings.json").values()) == {"corridor"}


def test_compressed_pictures_keep_their_bytes(tmp_path, importer):
    entries = recording("mcap", drawn(3), K, "jpeg")
    assert importer("--input", write_bag(tmp_path / "bag", "mcap", entries), "--out", tmp_path / "out", *SPLIT)[0] == 0
    sent = [message.data.tobytes() for topic, _, message in entries if topic == f"{RGB}/compressed"]
    assert [file.read_bytes() for file in sorted((tmp_path / "out/rgb").iterdir())] == sent


def test_raw_pictures_as_jpeg(tmp_path, importer):
    frames = drawn(3)
    bag = write_bag(tmp_path / "bag", "mcap", recording("mcap", frames, K))
    assert importer("--input", bag, "--out", tmp_path / "out", *SPLIT, "--rgb-format", "jpg")[0] == 0
    assert {file.suffix for file in (tmp_path / "out/rgb").iterdir()} == {".jpg"}
    check_frames(tmp_path / "out", frames, range(3), max_rgb=3)


@pytest.mark.parametrize("kind", KINDS)
def test_messages_in_any_order(tmp_path, importer, kind):
    """Times of recording, times of measurement, and the order in the file are three different things."""
    frames = drawn(8)
    entries = recording(kind, frames, K)
    order = np.random.default_rng(1).permutation(len(entries))
    shuffled = [(entries[i][0], START + int(n) * 10**7, entries[i][2]) for n, i in enumerate(order)]
    bag = write_bag(tmp_path / "bag", kind, shuffled)
    code, _, errors = importer("--input", bag, "--out", tmp_path / "out", *SPLIT)
    assert code == 0
    assert errors == [f"warning: {RGB}: pictures are not in the order of their times; sorted"]
    check_frames(tmp_path / "out", frames, range(8))


@pytest.mark.parametrize(
    ("kind", "compression"), [("mcap", ""), ("mcap", "zstd"), ("db3", ""), ("bag", ""), ("bag", "lz4")]
)
def test_cut_tail_keeps_all_frames_before_it(tmp_path, importer, kind, compression):
    frames = drawn(40)
    bag = write_bag(tmp_path / "bag", kind, recording(kind, frames, K), compression)
    file = bag_file(bag)
    content = file.read_bytes()
    # cut in the middle of frame 30's depth, or of what is there in a compressed file
    marker = frames[30][1][20].tobytes()
    position = content.find(marker)
    position = position if position > 0 else len(content) // 2
    file.write_bytes(content[:position])
    if kind == "mcap":
        (bag / "metadata.yaml").unlink()  # written last
    code, _, errors = importer("--input", bag, "--out", tmp_path / "out", *SPLIT)
    assert code == 0, errors
    cut = [line for line in errors if file.name in line]
    assert len(cut) == 1 and "what comes after it is missing" in cut[0]
    kept = len(find_frames(tmp_path / "out/rgb"))
    assert kept == 30 if not compression and kind != "db3" else kept > 5
    check_frames(tmp_path / "out", frames, range(kept))


@pytest.mark.parametrize("kind", ["mcap", "bag"])
def test_flipped_byte_costs_one_block(tmp_path, importer, kind):
    rng = np.random.default_rng(1)
    frames = [(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8), depth) for _, depth in drawn(240)]
    compression = "zstd" if kind == "mcap" else "bz2"
    bag = write_bag(tmp_path / "bag", kind, recording(kind, frames, K), compression)
    content = bytearray(bag_file(bag).read_bytes())
    second = content.index(b"\x28\xb5\x2f\xfd", content.index(b"\x28\xb5\x2f\xfd") + 4) if kind == "mcap" else 0
    content[second or len(content) // 2] ^= 0xFF
    bag_file(bag).write_bytes(content)
    code, _, errors = importer("--input", bag, "--out", tmp_path / "out", *SPLIT)
    assert code == 0
    assert any("skipped 1 damaged blocks" in line for line in errors), errors
    assert 50 < len(find_frames(tmp_path / "out/rgb")) < 240


def test_checksums_are_compared(tmp_path, importer):
    """rosbags writes none; with one, as other recorders write it, a flipped pixel is noticed."""
    bag = write_bag(tmp_path / "bag", "mcap", recording("mcap", drawn(240), K))
    content, position, chunks = bytearray(bag_file(bag).read_bytes()), 8, []
    while content[position] != 0x0F:  # end of data
        length = int.from_bytes(content[position + 1 : position + 9], "little")
        if content[position] == 0x06:
            chunks.append((position + 9, position + 9 + length))
        position += 9 + length
    for start, end in chunks:  # three times (8 bytes), checksum, name of the compression, length, records
        content[start + 24 : start + 28] = crc32(content[start + 40 : end]).to_bytes(4, "little")
    bag_file(bag).write_bytes(content)
    assert importer("--input", bag, "--out", tmp_path / "whole", *SPLIT)[2] == []
    content[(chunks[1][0] + chunks[1][1]) // 2] ^= 1
    bag_file(bag).write_bytes(content)
    assert any(
        "skipped 1 damaged blocks" in line for line in importer("--input", bag, "--out", tmp_path / "out", *SPLIT)[2]
    )


def test_missing_camera_info_needs_flags(tmp_path, importer):
    frames = drawn(3)
    entries = [entry for entry in recording("mcap", frames, K) if "camera_info" not in entry[0]]
    bag = write_bag(tmp_path / "bag", "mcap", entries)
    code, _, errors = importer("--input", bag, "--out", tmp_path / "out", *SPLIT)
    assert code == 2 and f"has no camera_info for {RGB}: set --fx" in errors[0]
    assert not (tmp_path / "out").exists()
    flags = ("--fx", K[0], "--fy", K[1], "--cx", K[2], "--cy", K[3])
    code, _, errors = importer("--input", bag, "--out", tmp_path / "out", *SPLIT, *flags)
    assert code == 0 and errors == [f"warning: {RGB}: its camera is that of the flags"]
    check_frames(tmp_path / "out", frames, range(3))


def test_dropped_depth_costs_its_frames(tmp_path, importer):
    frames = drawn(9)
    entries = recording("mcap", frames, K)
    dropped = {START + round(n * 1e9 / 30) + 3_000_000 for n in (2, 3)}
    entries = [entry for entry in entries if entry[0] != DEPTH or entry[1] not in dropped]
    bag = write_bag(tmp_path / "bag", "mcap", entries)
    code, _, errors = importer("--input", bag, "--out", tmp_path / "out", *SPLIT, "--max-offset", 0.01)
    assert code == 0
    assert errors == [f"warning: {RGB}: 2 of 9 pictures have no depth within 10 ms"]
    check_frames(tmp_path / "out", frames, [0, 1, 4, 5, 6, 7, 8])
    lines = (tmp_path / "out/failed_frames.jsonl").read_text().splitlines()
    assert [json.loads(line)["stem"] for line in lines] == ["000002", "000003"]


def test_damaged_messages_are_counted_and_skipped(tmp_path, importer):
    """A cut raw picture and a cut header are found in the first reading, a cut JPEG in the second."""
    frames = drawn(10)
    entries = recording("mcap", frames, K)
    made = Messages("mcap")
    places = [i for i, entry in enumerate(entries) if entry[0] == RGB]
    for number, keep in ((3, -100), (5, 9)):
        topic, time, message = entries[places[number]]
        entries[places[number]] = topic, time, (IMAGE, made.serialize(message)[:keep])
    bag = write_bag(tmp_path / "bag", "mcap", entries)
    code, _, errors = importer("--input", bag, "--out", tmp_path / "out", *SPLIT)
    assert code == 0 and len(errors) == 1
    assert f"{RGB}: skipped 2 damaged messages of 10; first: " in errors[0]
    # numbers count the readable pictures
    readable = [frame for number, frame in enumerate(frames) if number not in (3, 5)]
    check_frames(tmp_path / "out", readable, range(8))


def test_damaged_jpeg_is_listed(tmp_path, importer):
    frames = drawn(10)
    entries = recording("mcap", frames, K, "jpeg")
    place = [i for i, entry in enumerate(entries) if entry[0] == f"{RGB}/compressed"][4]
    message = entries[place][2]
    message.data = message.data[:-40]
    bag = write_bag(tmp_path / "bag", "mcap", entries)
    code, printed, _ = importer("--input", bag, "--out", tmp_path / "out", *SPLIT)
    assert code == 0 and "1 unreadable" in printed
    failed = json.loads((tmp_path / "out/failed_frames.jsonl").read_text())
    assert failed["stem"] == "000004" and "truncated" in failed["reason"]
    assert not (tmp_path / "out/depth/000004.png").exists() and len(find_frames(tmp_path / "out/rgb")) == 9


def test_every_kth_frame_and_motion(tmp_path, importer):
    frames = drawn(9)
    frames[4:7] = [(frames[3][0], depth) for _, depth in frames[4:7]]  # the robot stands still
    bag = write_bag(tmp_path / "bag", "mcap", recording("mcap", frames, K))
    assert importer("--input", bag, "--out", tmp_path / "every", *SPLIT, "--every", 3)[0] == 0
    check_frames(tmp_path / "every", frames, [0, 3, 6])
    assert importer("--input", bag, "--out", tmp_path / "motion", *SPLIT, "--min-motion", 0.5)[0] == 0
    check_frames(tmp_path / "motion", frames, [0, 1, 2, 3, 7, 8])


def test_killed_run_resumes_to_the_same_bytes(tmp_path, importer):
    bag = write_bag(tmp_path / "bag", "mcap", recording("mcap", drawn(6), K))
    command = ("--input", bag, *SPLIT)
    assert importer(*command, "--out", tmp_path / "whole")[0] == 0
    assert importer(*command, "--out", tmp_path / "killed")[0] == 0
    for name in ("splits.json", "camera.json", "times.json", "rgb/000002.png", "depth/000004.png"):
        (tmp_path / "killed" / name).unlink()
    (tmp_path / "killed/depth/.000005.abc.part.png").write_bytes(b"half")
    assert importer(*command, "--out", tmp_path / "killed")[0] == 0
    whole, killed = (
        {
            str(file.relative_to(folder)): file.read_bytes()
            for folder in [tmp_path / name]
            for file in folder.rglob("*.*")
        }
        for name in ("whole", "killed")
    )
    assert whole == killed
    code, _, errors = importer(*command, "--out", tmp_path / "killed", "--every", 2)
    assert code == 2 and "different settings" in errors[0]


def test_topics_by_flag_and_wrong_ones(tmp_path, importer):
    frames, others = drawn(4), [(255 - rgb, depth) for rgb, depth in drawn(4)]
    entries = recording("mcap", frames, K)
    entries += [("/rear/image_raw", time, m) for topic, time, m in recording("mcap", others, K) if topic == RGB]
    bag = write_bag(tmp_path / "bag", "mcap", entries)
    assert importer("--input", bag, "--out", tmp_path / "out", *SPLIT, "--rgb-topic", "/rear/image_raw")[0] == 0
    check_frames(tmp_path / "out", others, range(4))
    for flag in ("--rgb-topic", "--depth-topic", "--rgb-info-topic", "--depth-info-topic", "--imu-topic"):
        code, _, errors = importer("--input", bag, "--out", tmp_path / "out2", *SPLIT, flag, "/none")
        assert code == 2 and errors[0].startswith(f"error: {flag} /none: the bag has no "), errors


def test_unsuitable_bags_are_refused(tmp_path, importer):
    out = tmp_path / "out"
    entries = recording("mcap", drawn(3), K)
    only_colour = write_bag(tmp_path / "colour", "mcap", [entry for entry in entries if entry[0] == RGB])
    assert (
        f"has no depth pictures; topics with pictures: {RGB} (rgb8)"
        in importer("--input", only_colour, "--out", out)[2][0]
    )
    late = [(topic, time, message) for topic, time, message in recording("mcap", drawn(3), K, offset=10**9)]
    assert "set --max-offset" in importer("--input", write_bag(tmp_path / "late", "mcap", late), "--out", out)[2][0]
    centimetres = [(rgb, (depth // 10).astype(np.uint16)) for rgb, depth in drawn(3)]
    bag = write_bag(tmp_path / "cm", "mcap", recording("mcap", centimetres, K))
    assert "--depth-unit cm" in importer("--input", bag, "--out", out)[2][0]
    for name, content in (("empty.mcap", b""), ("text.bag", b"hello" * 100), ("text.db3", b"hello" * 100)):
        (tmp_path / name).write_bytes(content)
        code, _, errors = importer("--input", tmp_path / name, "--out", out)
        assert code == 2 and name in errors[0] and "bag" in errors[0]
    assert not out.exists()


def test_the_script_itself_refuses_in_one_line(tmp_path):
    (tmp_path / "empty.mcap").touch()
    command = [
        sys.executable,
        ROOT / "dataset/corridor_loader.py",
        "--input",
        tmp_path / "empty.mcap",
        "--out",
        tmp_path / "o",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "is not a .mcap bag" in result.stderr


def to_yuv(rgb: np.ndarray) -> np.ndarray:
    """BT.601 with a range of 16 to 235, as video cameras send it."""
    weights = np.array([[65.738, 129.057, 25.064], [-37.945, -74.494, 112.439], [112.439, -94.154, -18.285]]) / 256
    return np.rint(rgb @ weights.T + (16, 128, 128)).astype(np.uint8)


def encode(rgb: np.ndarray, encoding: str) -> np.ndarray:
    """RGB as a camera's encoding stores it."""
    if encoding in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv"):
        yuv = to_yuv(rgb)
        chroma = yuv[..., 1].copy()
        chroma[:, 1::2] = yuv[:, ::2, 2]
        first_luma = encoding in ("yuv422_yuy2", "yuyv")
        return np.stack([yuv[..., 0], chroma] if first_luma else [chroma, yuv[..., 0]], -1)
    if encoding in ("nv12", "nv21"):
        yuv = to_yuv(rgb)
        chroma = yuv[::2, ::2, 1:] if encoding == "nv12" else yuv[::2, ::2, :0:-1]
        return np.concatenate([yuv[..., 0], chroma.reshape(len(rgb) // 2, -1)])
    if encoding.startswith("bayer"):
        pattern, bits = encoding[6:10], int(encoding[10:])
        mosaic = np.empty(rgb.shape[:2], np.uint8)
        for place, letter in enumerate(pattern):
            mosaic[place // 2 :: 2, place % 2 :: 2] = rgb[place // 2 :: 2, place % 2 :: 2, "rgb".index(letter)]
        return mosaic if bits == 8 else mosaic.astype(np.uint16) * 257
    order = {"b": slice(None, None, -1), "8": slice(None, None, -1), "r": slice(None)}[encoding[0]]
    pixels = rgb[..., order]
    if encoding.endswith("16"):
        return np.ascontiguousarray(pixels.astype(">u2" if encoding == "bgr16" else "<u2") * 257)
    alpha = encoding in ("rgba8", "bgra8", "8UC4")
    return np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], -1) if alpha else np.ascontiguousarray(pixels)


@pytest.mark.parametrize("encoding", bag_messages.COLOUR_LAYOUTS)
def test_colour_encodings(encoding):
    """Red, green, blue and grey quarters, with padded rows; a swapped channel or a shifted pattern is far off."""
    rgb = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    rgb[:24, :32], rgb[:24, 32:], rgb[24:, :32] = (200, 40, 40), (40, 180, 60), (50, 60, 190)
    message = Messages("mcap").raw(START, "camera", encoding, encode(rgb, encoding), padding=6, height=HEIGHT)
    found = bag_messages.read_colour(message)
    assert found.shape == rgb.shape and found.dtype == np.uint8
    for y, x in ((12, 16), (12, 48), (36, 16), (36, 48)):  # away from the edges, where chroma is shared
        assert np.abs(found[y, x].astype(int) - rgb[y, x]).max() <= 6, (encoding, found[y, x])


def test_big_endian_and_padded_depth():
    millimetres = np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    message = Messages("mcap").raw(START, "camera", "16UC1", millimetres.astype(">u2"), padding=10)
    np.testing.assert_array_equal(bag_messages.read_single(message), millimetres)


@pytest.mark.parametrize("registered", [True, False])
def test_confidence_and_amplitude(tmp_path, importer, registered):
    """Confidence goes through the same registration as its depth; amplitude needs a scale."""
    frames = drawn(4)
    made = Messages("mcap")
    entries = recording("mcap", frames, K)
    conf = np.tile(np.array([[0, 255]], np.uint8), (HEIGHT, WIDTH // 2))
    conf[:, : WIDTH // 2] = 255
    for _, time, _ in [entry for entry in entries if entry[0] == DEPTH]:
        entries.append(("/camera/confidence/image", time, made.raw(time, "camera_color_optical_frame", "mono8", conf)))
        ir = conf.astype(np.uint16) * 4
        entries.append(("/camera/ir/image_raw", time, made.raw(time, "camera_color_optical_frame", "mono16", ir)))
    if not registered:
        entries = [e for e in entries if e[0] != "/camera/depth/camera_info"]
        info = made.info("camera_color_optical_frame", (WIDTH, HEIGHT), (60.0, 60.0, 33.5, 23.5))
        entries.append(("/camera/depth/camera_info", START, info))
    bag = write_bag(tmp_path / "bag", "mcap", entries)
    assert importer("--input", bag, "--out", tmp_path / "a", *SPLIT)[0] == 0
    found = read_confidence(tmp_path / "a/confidence/000001.png")
    assert found.shape == conf.shape
    shifted = np.roll(conf, 0 if registered else -2, axis=1)
    np.testing.assert_allclose(found[10:, 3:-3], shifted[10:, 3:-3] / 255, atol=0.01)
    flags = ("--confidence-topic", "/camera/ir/image_raw")
    code, _, errors = importer("--input", bag, "--out", tmp_path / "b", *SPLIT, *flags)
    assert code == 2 and "set --half-confidence" in errors[0]
    assert importer("--input", bag, "--out", tmp_path / "b", *SPLIT, *flags, "--half-confidence", 1020)[0] == 0
    assert read_confidence(tmp_path / "b/confidence/000001.png")[20, 10] == pytest.approx(0.5, abs=0.01)


def test_poses_and_gravity_from_tf_and_imu(tmp_path, importer):
    """The camera looks along the robot's x axis, 0.25 m up; the robot drives 1 m/s along the world's x axis."""
    frames = drawn(8)
    made = Messages("mcap")
    frame = "camera_color_optical_frame"
    optical = (-0.5, 0.5, -0.5, 0.5)  # x right, y down, z forward in axes of x forward, y left, z up
    entries = [
        ("/tf_static", START, made.transforms(START, [("base_link", frame, (0.1, 0, 0.25), optical)])),
        ("/tf_static", START, made.transforms(START, [(frame, "imu_link", (0, 0, 0), (0, 0, 0, 1))])),
        *recording("mcap", frames, K),
    ]
    for number in range(-1, 20):
        time = START + number * 50_000_000
        drive = made.transforms(time, [("odom", "base_link", (number * 0.05, 2.0, 0), (0, 0, 0, 1))])
        entries.append(("/tf", time, drive))
        # tilted by 10 degrees around the optical x axis, against base_link, which is level
        up = 9.81 * np.array([0, -np.cos(0.1745), np.sin(0.1745)])
        entries.append(("/imu", time, made.imu(time, "imu_link", up)))
    bag = write_bag(tmp_path / "bag", "mcap", entries)
    code, printed, errors = importer("--input", bag, "--out", tmp_path / "out", *SPLIT)
    assert code == 0 and errors == []
    assert "8 poses in odom" in printed and "gravity of 8 frames from IMU" in printed
    pose = np.array(read_json(tmp_path / "out/poses.json")["000006"])
    np.testing.assert_allclose(pose[:3, 3], [0.1 + 6 / 30, 2.0, 0.25], atol=1e-6)
    np.testing.assert_allclose(pose[:3, :3] @ [0, 0, 1], [1, 0, 0], atol=1e-6)
    gravity = np.array(read_json(tmp_path / "out/gravity.json")["000006"])
    np.testing.assert_allclose(gravity, [0, np.cos(0.1745), -np.sin(0.1745)], atol=1e-4)
    without = write_bag(tmp_path / "without", "mcap", [entry for entry in entries if entry[0] != "/imu"])
    assert "gravity of 8 frames from tf frame odom" in importer("--input", without, "--out", tmp_path / "o2", *SPLIT)[1]
    np.testing.assert_allclose(read_json(tmp_path / "o2/gravity.json")["000006"], [0, 1, 0], atol=1e-6)
    assert importer("--input", bag, "--out", tmp_path / "o3", *SPLIT, "--world-frame", "mars")[0] == 2


def test_bags_of_a_folder_are_recordings(tmp_path, importer):
    for number in range(4):
        write_bag(tmp_path / f"drives/drive{number}", "mcap", recording("mcap", drawn(3), K))
    code, printed, _ = importer("--input", tmp_path / "drives", "--out", tmp_path / "out")
    assert code == 0 and "12 frames (train 6, val 3, test 3)" in printed
    splits = read_json(tmp_path / "out/splits.json")
    assert {stem.split("/")[0] for stem in splits["test"]} == {"drive3"}
    assert splits["train"][0] == "drive0/000000" and (tmp_path / "out/rgb/drive0/000000.png").is_file()
    recordings = read_json(tmp_path / "out/recordings.json")
    assert recordings["drive2/000001"] == "drive2" and len(set(recordings.values())) == 4
    code, printed, _ = importer("--input", tmp_path / "drives", "--out", tmp_path / "time", "--split", "time", *SPLIT)
    assert code == 0 and "12 frames (train 8, val 0, test 4)" in printed


def test_from_a_bag_to_rows(tmp_path, importer, monkeypatch):
    """The walk-through's import and manifest: rows know recording, time, pose, gravity and confidence."""
    from teacher_infer import build_manifest

    made, frame, frames = Messages("mcap"), "camera_color_optical_frame", drawn(6)
    entries = [
        ("/tf_static", START, made.transforms(START, [("map", frame, (1, 2, 3), (-0.5, 0.5, -0.5, 0.5))])),
        *recording("mcap", frames, K),
    ]
    certain = np.full((HEIGHT, WIDTH), 204, np.uint8)
    entries += [
        ("/camera/confidence/image", time, made.raw(time, frame, "mono8", certain))
        for topic, time, _ in entries
        if topic == DEPTH
    ]
    out = tmp_path / "data"
    assert importer("--input", write_bag(tmp_path / "drive", "mcap", entries), "--out", out, *SPLIT)[0] == 0
    flags = ("--rgb-dir", out / "rgb", "--depth-dir", out / "depth", "--output", out / "manifest.jsonl")
    monkeypatch.setattr(sys, "argv", ["build_manifest.py", *map(str, flags), "--allow-missing-teachers"])
    build_manifest.main()
    rows = read_manifest(out / "manifest.jsonl")
    assert [row.split for row in rows] == ["train"] * 5 + ["test"] and {row.recording for row in rows} == {"drive"}
    assert [row.time for row in rows] == pytest.approx([n / 30 for n in range(6)], abs=1e-8)
    assert np.array(rows[2].pose)[:3, 3].tolist() == [1, 2, 3]
    assert rows[2].gravity == pytest.approx((0, 1, 0), abs=1e-6)
    loaded = read_frame(rows[2])
    assert loaded.confidence[20, 20] == pytest.approx(0.8) and loaded.depth[20, 20] == pytest.approx(1.04)
    assert loaded.intrinsics.fx == K[0]
