"""predict.py on images, folders and videos of box rooms."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from cli import EXIT_OK, EXIT_STOPPED, STOP_SIGNALS, UserError

import cv2
import numpy as np
import pytest
import torch
from box_room import CAMERA
from PIL import ExifTags, Image
from small_run import SIZE, call, exit_code

import predict
from config import IGNORE
from dataset.files import read_image, write_png
from dataset.manifest import read_manifest
from dataset.video import Video, open_video_writer


@pytest.fixture(scope="module")
def run(trained):
    """predict.py with the trained student: run(input, output folder, flags...)."""

    def predict_into(source: Path, output: Path, *flags: object, code: int = EXIT_OK) -> Path:
        checkpoint = trained / "checkpoints/best.pt"
        flags = ("--checkpoint", checkpoint, "--input", source, "--output-dir", output, "--device", "cpu", *flags)
        assert call(predict.main, *flags) == code
        return output

    return predict_into


@pytest.fixture(scope="module")
def image(manifest) -> Path:
    return read_manifest(manifest)[5].rgb


def depth_of(output: Path, stem: str) -> np.ndarray:
    depth = np.load(output / f"{stem}_depth.npy", allow_pickle=False)
    assert depth.dtype == np.float32
    return depth


def test_single_image(run, image, tmp_path):
    output = run(image, tmp_path, "--save-maps")
    assert sorted(path.name for path in output.iterdir()) == ["005.png", "005_depth.npy", "005_seg.npy"]
    depth, seg = depth_of(output, "005"), np.load(output / "005_seg.npy")
    assert depth.shape == seg.shape == SIZE[::-1]
    assert (depth > 0.05).all() and (depth < 20).all()
    assert seg.dtype == np.uint8 and seg.max() <= 5
    picture = read_image(output / "005.png")
    assert picture.shape[1] > 3 * 320, "image, depth and classes side by side"
    shown = cv2.resize(read_image(image), (320, 240), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(picture[22:262, :320], shown)


def test_folder_keeps_stems_and_respects_the_limit(run, manifest, tmp_path):
    output = run(manifest.parent / "rgb", tmp_path, "--data-limit", 2)
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*")) == ["a/000.png", "a/001.png"]


def test_video(run, manifest, tmp_path):
    source = tmp_path / "walk.mp4"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"mp4v"), 10, SIZE)
    for row in read_manifest(manifest)[:3]:
        writer.write(cv2.imread(str(row.rgb)))
    writer.release()
    output = run(source, tmp_path / "out", "--save-maps", "--data-limit", 2)
    assert {path.name for path in output.iterdir()} == {
        "predictions.mp4",
        *(f"00000{number}_{name}.npy" for number in (0, 1) for name in ("depth", "seg")),
    }
    video = cv2.VideoCapture(str(output / "predictions.mp4"))
    pictures = [video.read()[1] for _ in range(3)]
    assert pictures[2] is None and pictures[0].shape == pictures[1].shape
    assert pictures[0].shape[1] > 3 * 320 and pictures[0].std() > 10


def write_video(manifest: Path, path: Path, fps: float = 10, pictures: int = 3) -> Path:
    with open_video_writer(path, fps, SIZE) as append:
        for row in read_manifest(manifest)[:pictures]:
            append(read_image(row.rgb))
    return path


@pytest.mark.parametrize("fps", [7, 29.97])
def test_video_keeps_its_frame_rate(run, manifest, tmp_path, fps):
    output = run(write_video(manifest, tmp_path / "walk.mp4", fps), tmp_path / "out")
    written = Video(str(output / "predictions.mp4"))
    assert written.fps == pytest.approx(fps, rel=1e-3)
    assert len(list(written.frames(None))) == 3


def test_unwritable_video(trained, manifest, tmp_path, monkeypatch, capfd):
    source = write_video(manifest, tmp_path / "walk.mp4")
    writer = mock.Mock(**{"isOpened.return_value": False})
    monkeypatch.setattr(cv2, "VideoWriter", mock.Mock(return_value=writer, fourcc=cv2.VideoWriter.fourcc))
    flags = ("--input", source, "--output-dir", tmp_path / "out", "--device", "cpu")
    assert exit_code(predict.main, "--checkpoint", trained / "checkpoints/best.pt", *flags) == 2
    assert "can't write a video" in capfd.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def after_first_picture(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Run `action` while the first picture is drawn."""
    draw, drawn = predict.draw_prediction, []

    def draw_and_act(*maps: np.ndarray) -> np.ndarray:
        if not drawn:
            action()
        drawn.append(1)
        return draw(*maps)

    monkeypatch.setattr(predict, "draw_prediction", draw_and_act)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_keeps_finished_files(run, manifest, tmp_path, monkeypatch, capsys, number):
    after_first_picture(monkeypatch, lambda: os.kill(os.getpid(), number))
    output = run(manifest.parent / "rgb", tmp_path / "out", code=EXIT_STOPPED)
    assert [path.relative_to(output).as_posix() for path in output.rglob("*.*")] == ["a/000.png"]
    assert f"stopped by {number.name}: 1 images done, more remaining" in capsys.readouterr().out


