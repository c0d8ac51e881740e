"""Floor, wall and glass from the geometry of one depth map: planes and gravity, never rows of the image.

Normals, gravity and planes that drift smoothly are planes.py's.

1. Floor: the lowest large plane that faces up and has nothing below it, and all that lies on it.
2. Walls: large vertical planes that reach up and over which nothing behind them is seen; over a cupboard the wall is.
   What stands in parallel before a larger wall, or is seen past, closely or because it is narrow, is furniture.
3. What lies on two of them, as along the foot of a wall, belongs to the one that its viewing ray meets first.
4. Glass: where the sensor has holes, or looks through, framed by readings on or in a wall; a window's frame with it.
   Where the sensor doesn't look, on its rim, there is none.

The rest, ceilings among it, is other: what can't be told is not guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from config import CLASS_NAMES, Intrinsics
from teacher_infer.planes import (
    BIN,
    COARSE,
    FACING,
    Plane,
    Scene,
    Surface,
    find_gravity,
    fit_surface,
    make_scene,
    near_plane,
    peaks,
    refine,
)

FLOOR, WALL, GLASS, OTHER = (CLASS_NAMES.index(name) for name in ("floor", "wall", "glass", "other"))

VERTICAL = np.sin(np.radians(20))  # largest |normal . gravity| of a pane's normal
LEANING = np.sin(np.radians(30))  # and of a wall's, which drift of depth tilts
FACING_PAINT = 0.3  # least cosine of a planar place's normal and the normal of the surface that it belongs to
FLOOR_AREA = 0.15  # square metres that a floor must show
FLOOR_BELOW_CAMERA = 0.15  # metres
BELOW = 0.08  # metres beyond the tolerance that lie below a floor
BELOW_FLOOR = 0.012  # largest share of points lower than the floor: more, and it is a table top or a bed

FLOATING = 0.5  # share of columns in which depth jumps back at a plane's far edge: a table top seen without floor
JUMP = 1.1  # factor on depth that is a jump

MAX_WALLS = 10
WALL_AREA = 0.25  # square metres that a wall must show
WALL_SHARE = 0.006  # and share of the image
WALL_HEIGHT = 1.9  # metres above the floor that a wall reaches, unless the image ends before,
WALL_ABOVE_CAMERA = 0.4  # or above the camera without a floor in sight;
HIDDEN = 0.4  # or share of columns in which something stands before what would be above: a cupboard on the wall,
BEFORE = 0.3  # which takes up this share of the column there (normals are blurred, so a plane's rim is no member)
BEHIND = 0.1  # metres beyond the tolerance that lie behind a wall
OVERLOOKED = 0.35  # share of columns in which something behind a plane is seen above it: furniture
SEEN_PAST = 0.35  # the same of rows, at one of its sides, when it is
SIDE_STEPS = (10, 20, 30)  # working pixels beyond the last member, whose normal is blurred before the edge is
NARROW = 0.85  # metres wide at most: the side of a wardrobe; walls of rooms that are not convex are wider
STANDS_BEFORE = (0.15, 1.0)  # metres before a wall in parallel: cupboards that hang on it, wardrobes
BACKGROUND = 0.5  # of its area that the wall behind shows at least
RELIEF = (0.06, 0.05)  # metres that parts of a wall lie before it, as curtains, and behind it, as doors do

GLASS_SHARE = 0.003  # of the image
GLASS_AREA = 0.08  # square metres
GLASS_TOP = 1.4  # metres above the floor that a pane reaches at least, unless the image ends before
PARTITION = 2.1  # metres above the floor that a pane reaches which the ceiling is seen over: furniture is lower
GLASS_FILL = 0.4  # share of holes in a pane
FRAMED = 0.4  # share of readings in the rim around a pane: less, and the whole wall is out of the sensor's reach
RIM = 7  # working pixels
STRIP = 5  # working pixels that a pane is wide at least
BARS = 9  # working pixels that bars and smears in a pane may be wide
RECESS = (-0.15, 0.45)  # metres that a pane may lie in front of and behind the wall that holds it
HELD = 0.7  # share of a pane that lies so for the wall to hold it
PROUD = 0.03  # metres before a wall, beyond its tolerance: no pane of it, but a curtain
SASH = 0.06  # metres that a window's frame is wide, which counts as the window,
REVEAL = 0.03  # and that it lies behind the wall at least, unlike what is around a mirror
SILL = 0.25  # metres above the floor that windows begin at: lower are doors, whose frames count as walls


@dataclass
class GeometryResult:
    """What geometry tells of one frame.

    classes: uint8 [H,W], floor, wall, glass or other (config.CLASS_NAMES). gravity: float64 [3], unit vector that
    points down in camera axes. confidence: float32 [H,W] in 0..1, 1 = lies on the middle of its plane, 0 = other.
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
    """Floor, wall, glass and other of one frame.

    Args:
        depth: float32 [H,W], metres, 0 = none; without holes where possible (a teacher's, or filled). Single pixels
            without depth get the class around them.
        intrinsics: camera of the map at its own size.
        sensor_depth: float32 [H,W], metres, 0 = hole, as the sensor gave it. Without it nothing is glass.
        gravity: vector pointing down in camera axes, when an inertial sensor knows it.
        common_rim: where the sensor never looks, by sensor_rim.rim_of_frames(); without it this frame has to tell.
    """
    scene = make_scene(depth, intrinsics, sensor_depth, common_rim)
    down = find_gravity(scene) if gravity is None else np.asarray(gravity, float) / np.linalg.norm(gravity)
    floor = find_floor(scene, down)
    walls = find_walls(scene, down, floor)
    surfaces = [(wall, WALL) for wall in walls] + ([(floor, FLOOR)] if floor is not None else [])
    classes, confidence = _paint(scene, surfaces)
    if sensor_depth is not None:
        for pane, certainty in find_glass(scene, down, floor, walls):
            classes[pane], confidence[pane] = GLASS, certainty
    size = depth.shape[::-1]
    classes, confidence = (cv2.resize(each, size, interpolation=cv2.INTER_NEAREST) for each in (classes, confidence))
    if scene.valid.shape != depth.shape:
        _sharpen(scene, surfaces, depth.astype(np.float32), classes, confidence)
    return GeometryResult(classes, down, confidence)


