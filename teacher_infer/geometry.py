"""Floor, wall and glass from the geometry of one depth map: planes and gravity, never rows of the image.

The camera's axes are x right, y down, z forward; points are metres. Everything is computed on about 320 columns,
where a frame takes some tens of milliseconds on one core, and the classes are brought back to full size.

1. Normals: on a plane, inverse depth is an affine function of image coordinates, so a local least-squares fit of
   inverse depth gives the normal, and its residual says whether the place is planar at all.
2. Gravity: the direction most normals are parallel or perpendicular to (Gupta, Arbelaez, Malik, Perceptual
   Organization and Recognition of Indoor Scenes from RGB-D Images, CVPR 2013, section 3.1), from the prior that
   the camera is held roughly upright.
3. Floor: the lowest large plane that faces up, and all that lies on it.
4. Walls: large vertical planes that reach up and over which nothing behind them is seen; over a cupboard the wall is.
5. Glass: where the sensor has holes, or looks through, framed by readings on or in a wall.

The rest, ceilings among it, is other: what can't be told is not guessed.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from config import CLASS_NAMES, Intrinsics

FLOOR, WALL, GLASS, OTHER = (CLASS_NAMES.index(name) for name in ("floor", "wall", "glass", "other"))

WORKING_WIDTH = 320
FINE, COARSE = (
    2,
    5,
)  # radii in working pixels of the two normal fits; the coarse one counts where it is planar
PLANAR = 0.012  # largest relative rms residual of depth against the fitted plane

RIM_VALID = 0.25  # share of a row that has depth where the map begins
WIDEST_RIM = 0.1  # of the rows

PRIOR_GRAVITY = (0.0, 1.0, 0.0)
LARGEST_PITCH, LARGEST_ROLL = np.radians(40), np.radians(20)
GRAVITY_ANGLES = (45, 45, 30, 15, 15, 15)  # degrees within which a normal counts as parallel or perpendicular

FACING = np.cos(np.radians(20))  # of a normal and the direction that it should have
FACING_LOOSE = np.cos(np.radians(50))  # the same for what joins a plane that is known
VERTICAL = np.sin(np.radians(20))  # largest |normal . gravity| of a vertical surface
BIN = 0.03  # metres, of plane offsets
FLOOR_AREA = 0.15  # square metres that a floor must show
FLOOR_BELOW_CAMERA = 0.15  # metres
BELOW_FLOOR = 0.04  # largest share of points lower than the floor: more, and it is a table top

FLOATING = 0.5  # share of columns in which depth jumps back at a plane's far edge: a table top seen without floor
JUMP = 1.1  # factor on depth that is a jump

MAX_WALLS = 10
WALL_AREA = 0.4  # square metres that a wall must show
WALL_SHARE = 0.006  # and share of the image
WALL_HEIGHT = 1.9  # metres above the floor that a wall reaches, unless the image ends before,
WALL_ABOVE_CAMERA = 0.4  # or above the camera without a floor in sight;
HIDDEN = 0.4  # or share of columns in which something stands before what would be above: a cupboard on the wall,
BEFORE = 0.3  # which takes up this share of the column there (normals are blurred, so a plane's rim is no member)
OVERLOOKED = 0.35  # share of columns in which something behind a plane is seen above it: furniture

HOLE_BEHIND = (0.3, 1.1)  # a sensor that reads more than depth * 1.1 + 0.3 m looks through
GLASS_SHARE = 0.003  # of the image
GLASS_AREA = 0.08  # square metres
GLASS_TOP = 1.4  # metres above the floor that a pane reaches at least, unless the image ends before
GLASS_FILL = 0.5  # share of holes in a pane
FRAMED = 0.4  # share of readings in the rim around a pane: less, and the whole wall is out of the sensor's reach
RIM = 7  # working pixels
BARS = 9  # working pixels that bars and smears in a pane may be wide
RECESS = (-0.15, 0.45)  # metres that a pane may lie in front of and behind the wall that holds it


@dataclass
class GeometryResult:
    """classes: uint8 [H,W], floor, wall, glass or other (config.CLASS_NAMES). gravity: float64 [3], unit vector that
    points down in camera axes. confidence: float32 [H,W] in 0..1, 1 = lies on the middle of its plane, 0 = other."""

    classes: np.ndarray
    gravity: np.ndarray
    confidence: np.ndarray


@dataclass
class Scene:
    """The working copy of a frame: points, normals float [h,w,3], valid, planar, hole bool [h,w] and area float
    [h,w], the square metres that a pixel shows."""

    points: np.ndarray
    normals: np.ndarray
    valid: np.ndarray
    planar: np.ndarray
    hole: np.ndarray
    area: np.ndarray

    @property
    def first_row(self) -> int:
        """The first row that has depth: a sensor's map, registered to the colour camera, has an empty rim."""
        row = int((self.valid.mean(axis=1) > RIM_VALID).argmax())
        return row if row <= WIDEST_RIM * len(self.valid) else 0  # more is no rim but a sensor that saw nothing there

    @property
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


