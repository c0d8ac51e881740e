"""Floor, wall and glass from the geometry of one depth map: planes and gravity, not positions in the image.

planes.py provides normals, gravity and planes with a smooth drift.

1. Floor: the lowest large plane that faces up and has nothing below it.
2. Walls: large vertical planes that reach up and have nothing visible behind them over their top edge. A plane is
   furniture if it stands parallel in front of a larger wall, or if the scene continues behind one of its sides.
3. A pixel near two surfaces, as at the foot of a wall, belongs to the one that its viewing ray meets first.
4. Glass: areas in a wall or upright plane where the sensor has holes, or looks through, framed by readings; includes
   the frame of a window. The sensor's rim, outside its view, is never glass.

Everything else is other, including ceilings and pixels that no rule explains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from config import CLASS_NAMES, Intrinsics
from teacher_infer.planes import (
    COARSE_RADIUS,
    FACING_COSINE,
    OFFSET_BIN,
    Plane,
    Scene,
    Surface,
    build_scene,
    find_gravity,
    find_peaks,
    fit_surface,
    near_plane,
    refine,
)

FLOOR, WALL, GLASS, OTHER = (CLASS_NAMES.index(name) for name in ("floor", "wall", "glass", "other"))

MAX_PANE_TILT = np.sin(np.radians(20))  # maximum |normal . gravity| of a pane
MAX_WALL_TILT = np.sin(np.radians(30))  # and of a wall, since drift tilts normals
MIN_LABEL_COSINE = 0.3  # between the normal of a planar pixel and that of the surface it is assigned to
MIN_FLOOR_AREA = 0.15  # visible, square metres
MIN_CAMERA_HEIGHT = 0.15  # metres above the floor
BELOW_MARGIN = 0.08  # metres; points lower than the tolerance plus this margin are below the floor
MAX_FRACTION_BELOW = 0.012  # of points below a floor; more: a table top or a bed

MAX_FLOATING_FRACTION = (
    0.5  # of columns where depth jumps at the far edge of a plane; more: a table top without floor in view
)
DEPTH_JUMP = 1.1  # ratio of depths
MAX_PLANE_GROWTH = 1.25  # of depth along a plane from its far edge to where a jump is measured

MAX_WALLS = 10
MIN_WALL_AREA = 0.25  # visible, square metres
MIN_WALL_FRACTION = 0.006  # of the image
# a wall reaches the top of the image or meets one of the next three bounds
MIN_WALL_HEIGHT = 1.9  # metres above the floor
MIN_HEIGHT_ABOVE_CAMERA = 0.4  # metres, if no floor is found
MIN_OCCLUDED_FRACTION = 0.4  # of columns in which something in front, such as a wall cupboard, hides what is above
MIN_OCCLUDER_FRACTION = 0.3  # of such a column above the wall; not all, as blurred normals exclude a plane's border
BEHIND_MARGIN = 0.1  # metres; points beyond 1.5 tolerances plus this margin are behind a wall
MAX_SEEN_OVER = 0.35  # fraction of columns with points behind a plane above it; more: furniture
MAX_SEEN_PAST = 0.35  # fraction of rows with points behind a plane beside it; more: a side of furniture
SIDE_OFFSETS = (10, 20, 30)  # working pixels beyond the last member; normals are blurred near an edge
MAX_SIDE_WIDTH = 0.85  # metres, of a wardrobe's side; walls with outside corners are wider
FURNITURE_GAP = (0.15, 1.0)  # metres between a wall and a parallel front of a wardrobe or cupboard
MIN_BACKGROUND_AREA = 0.5  # visible area of the wall behind, relative to the front's
WALL_RELIEF = (0.06, 0.05)  # metres that parts of a wall lie in front of it, like curtains, and behind it, like doors

MIN_PANE_FRACTION = 0.003  # of the image
MIN_PANE_AREA = 0.08  # square metres
MIN_PANE_TOP = 1.4  # metres above the floor that a pane reaches, unless the image ends below
MIN_PARTITION_TOP = 2.1  # the same if the scene is visible over the pane; furniture is lower
MIN_HOLE_FRACTION = 0.4  # of a pane
MIN_FRAME_READINGS = 0.4  # fraction of readings in the ring around a pane; fewer: the wall is out of the sensor's range
RING_WIDTH = 7  # working pixels
MIN_PANE_WIDTH = 5  # working pixels
MAX_BAR_WIDTH = 9  # working pixels, of glazing bars and stray readings in a pane
RECESS_RANGE = (-0.15, 0.45)  # metres that a pane may lie behind the wall around it; negative is in front
MIN_RECESSED_FRACTION = 0.7  # of a pane within this range
WALL_PROTRUSION = 0.03  # metres; holes farther in front of a wall than its tolerance plus this are a curtain
WINDOW_FRAME_WIDTH = 0.06  # metres; the frame counts as glass
MIN_WINDOW_RECESS = 0.03  # metres that a window frame lies behind the wall, unlike a mirror's surroundings
MIN_SILL_HEIGHT = 0.25  # metres above the floor; panes that start lower are doors, whose frames count as wall


@dataclass
class GeometryResult:
    """Geometry of one frame.

    Attributes:
        classes: uint8 [H,W], floor, wall, glass or other, as indices into config.CLASS_NAMES.
        gravity: float64 [3], downward unit vector in camera axes.
        confidence: float32 [H,W] in 0..1; floor, wall: from 1 on the surface to 0 at its tolerance; glass: fraction of
            holes in the pane; other: 0.
    """

    classes: np.ndarray
    gravity: np.ndarray
    confidence: np.ndarray


def classify(
    depth: np.ndarray,
    intrinsics: Intrinsics,
    sensor_depth: np.ndarray | None = None,
    gravity: np.ndarray | Sequence[float] | None = None,
    common_rim: np.ndarray | None = None,
) -> GeometryResult:
    """Classify the pixels of one frame as floor, wall, glass or other.

    Args:
        depth: float32 [H,W], metres, 0 = none; dense if possible (a teacher's, or filled). Isolated pixels without
            depth get the class around them.
        intrinsics: camera at the size of `depth`.
        sensor_depth: raw sensor depth, float32 [H,W], metres, 0 = hole. Without it no pixel is glass.
        gravity: downward vector in camera axes of any length, e.g. from an IMU; estimated from depth by default.
        common_rim: result of sensor_rim.find_common_rim() for this sensor; by default the rim is found in this frame.
    """
    scene = build_scene(depth, intrinsics, sensor_depth, common_rim)
    down = find_gravity(scene) if gravity is None else np.asarray(gravity, float) / np.linalg.norm(gravity)
    floor = find_floor(scene, down)
    walls = find_walls(scene, down, floor)
    surfaces = [(wall, WALL) for wall in walls] + ([(floor, FLOOR)] if floor is not None else [])
    classes, confidence = _label_surfaces(scene, surfaces)
    if sensor_depth is not None:
        for pane, hole_fraction in find_glass(scene, down, floor, walls):
            classes[pane], confidence[pane] = GLASS, hole_fraction
    size = depth.shape[::-1]
    classes, confidence = (cv2.resize(array, size, interpolation=cv2.INTER_NEAREST) for array in (classes, confidence))
    if scene.valid.shape != depth.shape:
        _refine_edges(scene, surfaces, depth.astype(np.float32), classes, confidence)
    return GeometryResult(classes, down, confidence)


def find_floor(scene: Scene, down: np.ndarray) -> Surface | None:
    """Find the lowest upward-facing plane of at least MIN_FLOOR_AREA with almost nothing below it."""
    facing = scene.planar & (scene.normals @ down < -FACING_COSINE)
    height = -(scene.points @ down)
    candidates = facing & (height < -MIN_CAMERA_HEIGHT)
    if not candidates.any():
        return None
    for level in find_peaks(height[candidates], scene.area[candidates], MIN_FLOOR_AREA)[:3]:
        plane = refine(scene, Plane(-down, level), candidates)
        surface = fit_surface(scene, plane, scene.planar)
        below = scene.valid & (surface.distance < -(BELOW_MARGIN + surface.tolerance))
        if (
            below.sum() < MAX_FRACTION_BELOW * scene.valid.sum()
            and _floating_fraction(scene, surface) < MAX_FLOATING_FRACTION
        ):
            return surface
    return None


def _floating_fraction(scene: Scene, surface: Surface, above: int = 2 * COARSE_RADIUS) -> float:
    """Fraction of a surface's columns in which depth jumps at the far edge.

    A floor ends at something that stands on it or in front of it; beyond the edge of a table top, depth jumps. The
    jump is measured `above` pixels over the last member, because blurred normals exclude the last COARSE_RADIUS pixels.
    Seen from a low camera, depth grows quickly along the floor itself: there the jump is measured from the plane.
    """
    columns = np.flatnonzero(surface.members.sum(axis=0) >= 3)
    edge = surface.members[:, columns].argmax(axis=0)
    columns, edge = columns[edge >= above], edge[edge >= above]
    if not len(columns):
        return 0.0
    beyond, at_edge = scene.inverse_depth[edge - above, columns], scene.inverse_depth[edge, columns]
    plane = scene.rays[edge - above, columns] @ surface.plane.normal / surface.plane.offset  # inverse depth; <= 0: none
    expected = np.where(MAX_PLANE_GROWTH * plane < at_edge, plane, at_edge)
    return float(((beyond > 0) & (DEPTH_JUMP * beyond < expected)).mean())


def find_walls(scene: Scene, down: np.ndarray, floor: Surface | None) -> list[Surface]:
    """Find walls, largest first: vertical planes that reach up, are not seen over, and are not furniture."""
    right = np.cross(down, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    forward = np.cross(right, down)
    remaining = scene.planar & (np.abs(scene.normals @ down) < MAX_WALL_TILT)
    walls = []
    for _ in range(MAX_WALLS):
        plane = _largest_vertical(scene, remaining, right, forward)
        if plane is None:
            break
        plane = refine(scene, plane, remaining & (scene.normals @ plane.normal > FACING_COSINE), vertical_to=down)
        surface = fit_surface(scene, plane, remaining)
        remaining &= ~(surface.inliers | near_plane(scene, plane, 0.5))
        # wall pixels around hanging objects are not planar, but count as area, up to that of the members
        borders = surface.inliers & ~scene.planar & (scene.normals @ plane.normal > 0)
        area = scene.area[surface.members].sum()
        area += min(area, scene.area[borders].sum())
        large = area >= MIN_WALL_AREA and surface.members.sum() >= MIN_WALL_FRACTION * borders.size
        if large and _reaches_up(scene, surface, down, floor) and _seen_over_fraction(scene, surface) < MAX_SEEN_OVER:
            walls.append(surface)
    return [
        wall
        for wall in walls
        if not _is_furniture_front(scene, wall, walls) and not _is_furniture_side(scene, wall, down)
    ]


def _largest_vertical(scene: Scene, candidates: np.ndarray, right: np.ndarray, forward: np.ndarray) -> Plane | None:
    """Find the vertical plane with the most area: first the best azimuth of the normals, then the best offset."""
    if candidates.sum() < MIN_WALL_FRACTION * candidates.size:
        return None
    normals, points, area = scene.normals[candidates], scene.points[candidates], scene.area[candidates]
    azimuth = np.arctan2(normals @ forward, normals @ right)
    histogram = np.bincount(((azimuth + np.pi) / (2 * np.pi) * 120).astype(int) % 120, area, minlength=120)
    padded = np.concatenate([histogram[-2:], histogram, histogram[:2]])
    best = (np.convolve(padded, np.ones(5), mode="valid").argmax() + 0.5) / 120 * 2 * np.pi - np.pi
    normal = np.cos(best) * right + np.sin(best) * forward
    aligned = normals @ normal > FACING_COSINE
    if not aligned.any():  # a few tilted normals, none of them close to the smoothed peak
        return None
    offsets, weights = points[aligned] @ normal, area[aligned]
    start = offsets.min() - 2 * OFFSET_BIN
    counts = np.convolve(np.bincount(((offsets - start) / OFFSET_BIN).astype(int), weights), np.ones(5), mode="same")
    return Plane(normal, float(start + (counts.argmax() + 0.5) * OFFSET_BIN))


def _reaches_up(scene: Scene, surface: Surface, down: np.ndarray, floor: Surface | None) -> bool:
    """Whether a plane is as high as a wall, or may be: it is cut by the image border, or its top is occluded."""
    members = surface.members
    if members[scene.first_valid_row :][:5].sum() >= 5 or _occluded_fraction(scene, surface) > MIN_OCCLUDED_FRACTION:
        return True
    height = _height(scene.points[members], down, floor)
    return np.percentile(height, 97) > (MIN_HEIGHT_ABOVE_CAMERA if floor is None else MIN_WALL_HEIGHT)


def _height(points: np.ndarray, down: np.ndarray, floor: Surface | None) -> np.ndarray:
    """Height [n] of points [n,3] in metres above the floor, or above the camera if there is no floor."""
    return -(points @ down) if floor is None else floor.plane.distance(points)


def _occluded_fraction(scene: Scene, surface: Surface) -> float:
    """Fraction of a surface's columns in which the pixels above it are in front of it.

    A wall continues behind the cupboards that hang on it.
    """
    columns, above = _region_above(scene, surface)
    if not len(columns):
        return 0.0
    in_front = above & (surface.plane.distance(scene.points[:, columns]) > 2 * scene.tolerance[:, columns])
    return float((in_front.sum(axis=0) > MIN_OCCLUDER_FRACTION * np.maximum(above.sum(axis=0), 1)).mean())


def _seen_over_fraction(scene: Scene, surface: Surface) -> float:
    """Fraction of a surface's columns in which points behind it are visible above it."""
    columns, above = _region_above(scene, surface)
    if not len(columns):
        return 1.0
    return float(((_region_behind(scene, surface)[:, columns] & above).sum(axis=0) >= 3).mean())


def _region_above(scene: Scene, surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Columns of a surface's members, int [n], and the valid pixels above them in these columns, bool [h,n]."""
    columns = np.flatnonzero(surface.members.sum(axis=0) >= 3)
    top = surface.members[:, columns].argmax(axis=0)
    return columns, (np.arange(len(surface.members))[:, None] < top) & scene.valid[:, columns]


def _region_behind(scene: Scene, surface: Surface) -> np.ndarray:
    return scene.valid & (surface.distance < -(BEHIND_MARGIN + 1.5 * surface.tolerance))


def _is_furniture_front(scene: Scene, surface: Surface, walls: list[Surface]) -> bool:
    """Whether a parallel wall is visible closely behind a plane, as with wardrobes, refrigerators and cupboards.

    The gap is measured from both planes: for two parts of one bent wall, each can appear in front of the other.
    """
    area = scene.area[surface.members].sum()
    for wall in walls:
        if (
            wall.plane.normal @ surface.plane.normal < FACING_COSINE
            or scene.area[wall.members].sum() < MIN_BACKGROUND_AREA * area
        ):
            continue
        gaps = np.median(wall.distance[surface.members]), -np.median(surface.distance[wall.members])
        if all(FURNITURE_GAP[0] < gap < FURNITURE_GAP[1] for gap in gaps):
            return True
    return False


def _is_furniture_side(scene: Scene, surface: Surface, down: np.ndarray) -> bool:
    """Whether the scene continues behind one side of a plane, as at the side of a wardrobe.

    For wide planes only points close behind and right at the edge count, because walls, too, end at open doors and
    outside corners. A narrow plane that ends this way is a side of furniture.
    """
    low, high = np.percentile(scene.points[surface.members] @ np.cross(down, surface.plane.normal), (2, 98))
    behind = _region_behind(scene, surface)
    steps: tuple[int, ...] = SIDE_OFFSETS
    if high - low > MAX_SIDE_WIDTH:
        behind, steps = behind & (surface.distance > -FURNITURE_GAP[1]), SIDE_OFFSETS[:1]
    rows = np.flatnonzero(surface.members.sum(axis=1) >= 3)
    members, behind = surface.members[rows], behind[rows]
    for direction in (slice(None), slice(None, None, -1)):
        beyond = members[:, direction].argmax(axis=1)[:, None] - np.array(steps)
        past = np.take_along_axis(behind[:, direction], np.maximum(beyond, 0), axis=1) & (beyond >= 0)
        if len(rows) and past.any(axis=1).mean() > MAX_SEEN_PAST:
            return True
    return False


def _label_surfaces(scene: Scene, surfaces: list[tuple[Surface, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Label the pixels at working resolution: classes uint8 and confidence float32 [h,w]."""
    layers = []
    for surface, class_id in surfaces:
        layers.append((surface, class_id, surface.distance, surface.inverse_depth, _may_belong(scene, surface)))
    return _label_nearest(scene.valid.shape, layers)


def _refine_edges(
    scene: Scene, surfaces: list[tuple[Surface, int]], depth: np.ndarray, classes: np.ndarray, confidence: np.ndarray
) -> None:
    """Relabel pixels along class edges at full resolution; updates classes and confidence [H,W] in place.

    Edges of glass stay as they are, since they come from holes, not from planes.
    """
    small = cv2.resize(classes, scene.valid.shape[::-1], interpolation=cv2.INTER_NEAREST)
    kernel = np.ones((3, 3), np.uint8)
    edges = (cv2.dilate(small, kernel) != cv2.erode(small, kernel)).astype(np.uint8)
    edges[cv2.dilate((small == GLASS).astype(np.uint8), kernel) > 0] = 0
    size = depth.shape[::-1]
    pixels = np.nonzero(cv2.resize(edges, size, interpolation=cv2.INTER_NEAREST))
    z = cv2.medianBlur(depth, 3)[pixels]
    layers = []
    for surface, class_id in surfaces:
        inverse = cv2.resize(surface.inverse_depth.astype(np.float32), size)[pixels]
        distance = np.where(z > 0, -surface.plane.offset * (1 - inverse * z), np.inf)
        may_belong = (
            cv2.resize(_may_belong(scene, surface).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)[pixels] > 0
        )
        layers.append((surface, class_id, distance, inverse, may_belong))
    classes[pixels], confidence[pixels] = _label_nearest(z.shape, layers)


def _may_belong(scene: Scene, surface: Surface) -> np.ndarray:
    """Pixels whose normal allows them to belong to a surface, bool [h,w]; non-planar pixels always may."""
    return ~scene.planar | (scene.normals @ surface.plane.normal > MIN_LABEL_COSINE)


def _label_nearest(shape: tuple[int, ...], layers: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Assign pixels to surfaces; returns classes uint8 and confidence float32 of the given shape.

    A pixel near two surfaces belongs to the one that its viewing ray meets first: the foot of a wall hides the floor
    behind it.

    Args:
        shape: shape of the pixel arrays.
        layers: one tuple per surface: the surface, its class, and per pixel the distance from it in metres, its inverse
            depth along the ray, and whether the normal allows the pixel to belong to it.
    """
    classes, confidence = np.full(shape, OTHER, dtype=np.uint8), np.zeros(shape, dtype=np.float32)
    nearest = np.zeros(shape)
    for surface, class_id, distance, inverse, may_belong in layers:
        front, back = WALL_RELIEF if class_id == WALL else (0.0, 0.0)
        offset = np.abs(distance) / (surface.tolerance + np.where(distance > 0, front, back))
        on = (offset < 1) & may_belong & (inverse > nearest)
        classes[on], confidence[on], nearest[on] = class_id, 1 - offset[on], inverse[on]
    return classes, confidence


def find_glass(
    scene: Scene, down: np.ndarray, floor: Surface | None, walls: list[Surface]
) -> list[tuple[np.ndarray, float]]:
    """Find glass panes: connected regions of holes, with glazing bars and stray readings in them closed.

    Returns a list of (pane, fraction of holes in it). The masks, bool [h,w], include window frames; the
    fractions do not.
    """
    upright = np.abs(scene.normals @ down) < np.sin(np.radians(30))
    in_wall = np.zeros_like(scene.hole)
    for wall in walls:
        in_wall |= _is_recessed(wall.distance)
    candidates = (scene.hole & (upright | in_wall)).astype(np.uint8)
    closed = cv2.morphologyEx(candidates, cv2.MORPH_CLOSE, np.ones((MAX_BAR_WIDTH, MAX_BAR_WIDTH), np.uint8))
    mask = _remove_strips(closed & ~scene.rim).astype(np.uint8)
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask)
    opaque_walls = [wall for wall in walls if scene.hole[wall.members].mean() < MIN_HOLE_FRACTION]
    panes = []
    for number in range(1, count):
        if stats[number, cv2.CC_STAT_AREA] < MIN_PANE_FRACTION * mask.size:
            continue
        members = (components == number) & scene.valid
        if scene.area[members].sum() < MIN_PANE_AREA:
            continue
        plane = _fit_pane_plane(scene, members, down, floor, walls)
        if (
            plane is None
            or not _is_high_pane(scene, members, down, floor)
            or _frame_fraction(scene, plane, members, down) < MIN_FRAME_READINGS
        ):
            continue
        pane = members & _not_in_front(scene, plane)
        around = [wall for wall in opaque_walls if _is_recessed(wall.distance[members]).mean() > MIN_RECESSED_FRACTION]
        for wall in around:
            pane &= wall.distance < WALL_PROTRUSION + wall.tolerance
        pane = _remove_strips(pane)  # e.g. along a curtain's edge, where depth blends into the wall's
        hole_fraction = float(scene.hole[pane].mean()) if pane.any() else 0.0
        if hole_fraction >= MIN_HOLE_FRACTION and pane.sum() >= MIN_PANE_FRACTION * pane.size:
            pane |= _window_frame(scene, pane, floor, around)
            panes.append((pane, hole_fraction))
    return panes


def _remove_strips(mask: np.ndarray) -> np.ndarray:
    """Remove the parts of a mask [h,w] that are narrower than MIN_PANE_WIDTH."""
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((MIN_PANE_WIDTH,) * 2, np.uint8)) > 0


def _window_frame(scene: Scene, pane: np.ndarray, floor: Surface | None, walls: list[Surface]) -> np.ndarray:
    """Frame of a window, recessed in the walls around it, bool [h,w]; empty for a door."""
    frame, points = np.zeros_like(pane), scene.points[pane]
    is_door = pane[-1].any() if floor is None else np.percentile(floor.plane.distance(points), 3) < MIN_SILL_HEIGHT
    if is_door:
        return frame
    width = WINDOW_FRAME_WIDTH * scene.focal / np.median(points[:, 2])
    near = scene.valid & (cv2.distanceTransform((~pane).astype(np.uint8), cv2.DIST_L2, 5) <= width)
    for wall in walls:
        if np.median(wall.distance[pane]) < -MIN_WINDOW_RECESS:
            frame |= near & (wall.distance < -MIN_WINDOW_RECESS) & _is_recessed(wall.distance)
    return frame


def _is_recessed(distance: np.ndarray) -> np.ndarray:
    return (-distance > RECESS_RANGE[0]) & (-distance < RECESS_RANGE[1])


def _fit_pane_plane(
    scene: Scene, members: np.ndarray, down: np.ndarray, floor: Surface | None, walls: list[Surface]
) -> Plane | None:
    """Plane of a pane: that of the wall around it, shifted to the pane; else its own if that is vertical."""
    points = scene.points[members]
    for wall in sorted(walls, key=lambda w: np.median(np.abs(w.distance[members]))):
        if _is_recessed(wall.distance[members]).mean() > MIN_RECESSED_FRACTION:
            return Plane(wall.plane.normal, wall.plane.offset + float(np.median(wall.plane.distance(points))))
    upright = members & scene.planar & (np.abs(scene.normals @ down) < MAX_PANE_TILT)
    if upright.sum() < 0.6 * members.sum():
        return None
    normal = scene.normals[upright].mean(axis=0)
    normal -= (normal @ down) * down
    normal /= np.linalg.norm(normal)
    plane = Plane(normal, float(np.median(points @ normal)))
    plane = refine(scene, plane, upright, vertical_to=down)
    if near_plane(scene, plane, 2.0)[members].mean() <= 0.7:
        return None
    if _seen_over_fraction(scene, fit_surface(scene, plane, upright)) < MAX_SEEN_OVER:
        return plane
    partition = floor is not None and np.percentile(floor.plane.distance(points), 97) > MIN_PARTITION_TOP
    return plane if partition else None


def _is_high_pane(scene: Scene, members: np.ndarray, down: np.ndarray, floor: Surface | None) -> bool:
    """Whether a pane is high enough or cut by the image border, unlike a dark panel low on a wall."""
    unseen = np.logical_and.accumulate(scene.rim)  # rim along the top border, above which nothing is known
    if members[scene.first_valid_row :][:3].any() or (members[1:] & unseen[:-1]).any():
        return True
    above = _height(scene.points[members], down, floor)
    return bool(np.percentile(above, 97) >= (0.0 if floor is None else MIN_PANE_TOP))


def _not_in_front(scene: Scene, plane: Plane) -> np.ndarray:
    return scene.valid & (plane.distance(scene.points) < 3 * scene.tolerance)


def _frame_fraction(scene: Scene, plane: Plane, members: np.ndarray, down: np.ndarray) -> float:
    """Fraction of pixels with readings in the ring around the upright bounding rectangle of `members` on a plane."""
    rays = scene.points / np.maximum(scene.points[..., 2:], 1e-9)
    slope = rays @ plane.normal
    intersection = rays * (plane.offset / np.where(slope < -1e-3, slope, np.nan))[..., None]
    inside = _not_in_front(scene, plane)
    for direction in (np.cross(down, plane.normal), -down):
        coordinate = intersection @ direction
        low, high = np.percentile(coordinate[members], (1, 99))
        inside &= (coordinate >= low) & (coordinate <= high)
    ring = cv2.dilate(inside.astype(np.uint8), np.ones((2 * RING_WIDTH + 1,) * 2, np.uint8)).astype(bool)
    ring &= ~inside & ~scene.rim & _not_in_front(scene, plane)
    return float((~scene.hole[ring]).mean()) if ring.any() else 0.0
