"""Planes in one metric depth map: points, normals, gravity, and planes whose depth drifts smoothly.

The camera's axes are x right, y down, z forward; points are metres. Everything is computed on about 320 columns.

1. Normals: on a plane, inverse depth is an affine function of image coordinates, so a local least-squares fit of
   inverse depth gives the normal, and its residual says whether the place is planar at all.
2. Gravity: the direction most normals are parallel or perpendicular to (Gupta, Arbelaez, Malik, Perceptual
   Organization and Recognition of Indoor Scenes from RGB-D Images, CVPR 2013, section 3.1), from the prior that
   the camera is held roughly upright.
3. Surfaces: a network's scale, and a sensor's calibration, drift over the image, so a wall is a plane times a smooth
   factor, fitted robustly; the spread of its own residuals says how far from it a point may lie.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from config import Intrinsics
from teacher_infer.sensor_rim import sensor_rim

WORKING_WIDTH = 320
FINE, COARSE = 2, 5  # radii in working pixels of the two normal fits; the coarse one counts where it is planar
PLANAR = 0.012  # largest relative rms residual of depth against the fitted plane
EVEN = 0.04  # relative difference of readings that are averaged into one working pixel: no edge lies among them

RIM_VALID = 0.25  # share of a row that has depth where the map begins
WIDEST_RIM = 0.1  # of the rows

PRIOR_GRAVITY = (0.0, 1.0, 0.0)
LARGEST_PITCH, LARGEST_ROLL = np.radians(40), np.radians(20)
GRAVITY_ANGLES = (45, 45, 30, 15, 15, 15)  # degrees within which a normal counts as parallel or perpendicular

FACING = np.cos(np.radians(20))  # of a normal and the direction that it should have
ALIKE = np.cos(np.radians(50))  # the same for what joins a plane that is known: drift of depth tilts normals
BIN = 0.03  # metres, of plane offsets
HOLE_BEHIND = (0.3, 1.1)  # a sensor that reads more than depth * 1.1 + 0.3 m looks through
FARTHEST = 50.0  # metres along the optical axis at which a plane is seen

DEGREE = 3  # of the polynomial in image coordinates that drift is
DRIFT = 0.05  # its coefficients' standard deviation before anything is measured: depth drifts by some per cent
STIFF = 0.002  # the same in the first rounds: where depth is exact, furniture before a wall is left out
STIFF_ROUNDS = 3
LARGEST_DRIFT = 0.15  # of depth
INDEPENDENT = 300  # readings that a surface's count as: errors of neighbours are alike
SAMPLES = 1500  # readings that a surface is fitted to
ROUNDS = 7  # of reweighting; every one lets the surface grow to what it then reaches
QUANTILE, OF_NORMAL = 0.3, 0.385  # of absolute residuals, and of a standard normal distribution's: gives the spread
SPREAD = (0.001, 0.03)  # least and largest relative spread of a surface's readings
GROWTH = 0.05  # relative distance within which readings join a surface while it grows
READ = 0.3  # least share of a surface that the sensor must read for it to be fitted there alone: the rest may be panes
PART = 0.3  # share of a connected place, all facing alike, that makes the rest of it join
THICKNESS = 0.02  # metres: rugs, skirting and picture frames lie on their planes
SPREADS = 3.0  # spreads that a reading may lie off beyond that


@dataclass
class Scene:
    """The working copy of a frame.

    points, normals, rays: float [h,w,3], rays being points at depth 1; inverse: float [h,w], inverse depth, 0 = none;
    valid, planar, hole, rim: bool [h,w]; hole: where the sensor looks and reads nothing; rim: where it does not;
    area: float [h,w], the square metres that a pixel shows.
    """

    points: np.ndarray
    normals: np.ndarray
    rays: np.ndarray
    inverse: np.ndarray
    valid: np.ndarray
    planar: np.ndarray
    hole: np.ndarray
    rim: np.ndarray
    area: np.ndarray

    @property
    def first_row(self) -> int:
        """The first row that has depth: a sensor's map, registered to the colour camera, has an empty rim."""
        row = int((self.valid.mean(axis=1) > RIM_VALID).argmax())
        return row if row <= WIDEST_RIM * len(self.valid) else 0  # more is no rim but a sensor that saw nothing there

    @property
    def focal(self) -> float:
        """Working pixels."""
        return float(1 / (self.rays[0, 1, 0] - self.rays[0, 0, 0]))

    @cached_property
    def tolerance(self) -> np.ndarray:
        """Metres that a point may lie off its plane: errors of depth grow with it."""
        return 0.04 + 0.025 * self.points[..., 2]


