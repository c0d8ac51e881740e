"""Cameras from text files and flags."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from cli import UserError

import numpy as np

from config import Intrinsics
from dataset.files import decode_text
from dataset.listing import is_ignored
from dataset.manifest import check_camera
from dataset.rectification import Lens

FOCAL_TOLERANCE = 1e-3  # relative difference between flag and intrinsics file above which to warn
MAX_CENTRE_OFFSET = 0.15  # of the image size; real principal points lie within a few per cent of the centre


@dataclass(frozen=True)
class CameraSettings:
    """The cameras that the user gave.

    Attributes:
        file: text file with the colour camera's 3x3 matrix.
        values: fx, fy, cx and cy of the colour camera, those that were given.
        distortion: model and coefficients of the colour camera.
        depth_file: text file with the depth camera's 3x3 matrix.
        extrinsics: float [4,4], from points of the depth camera to points of the colour camera.
    """

    file: Path | None = None
    values: dict[str, float] = field(default_factory=dict)
    distortion: tuple[str, tuple[float, ...]] = ("", ())
    depth_file: Path | None = None
    extrinsics: np.ndarray | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the colour camera is given."""
        return self.file is not None or len(self.values) == 4

    def lens(self, values: dict[str, float], size: tuple[int, int], where: str) -> Lens:
        """The colour camera with this matrix and the user's distortion; raises UserError if it is implausible."""
        camera = check_camera(Intrinsics(**values, width=size[0], height=size[1]), where)
        warn_off_centre(camera)
        return Lens.parse(camera, *self.distortion, where)

    def depth_lens(self, size: tuple[int, int]) -> Lens | None:
        """The depth camera; None if it was not given. Raises UserError if it is implausible."""
        if self.depth_file is None:
            return None
        camera = Intrinsics(**read_matrix(self.depth_file), width=size[0], height=size[1])
        return Lens.pinhole(check_camera(camera, str(self.depth_file)))


def read_matrix(path: Path) -> dict[str, float]:
    """Read fx, fy, cx, cy from a text file with a 3x3 camera matrix; raises UserError if it is invalid."""
    matrix = _read_numbers(path)
    if matrix.shape == (4, 4) and matrix[3].tolist() == [0, 0, 0, 1] and not matrix[:3, 3].any():  # ScanNet's
        matrix = matrix[:3, :3]
    expected = "[fx 0 cx; 0 fy cy; 0 0 1]"
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise UserError(f"{path} is not a 3x3 camera matrix {expected} (shape {list(matrix.shape)})")
    return matrix_values(matrix, str(path))


def matrix_values(matrix: np.ndarray, where: str) -> dict[str, float]:
    """fx, fy, cx, cy of a camera matrix [3,3]; raises UserError naming `where` if it is none."""
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or matrix[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]].tolist() != [0, 0, 0, 0, 1]:
        raise UserError(f"{where} is not a camera matrix [fx 0 cx; 0 fy cy; 0 0 1] with fx and fy above 0")
    fx, fy, cx, cy = (float(matrix[cell]) for cell in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return {"fx": fx, "fy": fy, "cx": cx, "cy": cy}


def read_transform(path: Path) -> np.ndarray:
    """Read a rigid transform, four rows of four numbers in metres; float64 [4,4]. Raises UserError if it is none."""
    matrix = _read_numbers(path)
    rotation = matrix[:3, :3]
    is_rigid = (
        matrix.shape == (4, 4)
        and np.isfinite(matrix).all()
        and matrix[3].tolist() == [0, 0, 0, 1]
        and np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3)
        and np.linalg.det(rotation) > 0
    )
    if not is_rigid:
        raise UserError(f"{path} is not a rigid transform: four rows of four numbers, a rotation and metres")
    if np.abs(matrix[:3, 3]).max() > 2:
        raise UserError(
            f"{path}: the cameras are {np.abs(matrix[:3, 3]).max():g} m apart; give metres, not millimetres"
        )
    return matrix


def _read_numbers(path: Path) -> np.ndarray:
    try:
        return np.loadtxt(decode_text(path.read_bytes()).splitlines(), ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a text file of numbers: {error}") from None


def find_intrinsics(folder: Path, settings: CameraSettings, known: dict[str, float] | None = None) -> dict[str, float]:
    """fx, fy, cx, cy in pixels of the colour images.

    They come from flags, the given file, the folder's *intrinsics*.txt, or `known` of the layout, in this order.
    Warns if a flag overrides a different value of the file. Raises UserError if a value is missing.
    """
    file = settings.file
    if file is None and known is None:
        files = (path for path in folder.iterdir() if not is_ignored(path.name))
        found = sorted(path for path in files if fnmatch(path.name.lower(), "*intrinsics*.txt"))
        if len(found) > 1 and len(settings.values) < 4:
            raise UserError(f"{folder} contains {', '.join(path.name for path in found)}: choose one with --intrinsics")
        file = found[0] if len(found) == 1 else None
    values = read_matrix(file) if file else dict(known or {})
    for name, value in settings.values.items():
        if name in values and abs(value - values[name]) > FOCAL_TOLERANCE * abs(values[name]):
            print(f"warning: --{name} {value:g} overrides {values[name]:g} from {file or folder}", file=sys.stderr)
    values |= settings.values
    missing = [f"--{name}" for name in ("fx", "fy", "cx", "cy") if name not in values]
    if missing:
        raise UserError(f"{folder} has no *intrinsics*.txt: set --intrinsics FILE or {' '.join(missing)}")
    return values


def warn_off_centre(camera: Intrinsics) -> None:
    """Warn if the principal point is far from the centre: a sign of intrinsics for another resolution."""
    right, below = (camera.cx + 0.5) / camera.width - 0.5, (camera.cy + 0.5) / camera.height - 0.5
    if max(abs(right), abs(below)) > MAX_CENTRE_OFFSET:
        print(
            f"warning: the principal point {camera.cx:g}, {camera.cy:g} is far from the centre of images of "
            f"{camera.width}x{camera.height}: are the intrinsics for another resolution?",
            file=sys.stderr,
        )


def parse_distortion(words: Sequence[str] | None) -> tuple[str, tuple[float, ...]]:
    """Model and coefficients from the words of --distortion; raises UserError if they are no numbers."""
    if not words:
        return "", ()
    try:
        return words[0], tuple(float(word) for word in words[1:])
    except ValueError:
        raise UserError(f"--distortion {' '.join(words)}: expected a model and its coefficients") from None
