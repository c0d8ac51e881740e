"""Plane fitting in a metric depth map: points, normals, gravity, and planes with a smooth scale drift.

Camera axes: x right, y down, z forward. Points are in metres. The computation runs at a width of about 320 pixels.

1. Normals: on a plane, inverse depth is an affine function of image coordinates. A local least-squares fit of inverse
   depth gives the normal; its residual shows whether the neighbourhood is planar.
2. Gravity: the direction that most normals are parallel or perpendicular to (Gupta, Arbelaez, Malik, Perceptual
   Organization and Recognition of Indoor Scenes from RGB-D Images, CVPR 2013, section 3.1). The prior is a roughly
   upright camera.
3. Surfaces: the scale of a network's depth, or of a miscalibrated sensor's, drifts over the image. A wall is therefore
   modelled as a plane times a smooth factor and fitted robustly. The spread of the residuals sets the tolerance.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from config import Intrinsics
from teacher_infer.sensor_rim import find_rim

WORKING_WIDTH = 320
FINE_RADIUS, COARSE_RADIUS = 2, 5  # of the two normal fits, working pixels; the coarse fit is used where it is planar
MAX_PLANAR_RESIDUAL = 0.012  # relative rms residual of depth against the fitted plane
MAX_AVERAGED_DIFFERENCE = 0.04  # relative; larger differences within a working pixel are an edge and are not averaged

MIN_ROW_COVERAGE = 0.25  # fraction of pixels with depth in the first valid row
MAX_EMPTY_ROWS = 0.1  # fraction of rows that an empty top border may take up

PRIOR_GRAVITY = (0.0, 1.0, 0.0)
MAX_PITCH, MAX_ROLL = np.radians(40), np.radians(20)
GRAVITY_ANGLES = (45, 45, 30, 15, 15, 15)  # per iteration, degrees: tolerance for parallel and perpendicular normals

FACING_COSINE = np.cos(np.radians(20))  # minimum cosine between a normal and the expected direction
SIMILAR_COSINE = np.cos(np.radians(50))  # the same for points joining a known plane: drift tilts normals
OFFSET_BIN = 0.03  # metres, of the histogram of plane offsets
SEE_THROUGH = (0.3, 1.1)  # a sensor reading beyond 1.1 * depth + 0.3 m looks through the surface
MAX_PLANE_DEPTH = 50.0  # metres along the optical axis

DRIFT_DEGREE = 3  # of the drift polynomial in image coordinates
DRIFT_STD = 0.05  # prior standard deviation of its coefficients: depth drifts by a few per cent
STIFF_DRIFT_STD = 0.002  # the same in the first rounds, which keeps furniture in front of a wall out of the fit
N_STIFF_ROUNDS = 3
MAX_DRIFT = 0.15  # relative
EFFECTIVE_READINGS = 300  # sample size assumed for a surface, since errors of neighbouring pixels are correlated
MAX_FIT_SAMPLES = 1500  # readings used in the fit of one surface
N_ROUNDS = 7  # of reweighting; the surface can grow in each
SPREAD_QUANTILE, NORMAL_QUANTILE = 0.3, 0.385  # spread = 30 % quantile of |residual| / that of |N(0, 1)|
SPREAD_RANGE = (0.001, 0.03)  # limits of a surface's relative spread
GROWTH_TOLERANCE = 0.05  # relative distance within which readings can join a surface in the next round
MIN_READ_FRACTION = (
    0.3  # a surface is fitted to sensor readings alone if they cover this fraction of it: the rest may be glass
)
MIN_NEAR_FRACTION = 0.3  # a connected component joins a plane if this fraction of it is near the plane
THICKNESS = 0.02  # metres: rugs, skirting boards and picture frames belong to their plane
TOLERANCE_SPREADS = 3.0  # tolerance in units of the spread, on top of THICKNESS


@dataclass
class Scene:
    """A frame at the working resolution.

    Attributes:
        points: float [h,w,3], metres.
        normals: float [h,w,3], unit vectors towards the camera.
        rays: float [h,w,3], points at depth 1.
        inverse_depth: float [h,w], 1/m, 0 = no depth.
        valid: bool [h,w], pixels with depth.
        planar: bool [h,w], pixels whose neighbourhood fits a plane.
        hole: bool [h,w], valid pixels in the sensor's view where it has no reading or looks through the surface.
        rim: bool [h,w], pixels outside the sensor's view.
        area: float [h,w], surface area that a pixel covers, square metres.
    """

    points: np.ndarray
    normals: np.ndarray
    rays: np.ndarray
    inverse_depth: np.ndarray
    valid: np.ndarray
    planar: np.ndarray
    hole: np.ndarray
    rim: np.ndarray
    area: np.ndarray

    @property
    def first_valid_row(self) -> int:
        """First row with depth: a depth map registered to the colour camera may start with empty rows."""
        row = int((self.valid.mean(axis=1) > MIN_ROW_COVERAGE).argmax())
        return row if row <= MAX_EMPTY_ROWS * len(self.valid) else 0  # more empty rows are missing readings

    @property
    def focal(self) -> float:
        """Focal length in working pixels."""
        return float(1 / (self.rays[0, 1, 0] - self.rays[0, 0, 0]))

    @cached_property
    def tolerance(self) -> np.ndarray:
        """Allowed distance of a point from its plane, float [h,w] metres; grows with depth, as depth errors do."""
        return 0.04 + 0.025 * self.points[..., 2]


@dataclass
class Plane:
    """Points X with normal . X = offset. The normal is a unit vector towards the camera's side, so offset < 0."""

    normal: np.ndarray
    offset: float

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Signed distance of points [..., 3] in metres, [...]; positive in front of the plane."""
        return points @ self.normal - self.offset


@dataclass
class Surface:
    """A plane with scale drift.

    Attributes:
        plane: the plane without drift.
        inverse_depth: float [h,w], inverse depth of the surface along each ray.
        distance: float32 [h,w], signed distance of each pixel's point in metres, positive in front of the surface; inf
            where the surface is not visible.
        tolerance: maximum |distance| of inliers, metres.
        members: bool [h,w], planar inliers with a similar normal.
    """

    plane: Plane
    inverse_depth: np.ndarray
    distance: np.ndarray
    tolerance: float
    members: np.ndarray

    @property
    def inliers(self) -> np.ndarray:
        """Pixels within the tolerance, whatever their normal, bool [h,w]."""
        return np.abs(self.distance) < self.tolerance


def build_scene(
    depth: np.ndarray, intrinsics: Intrinsics, sensor_depth: np.ndarray | None, common_rim: np.ndarray | None = None
) -> Scene:
    """Compute points, normals and holes at the working resolution; for the arguments see geometry.classify()."""
    height, width = depth.shape
    scale = min(1.0, WORKING_WIDTH / width)
    size = (round(width * scale), round(height * scale))
    z = _downsample(depth, size)
    camera = intrinsics.resized(*size)
    u = (np.arange(size[0]) - camera.cx) / camera.fx
    v = (np.arange(size[1]) - camera.cy) / camera.fy
    rays = np.stack([*np.meshgrid(u, v), np.ones(size[::-1])], axis=-1)
    valid = z > 0
    inverse = _inverse_depth(z)
    normals, planar = _normals(inverse, valid, rays)
    points = rays * z[..., None]
    incidence = np.abs(_dot(normals, rays)) / np.sqrt(_dot(rays, rays))
    area = np.where(valid, z**2 / (camera.fx * camera.fy) / np.maximum(incidence, 0.1), 0)
    hole, rim = np.zeros_like(valid), np.zeros_like(valid)
    if sensor_depth is not None:
        offset, factor = SEE_THROUGH
        empty = (sensor_depth <= 0) | (sensor_depth > depth * factor + offset)
        rim = _resize_mask(find_rim(sensor_depth, common_rim), size)
        hole = _resize_mask(empty, size) & valid & ~rim
    return Scene(points, normals, rays, inverse, valid, planar, hole, rim, area)


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a mask, bool [H,W], by majority vote."""
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot products [h,w] of vectors [h,w,3]; sqrt(_dot(a, a)) equals np.linalg.norm(a, axis=-1) but is faster."""
    return np.einsum("hwi,hwi->hw", a, b)


def _inverse_depth(depth: np.ndarray) -> np.ndarray:
    known = depth > 0
    return np.where(known, 1 / np.where(known, depth, 1), 0)


def _downsample(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Downsample depth to float64 [h,w]: mean of inverse depth, which is exact on planes; nearest reading at edges."""
    nearest = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST).astype(np.float64)
    mean = cv2.resize(_inverse_depth(depth), size, interpolation=cv2.INTER_AREA).astype(np.float64)
    averaged = np.abs(mean * nearest - 1) < MAX_AVERAGED_DIFFERENCE
    return np.where(averaged, 1 / np.where(averaged, mean, 1), nearest)