def classify(
    depth: np.ndarray,
    intrinsics: Intrinsics,
    sensor_depth: np.ndarray | None = None,
    gravity: np.ndarray | None = None,
) -> GeometryResult:
    """Floor, wall, glass and other of one frame.

    Args:
        depth: float32 [H,W], metres, 0 = none; without holes where possible (a teacher's, or filled).
        intrinsics: camera of the map at its own size.
        sensor_depth: float32 [H,W], metres, 0 = hole, as the sensor gave it. Without it nothing is glass.
        gravity: vector pointing down in camera axes, when an inertial sensor knows it.
    """
    scene = make_scene(depth, intrinsics, sensor_depth)
    down = find_gravity(scene) if gravity is None else np.asarray(gravity, float) / np.linalg.norm(gravity)
    classes = np.full(scene.valid.shape, OTHER, dtype=np.uint8)
    confidence = np.zeros(scene.valid.shape, dtype=np.float32)
    floor = find_floor(scene, down)
    walls = find_walls(scene, down, floor)
    for wall in walls:
        _paint(scene, wall, WALL, 2.0, classes, confidence)
    if floor is not None:
        _paint(scene, floor, FLOOR, 1.0, classes, confidence)
    if sensor_depth is not None:
        for pane, certainty in find_glass(scene, down, floor, walls):
            classes[pane], confidence[pane] = GLASS, certainty
    size = depth.shape[::-1]
    return GeometryResult(
        cv2.resize(classes, size, interpolation=cv2.INTER_NEAREST),
        down,
        cv2.resize(confidence, size, interpolation=cv2.INTER_NEAREST),
    )