@dataclass
class Plane:
    """Points X with normal . X = offset; the normal, a unit vector, points to the camera's side (offset < 0)."""

    normal: np.ndarray
    offset: float

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Signed metres in front of the plane, [..., 3] -> [...]."""
        return points @ self.normal - self.offset


@dataclass
class Surface:
    """A plane with drift.

    inverse: float [h,w], its inverse depth along each ray; distance: float32 [h,w], signed metres of what is seen in
    front of it (inf where it can't be); tolerance: metres that what lies on it may be off; members: bool [h,w],
    planar places on it that face as it does.
    """

    plane: Plane
    inverse: np.ndarray
    distance: np.ndarray
    tolerance: float
    members: np.ndarray

    @property
    def on(self) -> np.ndarray:
        """What lies on it, whichever way it faces, bool [h,w]."""
        return np.abs(self.distance) < self.tolerance


def make_scene(
    depth: np.ndarray, intrinsics: Intrinsics, sensor_depth: np.ndarray | None, common_rim: np.ndarray | None = None
) -> Scene:
    """Points, normals and holes at about WORKING_WIDTH columns; arguments as those of geometry.classify()."""
    height, width = depth.shape
    scale = min(1.0, WORKING_WIDTH / width)
    size = (round(width * scale), round(height * scale))
    z = _shrink(depth, size)
    camera = intrinsics.resized(*size)
    u = (np.arange(size[0]) - camera.cx) / camera.fx
    v = (np.arange(size[1]) - camera.cy) / camera.fy
    rays = np.stack([*np.meshgrid(u, v), np.ones(size[::-1])], axis=-1)
    valid = z > 0
    inverse = _inverse(z)
    normals, planar = _normals(inverse, valid, rays)
    points = rays * z[..., None]
    incidence = np.abs(_dot(normals, rays)) / np.sqrt(_dot(rays, rays))
    area = np.where(valid, z**2 / (camera.fx * camera.fy) / np.maximum(incidence, 0.1), 0)
    hole, rim = np.zeros_like(valid), np.zeros_like(valid)
    if sensor_depth is not None:
        offset, factor = HOLE_BEHIND
        empty = (sensor_depth <= 0) | (sensor_depth > depth * factor + offset)
        rim = _majority(sensor_rim(sensor_depth, common_rim), size)
        hole = _majority(empty, size) & valid & ~rim
    return Scene(points, normals, rays, inverse, valid, planar, hole, rim, area)


def _majority(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another size, bool: where most of it is true."""
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scalar products [h,w] of vectors [h,w,3], several times as fast as numpy's norm."""
    return np.einsum("hwi,hwi->hw", a, b)


def _inverse(depth: np.ndarray) -> np.ndarray:
    known = depth > 0
    return np.where(known, 1 / np.where(known, depth, 1), 0)


def _shrink(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth float64 [h,w]: the mean of inverse depth, exact on a plane and with less noise; at edges one reading."""
    one = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST).astype(np.float64)
    mean = cv2.resize(_inverse(depth), size, interpolation=cv2.INTER_AREA).astype(np.float64)
    even = np.abs(mean * one - 1) < EVEN
    return np.where(even, 1 / np.where(even, mean, 1), one)


def _normals(inverse: np.ndarray, valid: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    normals, residual = _fit_inverse_depth(inverse, valid, rays, FINE)
    coarse, coarse_residual = _fit_inverse_depth(inverse, valid, rays, COARSE)
    smooth = coarse_residual < PLANAR
    normals[smooth] = coarse[smooth]
    return normals, (smooth | (residual < PLANAR / 2)) & valid


def _fit_inverse_depth(
    inverse: np.ndarray, valid: np.ndarray, rays: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Normals [h,w,3] towards the camera and the relative rms residual [h,w] of a plane in each window.

    n . X = d with X = z (u, v, 1) means 1/z = (n/d) . (u, v, 1): linear least squares in inverse depth.
    """
    u, v, weight = rays[..., 0], rays[..., 1], valid.astype(np.float64)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values * weight, cv2.CV_64F, (2 * radius + 1,) * 2, borderType=cv2.BORDER_CONSTANT)

    total = np.maximum(mean(np.ones_like(u)), 1e-9)
    mu, mv, mq = mean(u) / total, mean(v) / total, mean(inverse) / total
    uu, vv, uv = mean(u * u) / total - mu * mu, mean(v * v) / total - mv * mv, mean(u * v) / total - mu * mv
    uq, vq = mean(u * inverse) / total - mu * mq, mean(v * inverse) / total - mv * mq
    determinant = np.maximum(uu * vv - uv * uv, 1e-18)
    a, b = (uq * vv - vq * uv) / determinant, (vq * uu - uq * uv) / determinant
    normals = -np.stack([a, b, mq - a * mu - b * mv], axis=-1)
    normals /= np.maximum(np.sqrt(_dot(normals, normals)), 1e-12)[..., None]
    variance = mean(inverse * inverse) / total - mq * mq - a * uq - b * vq
    residual = np.sqrt(np.maximum(variance, 0)) / np.maximum(mq, 1e-9)
    residual[total < 0.5] = np.inf  # half the window is missing
    return normals, residual


def find_gravity(scene: Scene) -> np.ndarray:
    """Unit vector that points down, float64 [3]; the prior when normals give none that is near it."""
    normals = scene.normals[scene.planar][::3]
    prior = down = np.array(PRIOR_GRAVITY)
    if len(normals) < 100:
        return prior
    for angle in np.radians(GRAVITY_ANGLES):
        along = np.abs(normals @ down)
        parallel, perpendicular = normals[along > np.cos(angle)], normals[along < np.sin(angle)]
        _, vectors = np.linalg.eigh(perpendicular.T @ perpendicular - parallel.T @ parallel)
        down = vectors[:, 0] * np.sign(vectors[:, 0] @ prior)
        pitch, roll = np.arctan2(down[2], np.hypot(down[0], down[1])), np.arctan2(down[0], down[1])
        if abs(pitch) > LARGEST_PITCH or abs(roll) > LARGEST_ROLL:
            return prior
    return down


def peaks(offsets: np.ndarray, weights: np.ndarray, smallest: float) -> list[float]:
    """Offsets in rising order at which at least `smallest` weight lies within about 2 bins."""
    start = offsets.min() - 3 * BIN
    bins = int((offsets.max() - start) / BIN) + 5
    histogram = np.bincount(((offsets - start) / BIN).astype(int), weights, minlength=bins)
    smooth = np.convolve(histogram, np.ones(5), mode="same")
    inner = smooth[1:-1]
    peak = (inner >= smallest) & (inner >= smooth[:-2]) & (inner > smooth[2:])
    return [start + (index + 1.5) * BIN for index in np.flatnonzero(peak)]


def refine(scene: Scene, plane: Plane, candidates: np.ndarray, vertical_to: np.ndarray | None = None) -> Plane:
    """Least-squares plane through the candidates near `plane`; with `vertical_to`, among planes parallel to it."""
    all_points, all_weights, tolerance = (each[candidates] for each in (scene.points, scene.area, scene.tolerance))
    for width in (2.0, 1.0):
        near = np.abs(plane.distance(all_points)) < width * tolerance
        if near.sum() < 20:
            return plane
        points, weights = all_points[near], all_weights[near][:, None]
        centre = (points * weights).sum(0) / weights.sum()
        spread = (points - centre) * np.sqrt(weights)
        scatter = spread.T @ spread
        if vertical_to is not None:
            scatter += 1e6 * np.trace(scatter) * np.outer(vertical_to, vertical_to)
        normal = np.linalg.eigh(scatter)[1][:, 0]
        normal = normal if normal @ plane.normal > 0 else -normal
        if normal @ plane.normal < FACING:
            return plane
        plane = Plane(normal, float(normal @ centre))
    return plane


def near_plane(scene: Scene, plane: Plane, width: float) -> np.ndarray:
    """Valid places within `width` tolerances of a plane, bool [h,w]."""
    return scene.valid & (np.abs(plane.distance(scene.points)) < width * scene.tolerance)


def fit_surface(scene: Scene, plane: Plane, among: np.ndarray) -> Surface:
    """The surface of the places `among`, bool [h,w], that lie on a plane but for drift.

    Of a plane the inverse depth is flat = n . ray / d; measured is flat * scale, and scale a polynomial of low degree.
    The distance from the plane is |d| times the relative error of depth, so an error of scale counts the same on all
    of it, however far it is. Where the sensor reads enough of it, drift is fitted to that: it would bend the wall
    towards the panes in it otherwise.
    """
    flat = scene.rays @ (plane.normal / plane.offset)
    seen = scene.valid & (flat > 1 / FARTHEST)
    scale = np.where(seen, scene.inverse / np.where(seen, flat, 1), np.inf)
    depth = -plane.offset
    towards = scene.normals @ plane.normal
    alike = among & seen & (towards > ALIKE)
    near = alike & (towards > FACING) & (depth * np.abs(1 - 1 / scale) < 1.5 * scene.tolerance)
    _, parts = cv2.connectedComponents(alike.astype(np.uint8), connectivity=4)
    share = np.bincount(parts[near], minlength=parts.max() + 1) / np.bincount(parts.ravel())
    near |= alike & (share[parts] > PART)
    sampled = alike & ~scene.hole
    if (near & sampled).sum() < READ * near.sum():
        sampled = alike
    drift, spread = _fit_drift(scale, near & sampled, sampled)
    distance = np.where(seen, depth * (1 - drift / scale), np.inf)
    distance = cv2.medianBlur(distance.astype(np.float32), 3)
    tolerance = THICKNESS + SPREADS * spread * depth
    return Surface(plane, flat * drift, distance, tolerance, alike & (np.abs(distance) < tolerance))


def _fit_drift(scale: np.ndarray, near: np.ndarray, alike: np.ndarray) -> tuple[np.ndarray, float]:
    """(drift float [h,w], relative spread of the readings about it) of scale float [h,w], measured / plane's.

    Iteratively reweighted least squares with a prior that draws to no drift, from the places `near`; in each round
    those `alike` that it comes to lie on are in.
    """
    x, y = (np.vander(np.linspace(-1, 1, n), DEGREE + 1, increasing=True) for n in scale.shape[::-1])
    powers = [(i, j) for i in range(DEGREE + 1) for j in range(DEGREE + 1 - i)]
    rows, columns = np.nonzero(alike)
    step = max(1, len(rows) // SAMPLES)
    rows, columns = rows[::step], columns[::step]
    basis = np.stack([y[rows, j] * x[columns, i] for i, j in powers], axis=-1)
    error, members = scale[rows, columns] - 1, near[rows, columns]
    weights, spread = members.astype(float), SPREAD[1]
    coefficients = np.zeros(len(powers))
    for deviation in STIFF_ROUNDS * [STIFF] + (ROUNDS - STIFF_ROUNDS) * [DRIFT]:
        if not members.any():
            break
        weighted = basis * (weights * INDEPENDENT / members.sum() / spread**2)[:, None]
        coefficients = np.linalg.solve(weighted.T @ basis + np.eye(len(powers)) / deviation**2, weighted.T @ error)
        residual = np.abs(error - basis @ coefficients)
        spread = float(np.clip(np.quantile(residual[members], QUANTILE) / OF_NORMAL, *SPREAD))
        members = residual < max(GROWTH, SPREADS * spread)
        weights = members / (1 + (residual / (2 * spread)) ** 2) ** 2
    factors = np.zeros((DEGREE + 1, DEGREE + 1))
    factors[tuple(np.transpose(powers))] = coefficients
    return 1 + np.clip(y @ factors.T @ x.T, -LARGEST_DRIFT, LARGEST_DRIFT), spread
