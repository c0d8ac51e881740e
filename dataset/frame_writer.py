"""Write the frames of a recording into a data folder."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dataset.files import atomic_path, write_npy, write_png
from dataset.frames import to_millimetres

JPEG_QUALITY = 95
RGB_FORMATS = ("png", "jpg")
RGB_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class FrameWriter:
    """Writes rgb/, depth/ and confidence/ of a data folder; a file that exists is not written again.

    Attributes:
        out: the data folder.
        rgb_format: png or jpg, of pictures that are not stored as they came.
        depth_format: png for millimetres, npy for metres.
    """

    out: Path
    rgb_format: str
    depth_format: str

    def has_colour(self, stem: str) -> bool:
        """Whether a frame's picture is written."""
        return any((self.out / "rgb" / f"{stem}{suffix}").is_file() for suffix in RGB_SUFFIXES)

    def has_depth(self, stem: str) -> bool:
        """Whether a frame's depth is written; it is written after its confidence."""
        return self._depth_file(stem).is_file()

    def write_colour(self, stem: str, rgb: np.ndarray) -> None:
        """Write a picture, RGB uint8 [H,W,3]."""
        file = self.out / "rgb" / f"{stem}.{self.rgb_format}"
        if self.rgb_format == "png":
            write_png(file, rgb)
            return
        _, content = cv2.imencode(
            ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        self._write_bytes(file, content.tobytes())

    def copy_colour(self, stem: str, content: bytes, suffix: str) -> None:
        """Write a picture as it came: the content of an image file with this suffix."""
        self._write_bytes(self.out / "rgb" / f"{stem}{suffix}", content)

    def write_depth(self, stem: str, metres: np.ndarray, confidence: np.ndarray | None = None) -> None:
        """Write depth, float32 [H,W] metres, 0 = no reading, and its confidence, float32 [H,W] in 0..1."""
        self._write_confidence(stem, confidence)
        if self.depth_format == "npy":
            write_npy(self._depth_file(stem), metres)
        else:
            write_png(self._depth_file(stem), to_millimetres(metres))

    def copy_depth(self, stem: str, content: bytes, confidence: np.ndarray | None = None) -> None:
        """Write a depth PNG in millimetres as it came, and its confidence."""
        self._write_confidence(stem, confidence)
        self._write_bytes(self._depth_file(stem), content)

    def remove(self, stem: str) -> None:
        """Remove the files of a frame that can't be completed."""
        files = [self.out / "rgb" / f"{stem}{suffix}" for suffix in RGB_SUFFIXES]
        for file in (*files, self._depth_file(stem), self.out / "confidence" / f"{stem}.png"):
            file.unlink(missing_ok=True)

    def _write_confidence(self, stem: str, confidence: np.ndarray | None) -> None:
        if confidence is not None:
            write_png(self.out / "confidence" / f"{stem}.png", np.rint(255 * confidence).astype(np.uint8))

    def _depth_file(self, stem: str) -> Path:
        return self.out / "depth" / f"{stem}.{self.depth_format}"

    @staticmethod
    def _write_bytes(file: Path, content: bytes) -> None:
        with atomic_path(file) as temporary:
            temporary.write_bytes(content)