def make_scene(depth: np.ndarray, intrinsics: Intrinsics, sensor_depth: np.ndarray | None) -> Scene:
    """Points, normals and holes at about WORKING_WIDTH columns."""
    height, width = depth.shape
    scale = min(1.0, WORKING_WIDTH / width)
    size = (round(width * scale), round(height * scale))
    z = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST).astype(np.float64)
    camera = intrinsics.resized(*size)
    u = (np.arange(size[0]) - camera.cx) / camera.fx
    v = (np.arange(size[1]) - camera.cy) / camera.fy
    rays = np.stack([*np.meshgrid(u, v), np.ones(size[::-1])], axis=-1)
    valid = z > 0
    normals, planar = _normals(z, valid, rays)
    points = rays * z[..., None]
    incidence = np.abs((normals * rays).sum(-1)) / np.linalg.norm(rays, axis=-1)
    area = np.where(valid, z**2 / (camera.fx * camera.fy) / np.maximum(incidence, 0.1), 0)
    hole = np.zeros_like(valid)
    if sensor_depth is not None:
        offset, factor = HOLE_BEHIND
        empty = (sensor_depth <= 0) | (sensor_depth > depth * factor + offset)
        hole = (cv2.resize(empty.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5) & valid
    return Scene(points, normals, valid, planar, hole, area)


def _normals(z: np.ndarray, valid: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inverse = np.where(valid, 1 / np.where(valid, z, 1), 0)
    normals, residual = _fit_inverse_depth(inverse, valid, rays, FINE)
    coarse, coarse_residual = _fit_inverse_depth(inverse, valid, rays, COARSE)
    smooth = coarse_residual < PLANAR
    normals[smooth] = coarse[smooth]
    return normals, (smooth | (residual < PLANAR / 2)) & valid


def _fit_inverse_depth(inverse, valid, rays, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Normals [h,w,3] towards the camera and the relative rms residual [h,w] of a plane in each window.

    n . X = d with X = z (u, v, 1) means 1/z = (n/d) . (u, v, 1): linear least squares in inverse depth.
    """
    u, v, weight = rays[..., 0], rays[..., 1], valid.astype(np.float64)

    def mean(values):
        return cv2.boxFilter(values * weight, cv2.CV_64F, (2 * radius + 1,) * 2, borderType=cv2.BORDER_CONSTANT)

    total = np.maximum(mean(np.ones_like(u)), 1e-9)
    mu, mv, mq = mean(u) / total, mean(v) / total, mean(inverse) / total
    uu, vv, uv = mean(u * u) / total - mu * mu, mean(v * v) / total - mv * mv, mean(u * v) / total - mu * mv
    uq, vq = mean(u * inverse) / total - mu * mq, mean(v * inverse) / total - mv * mq
    determinant = np.maximum(uu * vv - uv * uv, 1e-18)
    a, b = (uq * vv - vq * uv) / determinant, (vq * uu - uq * uv) / determinant
    normals = -np.stack([a, b, mq - a * mu - b * mv], axis=-1)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
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


def find_floor(scene: Scene, down: np.ndarray) -> Plane | None:
    """The lowest plane of FLOOR_AREA that faces up, with next to nothing below it."""
    facing = scene.planar & (scene.normals @ down < -FACING)
    height = -(scene.points @ down)
    candidates = facing & (height < -FLOOR_BELOW_CAMERA)
    if not candidates.any():
        return None
    for level in _peaks(height[candidates], scene.area[candidates], FLOOR_AREA)[:3]:
        plane = _refine(scene, Plane(-down, level), candidates)
        below = scene.valid & (plane.distance(scene.points) < -3 * scene.tolerance)
        if (
            below.sum() < BELOW_FLOOR * scene.valid.sum()
            and _floating(scene, candidates & _on(scene, plane, 1.0)) < FLOATING
        ):
            return plane
    return None


def _floating(scene: Scene, members: np.ndarray, above: int = 2 * COARSE) -> float:
    """Share of the columns of `members` in which depth jumps back `above` pixels over their far edge (normals are
    blurred by COARSE pixels, so the last members lie as far before it).

    A floor ends where something stands on it or before it; behind the edge of a table top the view goes on.
    """
    columns = np.flatnonzero(members.sum(axis=0) >= 3)
    edge = members[:, columns].argmax(axis=0)
    columns, edge = columns[edge >= above], edge[edge >= above]
    if not len(columns):
        return 0.0
    z = scene.points[..., 2]
    return float((z[edge - above, columns] > JUMP * z[edge, columns]).mean())


def _peaks(offsets: np.ndarray, weights: np.ndarray, smallest: float) -> list[float]:
    """Offsets in rising order at which at least `smallest` weight lies within about 2 bins."""
    start = offsets.min() - 3 * BIN
    bins = int((offsets.max() - start) / BIN) + 5
    histogram = np.bincount(((offsets - start) / BIN).astype(int), weights, minlength=bins)
    smooth = np.convolve(histogram, np.ones(5), mode="same")
    inner = smooth[1:-1]
    peak = (inner >= smallest) & (inner >= smooth[:-2]) & (inner > smooth[2:])
    return [start + (index + 1.5) * BIN for index in np.flatnonzero(peak)]


def _refine(scene: Scene, plane: Plane, candidates: np.ndarray, vertical_to: np.ndarray | None = None) -> Plane:
    """Least-squares plane through the candidates near `plane`; with `vertical_to`, among planes parallel to it."""
    for width in (2.0, 1.0):
        near = candidates & (np.abs(plane.distance(scene.points)) < width * scene.tolerance)
        if near.sum() < 20:
            return plane
        points, weights = scene.points[near], scene.area[near][:, None]
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


def find_walls(scene: Scene, down: np.ndarray, floor: Plane | None) -> list[Plane]:
    """Vertical planes of WALL_AREA, the largest first, that reach up and are not seen over."""
    right = np.cross(down, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    forward = np.cross(right, down)
    left_over = scene.planar & (np.abs(scene.normals @ down) < VERTICAL)
    walls = []
    for _ in range(MAX_WALLS):
        plane = _largest_vertical(scene, left_over, right, forward)
        if plane is None:
            break
        plane = _refine(scene, plane, left_over & (scene.normals @ plane.normal > FACING), vertical_to=down)
        members = left_over & (scene.normals @ plane.normal > FACING) & _on(scene, plane, 1.5)
        left_over &= ~(members | _on(scene, plane, 0.5))
        # the rims of what hangs on a wall are no planar places, but they are no less of its area, up to half of it
        rims = _on(scene, plane, 1.0) & ~scene.planar & (scene.normals @ plane.normal > 0)
        area = scene.area[members].sum()
        area += min(area, scene.area[rims].sum())
        large = area >= WALL_AREA and members.sum() >= WALL_SHARE * members.size
        high = large and _reaches_up(scene, plane, members, down, floor)
        if high and _overlooked(scene, plane, members) < OVERLOOKED:
            walls.append(plane)
    return walls


def _largest_vertical(scene: Scene, among: np.ndarray, right: np.ndarray, forward: np.ndarray) -> Plane | None:
    """The vertical plane that holds most area: best azimuth of the normals, then best offset along it."""
    if among.sum() < WALL_SHARE * among.size:
        return None
    normals, points, area = scene.normals[among], scene.points[among], scene.area[among]
    azimuth = np.arctan2(normals @ forward, normals @ right)
    histogram = np.bincount(((azimuth + np.pi) / (2 * np.pi) * 120).astype(int) % 120, area, minlength=120)
    padded = np.concatenate([histogram[-2:], histogram, histogram[:2]])
    best = (np.convolve(padded, np.ones(5), mode="valid").argmax() + 0.5) / 120 * 2 * np.pi - np.pi
    normal = np.cos(best) * right + np.sin(best) * forward
    alike = normals @ normal > FACING
    if not alike.any():  # a few normals, each leaning by as much as a wall's may, and all in other directions
        return None
    offsets, weights = points[alike] @ normal, area[alike]
    start = offsets.min() - 2 * BIN
    counts = np.convolve(np.bincount(((offsets - start) / BIN).astype(int), weights), np.ones(5), mode="same")
    return Plane(normal, float(start + (counts.argmax() + 0.5) * BIN))


def _on(scene: Scene, plane: Plane, width: float) -> np.ndarray:
    return scene.valid & (np.abs(plane.distance(scene.points)) < width * scene.tolerance)


def _reaches_up(scene: Scene, plane: Plane, members: np.ndarray, down: np.ndarray, floor: Plane | None) -> bool:
    """Whether a plane is as high as walls are, or may be: the image ends before it does, or its top is hidden."""
    if members[scene.first_row :][:5].sum() >= 5 or _hidden(scene, plane, members) > HIDDEN:
        return True
    height = -(scene.points[members] @ down) if floor is None else floor.distance(scene.points[members])
    return np.percentile(height, 97) > (WALL_ABOVE_CAMERA if floor is None else WALL_HEIGHT)


def _hidden(scene: Scene, plane: Plane, members: np.ndarray) -> float:
    """Share of the columns of `members` in which what is seen above them stands before the plane.

    A wall goes on behind the cupboards that hang on it.
    """
    columns = np.flatnonzero(members.sum(axis=0) >= 3)
    if not len(columns):
        return 0.0
    above = np.arange(len(members))[:, None] < members[:, columns].argmax(axis=0)
    above &= scene.valid[:, columns]
    before = above & (plane.distance(scene.points[:, columns]) > 2 * scene.tolerance[:, columns])
    return float((before.sum(axis=0) > BEFORE * np.maximum(above.sum(axis=0), 1)).mean())


def _overlooked(scene: Scene, plane: Plane, members: np.ndarray) -> float:
    """Share of the columns of `members` in which points behind the plane are seen above them."""
    columns = np.flatnonzero(members.sum(axis=0) >= 3)
    if not len(columns):
        return 1.0
    behind = scene.valid & (plane.distance(scene.points) < -(0.1 + 2 * scene.tolerance))
    top = members[:, columns].argmax(axis=0)
    above = np.arange(len(members))[:, None] < top
    return float(((behind[:, columns] & above).sum(axis=0) >= 3).mean())


def _paint(scene: Scene, plane: Plane, class_id: int, width: float, classes, confidence) -> None:
    """Give `class_id` to what lies on a plane and does not face elsewhere."""
    off = np.abs(plane.distance(scene.points)) / (width * scene.tolerance)
    towards = scene.normals @ plane.normal
    on = scene.valid & (off < 1) & (towards > np.where(scene.planar, FACING_LOOSE, 0.0))
    classes[on] = class_id
    confidence[on] = 1 - off[on]


def find_glass(
    scene: Scene, down: np.ndarray, floor: Plane | None, walls: list[Plane]
) -> list[tuple[np.ndarray, float]]:
    """Panes as (bool [h,w], share of holes in it): what holes cover, bars and smears among them closed."""
    upright = np.abs(scene.normals @ down) < np.sin(np.radians(30))
    in_wall = np.zeros_like(scene.hole)
    for wall in walls:
        in_wall |= _recessed(wall.distance(scene.points))
    candidates = (scene.hole & (upright | in_wall)).astype(np.uint8)
    closed = cv2.morphologyEx(candidates, cv2.MORPH_CLOSE, np.ones((BARS, BARS), np.uint8))
    joined = cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, components, stats, _ = cv2.connectedComponentsWithStats(joined)
    panes = []
    for number in range(1, count):
        if stats[number, cv2.CC_STAT_AREA] < GLASS_SHARE * joined.size:
            continue
        members = (components == number) & scene.valid
        if scene.area[members].sum() < GLASS_AREA:
            continue
        plane = _pane_plane(scene, members, down, walls)
        if plane is None or not _high(scene, members, down, floor) or _framed(scene, plane, members, down) < FRAMED:
            continue
        pane = members & _not_before(scene, plane)
        certainty = float(scene.hole[pane].mean()) if pane.any() else 0.0
        if certainty >= GLASS_FILL:
            panes.append((pane, certainty))
    return panes


def _recessed(distance: np.ndarray) -> np.ndarray:
    return (-distance > RECESS[0]) & (-distance < RECESS[1])


def _pane_plane(scene: Scene, members: np.ndarray, down: np.ndarray, walls: list[Plane]) -> Plane | None:
    """The plane of a pane: the wall's that holds it, moved to the pane; else its own, when that is vertical."""
    points = scene.points[members]
    for wall in sorted(walls, key=lambda w: np.median(np.abs(w.distance(points)))):
        distance = wall.distance(points)
        if _recessed(distance).mean() > 0.7:
            return Plane(wall.normal, wall.offset + float(np.median(distance)))
    upright = members & scene.planar & (np.abs(scene.normals @ down) < VERTICAL)
    if upright.sum() < 0.6 * members.sum():
        return None
    normal = scene.normals[upright].mean(axis=0)
    normal -= (normal @ down) * down
    normal /= np.linalg.norm(normal)
    plane = Plane(normal, float(np.median(points @ normal)))
    plane = _refine(scene, plane, upright, vertical_to=down)
    alone = _on(scene, plane, 2.0)
    return plane if alone[members].mean() > 0.7 and _overlooked(scene, plane, members) < OVERLOOKED else None


def _high(scene: Scene, members: np.ndarray, down: np.ndarray, floor: Plane | None) -> bool:
    """Whether a pane reaches up, or the image ends before it does; a dark panel low on a wall does not."""
    if members[scene.first_row :][:3].any():
        return True
    above = -(scene.points[members] @ down) if floor is None else floor.distance(scene.points[members])
    return bool(np.percentile(above, 97) >= (0.0 if floor is None else GLASS_TOP))


def _not_before(scene: Scene, plane: Plane) -> np.ndarray:
    return scene.valid & (plane.distance(scene.points) < 3 * scene.tolerance)


def _framed(scene: Scene, plane: Plane, members: np.ndarray, down: np.ndarray) -> float:
    """Share of readings in the rim around the upright rectangle that `members` span on a plane."""
    rays = scene.points / np.maximum(scene.points[..., 2:], 1e-9)
    towards = rays @ plane.normal
    crossing = rays * (plane.offset / np.where(towards < -1e-3, towards, np.nan))[..., None]
    inside = _not_before(scene, plane)
    for direction in (np.cross(down, plane.normal), -down):
        coordinate = crossing @ direction
        low, high = np.percentile(coordinate[members], (1, 99))
        inside &= (coordinate >= low) & (coordinate <= high)
    rim = cv2.dilate(inside.astype(np.uint8), np.ones((2 * RIM + 1,) * 2, np.uint8)).astype(bool)
    rim &= ~inside & _not_before(scene, plane)
    return float((~scene.hole[rim]).mean()) if rim.any() else 0.0