def find_floor(scene: Scene, down: np.ndarray) -> Surface | None:
    """The lowest plane of FLOOR_AREA that faces up, with next to nothing below it."""
    facing = scene.planar & (scene.normals @ down < -FACING)
    height = -(scene.points @ down)
    candidates = facing & (height < -FLOOR_BELOW_CAMERA)
    if not candidates.any():
        return None
    for level in peaks(height[candidates], scene.area[candidates], FLOOR_AREA)[:3]:
        plane = refine(scene, Plane(-down, level), candidates)
        surface = fit_surface(scene, plane, scene.planar)
        below = scene.valid & (surface.distance < -(BELOW + surface.tolerance))
        if below.sum() < BELOW_FLOOR * scene.valid.sum() and _floating(scene, surface.members) < FLOATING:
            return surface
    return None


def _floating(scene: Scene, members: np.ndarray, above: int = 2 * COARSE) -> float:
    """Share of the columns of `members` in which depth jumps back `above` pixels over their far edge.

    Normals are blurred by COARSE pixels, so the last members lie as far before it.

    A floor ends where something stands on it or before it; behind the edge of a table top the view goes on.
    """
    columns = np.flatnonzero(members.sum(axis=0) >= 3)
    edge = members[:, columns].argmax(axis=0)
    columns, edge = columns[edge >= above], edge[edge >= above]
    if not len(columns):
        return 0.0
    z = scene.points[..., 2]
    return float((z[edge - above, columns] > JUMP * z[edge, columns]).mean())