def test_stopped_video_is_playable(run, manifest, tmp_path, monkeypatch):
    source = write_video(manifest, tmp_path / "walk.mp4")
    after_first_picture(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    output = run(source, tmp_path / "out", code=EXIT_STOPPED)
    assert len(list(Video(str(output / "predictions.mp4")).frames(None))) == 1
    assert [path.name for path in output.iterdir()] == ["predictions.mp4"]


def test_signal_during_the_last_image_is_complete(run, image, tmp_path, monkeypatch):
    after_first_picture(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert (run(image, tmp_path / "out") / "005.png").is_file()


@pytest.mark.parametrize(("limit", "code"), [((), EXIT_OK), (("--data-limit", 100), EXIT_STOPPED)])
def test_signal_ends_a_camera(run, manifest, tmp_path, monkeypatch, limit, code):
    """A camera has no end, unless there is a limit."""
    source, opened = write_video(manifest, tmp_path / "walk.mp4"), cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda what: opened(str(source) if what == 0 else what))
    after_first_picture(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.chdir(tmp_path)
    output = run("0", tmp_path / "out", *limit, code=code)
    assert len(list(Video(str(output / "predictions.mp4")).frames(None))) == 1


@pytest.mark.parametrize("name", ["a.bmp", "a.webp", "a.TIF", "a.jfif", "a.gif", "a"])
def test_image_formats_keep_their_stem(run, image, tmp_path, name):
    formats = {".jfif": "JPEG", "": "PNG"}
    with Image.open(image) as picture:
        picture.save(tmp_path / name, formats.get(Path(name).suffix))
    output = run(tmp_path / name, tmp_path / "out")
    assert [path.name for path in output.iterdir()] == ["a.png"]


def test_animation_is_a_video(run, manifest, tmp_path):
    pages = [Image.open(row.rgb).quantize(64) for row in read_manifest(manifest)[:2]]
    pages[0].save(tmp_path / "walk.gif", save_all=True, append_images=pages[1:], duration=200)
    output = run(tmp_path / "walk.gif", tmp_path / "out")
    assert [path.name for path in output.iterdir()] == ["predictions.mp4"]


def test_exif_orientation_is_applied(run, image, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    rgb = read_image(image)
    (tmp_path / "in").mkdir()
    Image.fromarray(np.ascontiguousarray(np.rot90(rgb))).save(tmp_path / "in/turned.png", exif=exif)
    write_png(tmp_path / "in/upright.png", rgb)
    output = run(tmp_path / "in", tmp_path / "out", "--save-maps")
    np.testing.assert_array_equal(depth_of(output, "turned"), depth_of(output, "upright"))


def test_outputs_are_not_read_as_inputs(run, image, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    copy = tmp_path / "in/1.png"
    copy.write_bytes(image.read_bytes())
    with pytest.raises(UserError, match="--output-dir .* is the folder of the images"):
        run(tmp_path / "in", tmp_path / "in")
    with pytest.raises(UserError, match="1.png would be overwritten by its prediction"):
        run(copy, tmp_path / "in")
    assert copy.read_bytes() == image.read_bytes() and [path.name for path in copy.parent.iterdir()] == ["1.png"]
    monkeypatch.chdir(tmp_path / "in")
    for _ in range(2):
        run(Path("."), Path("predictions"))
        assert [path.name for path in Path("predictions").iterdir()] == ["1.png"]


def test_unreadable_images_are_skipped_and_listed(run, image, tmp_path, capfd):
    (tmp_path / "in").mkdir()
    for name in ("1.png", "3.png"):
        (tmp_path / "in" / name).write_bytes(image.read_bytes())
    (tmp_path / "in/2.jpg").write_text("404 not found")
    output = run(tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in output.iterdir()) == ["1.png", "3.png", "failed_frames.jsonl"]
    (line,) = (output / "failed_frames.jsonl").read_text().splitlines()
    assert json.loads(line)["stem"] == "2" and "not a readable image" in json.loads(line)["reason"]
    assert "1 images unreadable" in capfd.readouterr().err
    for name in ("1.png", "3.png"):
        (tmp_path / "in" / name).unlink()
    with pytest.raises(UserError, match="not a readable image"):
        run(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("name", ["caf\udce9.png", "caf\udce9.mp4", "caf\udce9/1.png"])
def test_non_utf8_names_are_rejected(trained, image, manifest, tmp_path, capfd, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    source = write_video(manifest, tmp_path / "walk.mp4") if name.endswith("mp4") else image
    path.write_bytes(source.read_bytes())
    for given in (path, path.parent if "/" not in name and name.endswith("png") else tmp_path):
        flags = ("--input", given, "--output-dir", tmp_path.parent / "out", "--device", "cpu")
        code = exit_code(predict.main, "--checkpoint", trained / "checkpoints/best.pt", *flags)
        error = capfd.readouterr().err
        if name == "caf\udce9/1.png" and given == path:
            assert code == 0, error  # the stem itself is UTF-8
        elif not (name.endswith("mp4") and given == tmp_path):
            assert code == 2 and "caf\\udce9" in error and "not UTF-8" in error and error.count("\n") == 1, error


def test_wide_image_is_cropped_not_squeezed(run, image, tmp_path):
    """Only the central 4:3 crop of a 16:9 image is predicted; outside it are NaN and 255."""
    window = cv2.resize(read_image(image), (120, 90))
    wide = np.full((90, 160, 3), 90, np.uint8)
    wide[:, 20:140] = window
    write_png(tmp_path / "in/wide.png", wide)
    write_png(tmp_path / "in/window.png", window)
    output = run(tmp_path / "in", tmp_path / "out", "--save-maps")
    depth, seg = depth_of(output, "wide"), np.load(output / "wide_seg.npy")
    outside = np.ones((90, 160), dtype=bool)
    outside[:, 20:140] = False
    np.testing.assert_array_equal(np.isnan(depth), outside)
    np.testing.assert_array_equal(seg == IGNORE, outside)
    np.testing.assert_array_equal(depth[:, 20:140], depth_of(output, "window"))
    assert read_image(output / "wide.png").std() > 10


def test_depth_is_metric_for_the_given_camera(run, image, tmp_path):
    """The flags override the training data's camera; depth is proportional to the focal length."""
    camera = vars(CAMERA.resized(*SIZE))
    longer = camera | {"fx": camera["fx"] * 1.25, "fy": camera["fy"] * 1.25}
    (tmp_path / "camera.json").write_text(json.dumps(longer))
    as_trained = depth_of(run(image, tmp_path / "0", "--save-maps"), "005")
    focal = ("--fx", longer["fx"], "--fy", longer["fy"])
    for name, flags in (("1", ("--camera", tmp_path / "camera.json")), ("2", focal)):
        depth = depth_of(run(image, tmp_path / name, "--save-maps", *flags), "005")
        np.testing.assert_allclose(depth, as_trained * 1.25, rtol=1e-5)


def test_focal_length_is_per_image_size(run, image, tmp_path):
    """--fx is in pixels of the input: for an image of twice the size, the same fx means half the focal length."""
    rgb = read_image(image)
    write_png(tmp_path / "in/large.png", cv2.resize(rgb, (320, 240)))
    write_png(tmp_path / "in/small.png", rgb)
    (tmp_path / "camera.json").write_text(json.dumps(vars(CAMERA)))
    output = run(tmp_path / "in", tmp_path / "flags", "--save-maps", "--fx", 130, "--fy", 130)
    ratio = np.median(depth_of(output, "large")) / np.median(depth_of(output, "small"))
    assert ratio == pytest.approx(0.5, abs=0.02)
    output = run(tmp_path / "in", tmp_path / "file", "--save-maps", "--camera", tmp_path / "camera.json")
    ratio = np.median(depth_of(output, "large")) / np.median(depth_of(output, "small"))
    assert ratio == pytest.approx(1, abs=0.04), "camera.json is rescaled to each image's size"


def test_missing_camera_warns_once(trained, manifest, tmp_path, capsys):
    content = torch.load(trained / "checkpoints/best.pt", weights_only=True)
    content["notes"]["camera"] = None
    torch.save(content, tmp_path / "several.pt")
    flags = ("--input", manifest.parent / "rgb", "--output-dir", tmp_path / "out", "--device", "cpu")
    assert call(predict.main, "--checkpoint", tmp_path / "several.pt", *flags, "--data-limit", 2) == 0
    warning = capsys.readouterr().err
    # the reference camera at 160x120: NYU's 519 pixels of 640
    assert warning.count("WARNING") == 1 and "a focal length of 130 pixels and a field of view of 63 degrees" in warning


def lens_exif(focal_35mm: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a phone"  # Pillow drops EXIF data that consist of sub-directories alone
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = focal_35mm
    return exif


@pytest.mark.parametrize(("focal_35mm", "turned"), [(26, False), (26, True), (52, False)])
def test_focal_length_of_a_photograph(run, image, tmp_path, capsys, focal_35mm, turned):
    """A lens of 43.27 mm has a focal length of one diagonal of the image, 200 pixels for 160x120."""
    exif = lens_exif(focal_35mm)
    pixels = read_image(image)
    if turned:
        exif[ExifTags.Base.Orientation] = 6
        pixels = np.ascontiguousarray(np.rot90(pixels))
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    depth = depth_of(run(tmp_path / "photo.png", tmp_path / "photo", "--save-maps"), "photo")
    expected = 200 * focal_35mm / np.hypot(36, 24)
    assert f"a focal length of {expected:.0f} pixels" in capsys.readouterr().err
    given = run(image, tmp_path / "given", "--save-maps", "--fx", expected, "--fy", expected)
    np.testing.assert_allclose(depth, depth_of(given, "005"), rtol=1e-6)


def test_flags_override_the_exif_focal_length(run, image, tmp_path, capsys):
    exif = lens_exif(26)
    Image.fromarray(read_image(image)).save(tmp_path / "photo.png", exif=exif)
    flags = ("--save-maps", "--fx", 130, "--fy", 130)
    depth = depth_of(run(tmp_path / "photo.png", tmp_path / "photo", *flags), "photo")
    np.testing.assert_array_equal(depth, depth_of(run(image, tmp_path / "plain", *flags), "005"))


@pytest.mark.parametrize("focal_35mm", [0, 1, 5000])
def test_impossible_exif_focal_lengths_are_ignored(run, image, tmp_path, focal_35mm):
    Image.fromarray(read_image(image)).save(tmp_path / "photo.png", exif=lens_exif(focal_35mm))
    depth = depth_of(run(tmp_path / "photo.png", tmp_path / "photo", "--save-maps"), "photo")
    np.testing.assert_array_equal(depth, depth_of(run(image, tmp_path / "plain", "--save-maps"), "005"))


def test_camera_of_another_aspect_ratio_is_rejected(run, image, tmp_path):
    (tmp_path / "camera.json").write_text(json.dumps(vars(CAMERA) | {"height": 360}))
    with pytest.raises(UserError, match="160x120 pixels"):
        run(image, tmp_path / "out", "--camera", tmp_path / "camera.json")
    assert not (tmp_path / "out").exists()