def _normals(inverse: np.ndarray, valid: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    normals, residual = _fit_inverse_depth(inverse, valid, rays, FINE_RADIUS)
    coarse, coarse_residual = _fit_inverse_depth(inverse, valid, rays, COARSE_RADIUS)
    smooth = coarse_residual < MAX_PLANAR_RESIDUAL
    normals[smooth] = coarse[smooth]
    return normals, (smooth | (residual < MAX_PLANAR_RESIDUAL / 2)) & valid


def _fit_inverse_depth(
    inverse: np.ndarray, valid: np.ndarray, rays: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a plane in each window; returns normals [h,w,3] towards the camera and the relative rms residual [h,w].

    n . X = d with X = z (u, v, 1) gives 1/z = (n/d) . (u, v, 1), which is linear least squares in inverse depth.
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
    residual[total < 0.5] = np.inf  # less than half of the window is valid
    return normals, residual


def find_gravity(scene: Scene) -> np.ndarray:
    """Estimate the downward unit vector, float64 [3]; returns the prior if that fails or is too far from it."""
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
        if abs(pitch) > MAX_PITCH or abs(roll) > MAX_ROLL:
            return prior
    return down


def find_peaks(offsets: np.ndarray, weights: np.ndarray, min_weight: float) -> list[float]:
    """Find peaks of the weight per offset; returns, in ascending order, offsets with at least `min_weight` around."""
    start = offsets.min() - 3 * OFFSET_BIN
    bins = int((offsets.max() - start) / OFFSET_BIN) + 5
    histogram = np.bincount(((offsets - start) / OFFSET_BIN).astype(int), weights, minlength=bins)
    smooth = np.convolve(histogram, np.ones(5), mode="same")
    inner = smooth[1:-1]
    peak = (inner >= min_weight) & (inner >= smooth[:-2]) & (inner > smooth[2:])
    return [start + (index + 1.5) * OFFSET_BIN for index in np.flatnonzero(peak)]


def refine(scene: Scene, plane: Plane, candidates: np.ndarray, vertical_to: np.ndarray | None = None) -> Plane:
    """Refit `plane` to the candidates near it by least squares, keeping it parallel to `vertical_to` if given."""
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
        if normal @ plane.normal < FACING_COSINE:
            return plane
        plane = Plane(normal, float(normal @ centre))
    return plane


def near_plane(scene: Scene, plane: Plane, width: float) -> np.ndarray:
    """Valid pixels within `width` tolerances of a plane, bool [h,w]."""
    return scene.valid & (np.abs(plane.distance(scene.points)) < width * scene.tolerance)


def fit_surface(scene: Scene, plane: Plane, candidates: np.ndarray) -> Surface:
    """Fit a surface with drift to the `candidates`, bool [h,w], that lie near a plane.

    The inverse depth of a plane is n . ray / d. The measured one is that times `scale`, modelled as a polynomial of
    low degree in image coordinates. The distance from the plane is |d| times the relative depth error, so a scale error
    has the same effect everywhere on it. If the sensor reads enough of the surface, drift is fitted to these pixels
    only; otherwise glass panes would bend the wall.
    """
    plane_inverse = scene.rays @ (plane.normal / plane.offset)
    visible = scene.valid & (plane_inverse > 1 / MAX_PLANE_DEPTH)
    scale = np.where(visible, scene.inverse_depth / np.where(visible, plane_inverse, 1), np.inf)
    camera_distance = -plane.offset
    cosine = scene.normals @ plane.normal
    aligned = candidates & visible & (cosine > SIMILAR_COSINE)
    near = aligned & (cosine > FACING_COSINE) & (camera_distance * np.abs(1 - 1 / scale) < 1.5 * scene.tolerance)
    _, components = cv2.connectedComponents(aligned.astype(np.uint8), connectivity=4)
    fraction = np.bincount(components[near], minlength=components.max() + 1) / np.bincount(components.ravel())
    near |= aligned & (fraction[components] > MIN_NEAR_FRACTION)
    sampled = aligned & ~scene.hole
    if (near & sampled).sum() < MIN_READ_FRACTION * near.sum():
        sampled = aligned
    drift, spread = _fit_drift(scale, near & sampled, sampled)
    distance = np.where(visible, camera_distance * (1 - drift / scale), np.inf)
    distance = cv2.medianBlur(distance.astype(np.float32), 3)
    tolerance = THICKNESS + TOLERANCE_SPREADS * spread * camera_distance
    return Surface(plane, plane_inverse * drift, distance, tolerance, aligned & (np.abs(distance) < tolerance))


def _fit_drift(scale: np.ndarray, near: np.ndarray, aligned: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit the drift to scale, float [h,w], measured / plane's inverse depth.

    Iteratively reweighted least squares with a zero-mean Gaussian prior on the drift. It starts from the pixels `near`;
    in each round, the inliers among `aligned` are the members.

    Returns (drift float [h,w], relative spread of the residuals).
    """
    x, y = (np.vander(np.linspace(-1, 1, n), DRIFT_DEGREE + 1, increasing=True) for n in scale.shape[::-1])
    powers = [(i, j) for i in range(DRIFT_DEGREE + 1) for j in range(DRIFT_DEGREE + 1 - i)]
    rows, columns = np.nonzero(aligned)
    step = max(1, len(rows) // MAX_FIT_SAMPLES)
    rows, columns = rows[::step], columns[::step]
    basis = np.stack([y[rows, j] * x[columns, i] for i, j in powers], axis=-1)
    error, members = scale[rows, columns] - 1, near[rows, columns]
    weights, spread = members.astype(float), SPREAD_RANGE[1]
    coefficients = np.zeros(len(powers))
    for deviation in N_STIFF_ROUNDS * [STIFF_DRIFT_STD] + (N_ROUNDS - N_STIFF_ROUNDS) * [DRIFT_STD]:
        if not members.any():
            break
        weighted = basis * (weights * EFFECTIVE_READINGS / members.sum() / spread**2)[:, None]
        coefficients = np.linalg.solve(weighted.T @ basis + np.eye(len(powers)) / deviation**2, weighted.T @ error)
        residual = np.abs(error - basis @ coefficients)
        spread = float(np.clip(np.quantile(residual[members], SPREAD_QUANTILE) / NORMAL_QUANTILE, *SPREAD_RANGE))
        members = residual < max(GROWTH_TOLERANCE, TOLERANCE_SPREADS * spread)
        weights = members / (1 + (residual / (2 * spread)) ** 2) ** 2
    factors = np.zeros((DRIFT_DEGREE + 1, DRIFT_DEGREE + 1))
    factors[tuple(np.transpose(powers))] = coefficients
    return 1 + np.clip(y @ factors.T @ x.T, -MAX_DRIFT, MAX_DRIFT), spread