def find_walls(scene: Scene, down: np.ndarray, floor: Surface | None) -> list[Surface]:
    """Vertical planes of WALL_AREA, the largest first, that reach up, are not seen over, and are no furniture."""
    right = np.cross(down, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    forward = np.cross(right, down)
    left_over = scene.planar & (np.abs(scene.normals @ down) < LEANING)
    walls = []
    for _ in range(MAX_WALLS):
        plane = _largest_vertical(scene, left_over, right, forward)
        if plane is None:
            break
        plane = refine(scene, plane, left_over & (scene.normals @ plane.normal > FACING), vertical_to=down)
        surface = fit_surface(scene, plane, left_over)
        left_over &= ~(surface.on | near_plane(scene, plane, 0.5))
        # the rims of what hangs on a wall are no planar places, but they are no less of its area, up to half of it
        rims = surface.on & ~scene.planar & (scene.normals @ plane.normal > 0)
        area = scene.area[surface.members].sum()
        area += min(area, scene.area[rims].sum())
        large = area >= WALL_AREA and surface.members.sum() >= WALL_SHARE * rims.size
        if large and _reaches_up(scene, surface, down, floor) and _overlooked(scene, surface) < OVERLOOKED:
            walls.append(surface)
    return [wall for wall in walls if not _stands_before(scene, wall, walls) and not _is_side(scene, wall, down)]


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


def _reaches_up(scene: Scene, surface: Surface, down: np.ndarray, floor: Surface | None) -> bool:
    """Whether a plane is as high as walls are, or may be: the image ends before it does, or its top is hidden."""
    members = surface.members
    if members[scene.first_row :][:5].sum() >= 5 or _hidden(scene, surface) > HIDDEN:
        return True
    height = _height(scene.points[members], down, floor)
    return np.percentile(height, 97) > (WALL_ABOVE_CAMERA if floor is None else WALL_HEIGHT)


def _height(points: np.ndarray, down: np.ndarray, floor: Surface | None) -> np.ndarray:
    """Metres above the floor, or above the camera without one, [n,3] -> [n]."""
    return -(points @ down) if floor is None else floor.plane.distance(points)


def _hidden(scene: Scene, surface: Surface) -> float:
    """Share of the columns of a surface in which what is seen above it stands before it.

    A wall goes on behind the cupboards that hang on it.
    """
    columns, above = _above(scene, surface)
    if not len(columns):
        return 0.0
    before = above & (surface.plane.distance(scene.points[:, columns]) > 2 * scene.tolerance[:, columns])
    return float((before.sum(axis=0) > BEFORE * np.maximum(above.sum(axis=0), 1)).mean())


def _overlooked(scene: Scene, surface: Surface) -> float:
    """Share of the columns of a surface in which points behind it are seen above it."""
    columns, above = _above(scene, surface)
    if not len(columns):
        return 1.0
    return float(((_behind(scene, surface)[:, columns] & above).sum(axis=0) >= 3).mean())


def _above(scene: Scene, surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """The columns int [n] that a surface's members take up, and what is valid above them there, bool [h,n]."""
    columns = np.flatnonzero(surface.members.sum(axis=0) >= 3)
    top = surface.members[:, columns].argmax(axis=0)
    return columns, (np.arange(len(surface.members))[:, None] < top) & scene.valid[:, columns]


def _behind(scene: Scene, surface: Surface) -> np.ndarray:
    return scene.valid & (surface.distance < -(BEHIND + 1.5 * surface.tolerance))


def _stands_before(scene: Scene, surface: Surface, walls: list[Surface]) -> bool:
    """Whether a parallel wall is seen closely behind a plane: a wardrobe's front, a refrigerator's, a cupboard's.

    The gap is measured on both: of two pieces of one bent wall, each may lie before the other.
    """
    area = scene.area[surface.members].sum()
    for wall in walls:
        if wall.plane.normal @ surface.plane.normal < FACING or scene.area[wall.members].sum() < BACKGROUND * area:
            continue
        gaps = np.median(wall.distance[surface.members]), -np.median(surface.distance[wall.members])
        if all(STANDS_BEFORE[0] < gap < STANDS_BEFORE[1] for gap in gaps):
            return True
    return False


def _is_side(scene: Scene, surface: Surface, down: np.ndarray) -> bool:
    """Whether the view goes on behind one of a plane's sides, as it does at a wardrobe's.

    Behind a wide plane it has to go on closely and across a jump of depth: walls end in open doors and in corners that
    stick out, too. Narrow planes with such a corner are sides of furniture.
    """
    low, high = np.percentile(scene.points[surface.members] @ np.cross(down, surface.plane.normal), (2, 98))
    behind = _behind(scene, surface)
    steps: tuple[int, ...] = SIDE_STEPS
    if high - low > NARROW:
        behind, steps = behind & (surface.distance > -STANDS_BEFORE[1]), SIDE_STEPS[:1]
    rows = np.flatnonzero(surface.members.sum(axis=1) >= 3)
    members, behind = surface.members[rows], behind[rows]
    for towards in (slice(None), slice(None, None, -1)):
        beyond = members[:, towards].argmax(axis=1)[:, None] - np.array(steps)
        past = np.take_along_axis(behind[:, towards], np.maximum(beyond, 0), axis=1) & (beyond >= 0)
        if len(rows) and past.any(axis=1).mean() > SEEN_PAST:
            return True
    return False


def _paint(scene: Scene, surfaces: list[tuple[Surface, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Classes uint8 and confidence float32 [h,w] of the working copy."""
    layers = []
    for surface, class_id in surfaces:
        layers.append((surface, class_id, surface.distance, surface.inverse, _faces(scene, surface)))
    return _nearest_layer(scene.valid.shape, layers)


def _sharpen(
    scene: Scene, surfaces: list[tuple[Surface, int]], depth: np.ndarray, classes: np.ndarray, confidence: np.ndarray
) -> None:
    """Tell classes uint8 [H,W] apart again, in place and at the depth map's own size, along the working copy's edges.

    Edges of glass stay as they are: they are a matter of holes, not of planes.
    """
    small = cv2.resize(classes, scene.valid.shape[::-1], interpolation=cv2.INTER_NEAREST)
    kernel = np.ones((3, 3), np.uint8)
    edges = (cv2.dilate(small, kernel) != cv2.erode(small, kernel)).astype(np.uint8)
    edges[cv2.dilate((small == GLASS).astype(np.uint8), kernel) > 0] = 0
    size = depth.shape[::-1]
    places = np.nonzero(cv2.resize(edges, size, interpolation=cv2.INTER_NEAREST))
    z = cv2.medianBlur(depth, 3)[places]
    layers = []
    for surface, class_id in surfaces:
        inverse = cv2.resize(surface.inverse.astype(np.float32), size)[places]
        distance = np.where(z > 0, -surface.plane.offset * (1 - inverse * z), np.inf)
        faces = cv2.resize(_faces(scene, surface).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)[places] > 0
        layers.append((surface, class_id, distance, inverse, faces))
    classes[places], confidence[places] = _nearest_layer(z.shape, layers)


def _faces(scene: Scene, surface: Surface) -> np.ndarray:
    """What does not face elsewhere, bool [h,w]."""
    return ~scene.planar | (scene.normals @ surface.plane.normal > FACING_PAINT)


def _nearest_layer(shape: tuple[int, ...], layers: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Classes uint8 and confidence float32 of places that may lie on surfaces.

    What lies on two belongs to the one that its viewing ray meets first: the foot of a wall hides the floor behind it.

    Args:
        shape: of the places.
        layers: of each surface: itself, its class, and at all places their distance from it in metres, its inverse
            depth, and whether they may face as it does.
    """
    classes, confidence = np.full(shape, OTHER, dtype=np.uint8), np.zeros(shape, dtype=np.float32)
    nearest = np.zeros(shape)
    for surface, class_id, distance, inverse, faces in layers:
        front, back = RELIEF if class_id == WALL else (0.0, 0.0)
        off = np.abs(distance) / (surface.tolerance + np.where(distance > 0, front, back))
        on = (off < 1) & faces & (inverse > nearest)
        classes[on], confidence[on], nearest[on] = class_id, 1 - off[on], inverse[on]
    return classes, confidence


def find_glass(
    scene: Scene, down: np.ndarray, floor: Surface | None, walls: list[Surface]
) -> list[tuple[np.ndarray, float]]:
    """Panes: what holes cover, bars and smears among them closed.

    Returns each as (bool [h,w] with a window's frame, share of holes in it without the frame).
    """
    upright = np.abs(scene.normals @ down) < np.sin(np.radians(30))
    in_wall = np.zeros_like(scene.hole)
    for wall in walls:
        in_wall |= _recessed(wall.distance)
    candidates = (scene.hole & (upright | in_wall)).astype(np.uint8)
    closed = cv2.morphologyEx(candidates, cv2.MORPH_CLOSE, np.ones((BARS, BARS), np.uint8))
    joined = _without_strips(closed & ~scene.rim).astype(np.uint8)
    count, components, stats, _ = cv2.connectedComponentsWithStats(joined)
    read = [wall for wall in walls if scene.hole[wall.members].mean() < GLASS_FILL]  # the others are panes themselves
    panes = []
    for number in range(1, count):
        if stats[number, cv2.CC_STAT_AREA] < GLASS_SHARE * joined.size:
            continue
        members = (components == number) & scene.valid
        if scene.area[members].sum() < GLASS_AREA:
            continue
        plane = _pane_plane(scene, members, down, floor, walls)
        if plane is None or not _high(scene, members, down, floor) or _framed(scene, plane, members, down) < FRAMED:
            continue
        pane = members & _not_before(scene, plane)
        holders = [wall for wall in read if _recessed(wall.distance[members]).mean() > HELD]
        for wall in holders:
            pane &= wall.distance < PROUD + wall.tolerance
        pane = _without_strips(pane)  # the rim of a curtain, for one, where depth goes over into the wall's
        certainty = float(scene.hole[pane].mean()) if pane.any() else 0.0
        if certainty >= GLASS_FILL and pane.sum() >= GLASS_SHARE * pane.size:
            pane |= _window_frame(scene, pane, floor, holders)
            panes.append((pane, certainty))
    return panes


def _without_strips(mask: np.ndarray) -> np.ndarray:
    """A mask [h,w] without what is narrower than STRIP, bool."""
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((STRIP, STRIP), np.uint8)) > 0


def _window_frame(scene: Scene, pane: np.ndarray, floor: Surface | None, walls: list[Surface]) -> np.ndarray:
    """The frame around a window's pane, recessed in the walls that hold it: bool [h,w], nothing for a door's."""
    frame, points = np.zeros_like(pane), scene.points[pane]
    is_door = pane[-1].any() if floor is None else np.percentile(floor.plane.distance(points), 3) < SILL
    if is_door:
        return frame
    width = SASH * scene.focal / np.median(points[:, 2])
    near = scene.valid & (cv2.distanceTransform((~pane).astype(np.uint8), cv2.DIST_L2, 5) <= width)
    for wall in walls:
        if np.median(wall.distance[pane]) < -REVEAL:
            frame |= near & (wall.distance < -REVEAL) & _recessed(wall.distance)
    return frame


def _recessed(distance: np.ndarray) -> np.ndarray:
    return (-distance > RECESS[0]) & (-distance < RECESS[1])


def _pane_plane(
    scene: Scene, members: np.ndarray, down: np.ndarray, floor: Surface | None, walls: list[Surface]
) -> Plane | None:
    """The plane of a pane: the wall's that holds it, moved to the pane; else its own, when that is vertical."""
    points = scene.points[members]
    for wall in sorted(walls, key=lambda w: np.median(np.abs(w.distance[members]))):
        if _recessed(wall.distance[members]).mean() > HELD:
            return Plane(wall.plane.normal, wall.plane.offset + float(np.median(wall.plane.distance(points))))
    upright = members & scene.planar & (np.abs(scene.normals @ down) < VERTICAL)
    if upright.sum() < 0.6 * members.sum():
        return None
    normal = scene.normals[upright].mean(axis=0)
    normal -= (normal @ down) * down
    normal /= np.linalg.norm(normal)
    plane = Plane(normal, float(np.median(points @ normal)))
    plane = refine(scene, plane, upright, vertical_to=down)
    if near_plane(scene, plane, 2.0)[members].mean() <= 0.7:
        return None
    if _overlooked(scene, fit_surface(scene, plane, upright)) < OVERLOOKED:
        return plane
    partition = floor is not None and np.percentile(floor.plane.distance(points), 97) > PARTITION
    return plane if partition else None


def _high(scene: Scene, members: np.ndarray, down: np.ndarray, floor: Surface | None) -> bool:
    """Whether a pane reaches up, or the image ends before it does; a dark panel low on a wall does not."""
    beyond = np.logical_and.accumulate(scene.rim)  # what lies above it is not known either
    if members[scene.first_row :][:3].any() or (members[1:] & beyond[:-1]).any():
        return True
    above = _height(scene.points[members], down, floor)
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
    rim &= ~inside & ~scene.rim & _not_before(scene, plane)
    return float((~scene.hole[rim]).mean()) if rim.any() else 0.0
