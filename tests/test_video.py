"""Reading and writing videos."""

import struct
from pathlib import Path

from cli import UserError

import cv2
import numpy as np
import pytest

from dataset import video
from dataset.video import DEFAULT_FPS, Video, open_video_writer

WIDTH, HEIGHT = 64, 48


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A dark image with a red upper left quarter."""
    rgb = np.full((height, width, 3), 20 + number, np.uint8)
    rgb[: height // 2, : width // 2] = 230, 30, 30
    return rgb


def write_video(path: Path, fps: float, pictures: int = 4, width: int = WIDTH, height: int = HEIGHT) -> Path:
    with open_video_writer(path, fps, (width, height)) as append:
        for number in range(pictures):
            append(picture(number, width, height))
    return path


@pytest.mark.parametrize("fps", [5, 23.976, 29.97, 59.94, 119.88, 0.5])
def test_video_keeps_its_frame_rate_and_content(tmp_path, fps):
    read = Video(str(write_video(tmp_path / "1.mp4", fps)))
    assert read.fps == pytest.approx(fps, rel=1e-3) and not read.is_live
    pictures = list(read.frames(None))
    assert len(pictures) == 4 and pictures[0].shape == (HEIGHT, WIDTH, 3)
    assert np.abs(pictures[0].astype(int) - picture(0)).mean() < 10
    assert [path.name for path in tmp_path.iterdir()] == ["1.mp4"]


def test_unsupported_frame_rate_falls_back(tmp_path):
    assert Video(str(write_video(tmp_path / "1.mp4", 90000))).fps == DEFAULT_FPS


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_source_without_frame_rate(tmp_path, monkeypatch, fps):
    class Capture:
        """A VideoCapture with another frame rate; OpenCV's class can't be subclassed."""

        def __init__(self, path):
            self.capture = opened(path)
            self.read, self.release = self.capture.read, self.capture.release

        def get(self, number):
            return fps if number == cv2.CAP_PROP_FPS else self.capture.get(number)

    opened = cv2.VideoCapture
    path = write_video(tmp_path / "1.mp4", 10)
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    assert Video(str(path)).fps == DEFAULT_FPS


@pytest.mark.parametrize(("width", "height"), [(65, 48), (64, 49), (65, 49)])
def test_odd_sizes_are_padded(tmp_path, width, height):
    (first, *_) = Video(str(write_video(tmp_path / "1.mp4", 10, width=width, height=height))).frames(None)
    assert first.shape == (height + height % 2, width + width % 2, 3)
    assert np.abs(first[:height, :width].astype(int) - picture(0, width, height)).mean() < 10


def test_unavailable_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoWriter", BrokenWriter)
    monkeypatch.setattr(BrokenWriter, "opens", False)
    with pytest.raises(OSError, match="can't write a video to .*1.mp4"):
        write_video(tmp_path / "1.mp4", 10)
    assert not list(tmp_path.iterdir())


class BrokenWriter:
    """A VideoWriter whose disk fills up, which OpenCV does not report."""

    fourcc, actual, kept = cv2.VideoWriter.fourcc, cv2.VideoWriter, 500
    opens = True

    def __init__(self, path, *settings):
        self.path, self.writer = Path(path), self.actual(path, *settings)
        self.write = self.writer.write

    def isOpened(self):
        return self.opens

    def release(self):
        self.writer.release()
        self.path.write_bytes(self.path.read_bytes()[: self.kept])


@pytest.mark.parametrize("kept", [0, 500, -400])
def test_unreadable_result_is_an_error(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(cv2, "VideoWriter", BrokenWriter)
    monkeypatch.setattr(BrokenWriter, "kept", kept)
    with pytest.raises(OSError, match="writing .*1.mp4 failed"):
        write_video(tmp_path / "1.mp4", 10)
    assert not list(tmp_path.iterdir())


def test_frame_of_another_size_is_rejected(tmp_path):
    with (
        pytest.raises(OSError, match="a frame is 32x48, the video 64x48"),
        open_video_writer(tmp_path / "1.mp4", 10, (WIDTH, HEIGHT)) as append,
    ):
        append(picture(0))
        append(picture(0, width=32))
    assert not list(tmp_path.iterdir())


def rotate_by_90(path: Path) -> None:
    """Set the rotation in the track header, as phones do: 90 degrees clockwise (ISO 14496-12, 8.3.2)."""
    content = path.read_bytes()
    matrix = content.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">i", content, matrix) == (1 << 16,)
    turn = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30)
    path.write_bytes(content[:matrix] + turn + content[matrix + len(turn) :])


def test_rotated_video_is_upright(tmp_path):
    path = write_video(tmp_path / "1.mp4", 10)
    rotate_by_90(path)
    (first, *_) = Video(str(path)).frames(None)
    assert first.shape == (WIDTH, HEIGHT, 3)
    upright = np.rot90(picture(0), -1)
    assert np.abs(first.astype(int) - upright).mean() < 10


@pytest.mark.parametrize("path", ["caf\udce9.mp4", "caf\udce9/1.mp4"])
def test_non_utf8_paths_are_rejected(tmp_path, path):
    """OpenCV would abort the process."""
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_bytes(write_video(tmp_path / "1.mp4", 10).read_bytes())
    with pytest.raises(UserError, match=r"caf\\udce9.*not UTF-8"):
        Video(str(tmp_path / path))
    with pytest.raises(UserError, match=r"caf\\udce9.*not UTF-8"):
        write_video(tmp_path / path, 10)


@pytest.mark.parametrize("source", ["77", "9" * 30, "²", "٣", "none.mp4", "rtsp://127.0.0.1:1/x", "-1", ""])
def test_invalid_sources_are_rejected(source):
    with pytest.raises(UserError, match="not a readable image, folder, video or camera"):
        list(Video(source).frames(None))


def test_file_named_by_a_number_is_not_a_camera(tmp_path, monkeypatch):
    write_video(tmp_path / "1.mp4", 10).rename(tmp_path / "0")
    monkeypatch.chdir(tmp_path)
    source = Video("0")
    assert not source.is_live and len(list(source.frames(2))) == 2
    assert Video("none.mp4").is_live and video.DEFAULT_FPS == 15
