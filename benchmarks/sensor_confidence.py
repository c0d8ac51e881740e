"""Confidence computed from depth (dataset/confidence.py): its calibration, and what a threshold keeps.

Reads   nothing; with --recordings, folders of RGB-D images.
Writes  a chart (--chart); prints the weights of a fit and tables.

All rooms are rendered. The weights are fitted on a robot's views of the rooms of one seed and tested on those of
another, in frames with 70 to 85 % of the pixels dead. Where the simulated time-of-flight sensor reads, it has little
noise and hardly a flying pixel, so both are added, in different amounts per room. The noisiest room has about 17 mm at
1 m, the limit that is published for the Azure Kinect (doi:10.3390/s21020413), whose sensor the Femto Bolt has. Readings
through glass and in mirrors are left out of the fit, because depth alone can't tell them from others; the test includes
them.

Of real recordings, the script prints what thresholds drop and, if they have poses, how many readings the next frame
confirms.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

try:
    from cli import ArgumentParser, UserError, existing_dir, non_negative_int, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize
from scipy.special import expit
from tabulate import tabulate
from tqdm import tqdm

from config import Intrinsics
from dataset.calibration import CameraSettings, find_intrinsics
from dataset.confidence import CONSTANT, WEIGHTS, measure, sensor_confidence, tolerance
from dataset.frames import read_depth
from dataset.layouts import POSE_SUFFIX, find_recording, read_pose
from dataset.manifest import Cameras
from dataset.rectification import Lens
from dataset.registration import Registration
from dataset.transforms import rigid
from rooms import tof
from rooms.render import Hits, World, camera_rays
from rooms.robot import build_robot_room, choose_robot_poses
from rooms.scenes import TOF_WEAKNESS
from rooms.textures import OPAQUE

CAMERA = Path(__file__).resolve().parents[1] / "cameras" / "femto_bolt_color.json"
DEAD = (0.70, 0.85)  # of a test frame's pixels
NOISE = (0.2, 8.0)  # range of a room's factor on 1.5 mm + 0.6 mm per m^2 * depth^2, which is 17 mm at 1 m with 8
UNEVEN = 0.7  # standard deviation of the logarithm of the noise within a frame
FLYING = (0.05, 0.4)  # range of the share of flying pixels among the readings at an edge
EDGE = 0.04  # relative difference of depth in 3x3 pixels that makes an edge
SAMPLED = 0.125  # of the readings
THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 0.9, 0.95)
DISTURBED = "noise and flying pixels added"
SENSORS = {DISTURBED: True, "the simulator's sensor as it is": False}
OWN_VIEW, REGISTERED = "in the sensor's own view", "registered to colour, as in a data folder"
PLACES = (OWN_VIEW, REGISTERED, "registered to colour before the confidence was computed")
BANDS = (0.0, 0.5, 0.9, 0.99, 1.01)  # of confidence, for real frames


@dataclass
class View:
    """What a time-of-flight sensor and the colour camera beside it see of a room.

    Attributes:
        reading: float32 [h,w] metres, 0 = no reading.
        truth: float32 [h,w] metres; for glass and mirrors, of their surface.
        is_opaque: bool [h,w], neither glass nor mirror.
        registration: of the sensor's maps to the colour image.
        colour_truth: float32 [H,W] metres, in the colour image.
        colour_is_opaque: bool [H,W].
    """

    reading: np.ndarray
    truth: np.ndarray
    is_opaque: np.ndarray
    registration: Registration
    colour_truth: np.ndarray
    colour_is_opaque: np.ndarray


@dataclass
class Readings:
    """Readings of some frames. confidence, error in metres, depth (true, metres), is_opaque: [N] each."""

    confidence: np.ndarray
    error: np.ndarray
    depth: np.ndarray
    is_opaque: np.ndarray

    @property
    def is_right(self) -> np.ndarray:
        """Whether the error is at most the tolerance, bool [N]."""
        return self.error <= tolerance(self.depth)

    def select(self, mask: np.ndarray) -> "Readings":
        """The readings of a mask, bool [N]."""
        return Readings(*(values[mask] for values in vars(self).values()))

    @classmethod
    def join(cls, parts: Sequence["Readings"]) -> "Readings":
        """The readings of all parts."""
        return cls(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))


def render_views(seed: int, rooms: int) -> Iterator[View]:
    """A view of each room, in every second one by a sensor that joins 2x2 pixels."""
    femto = Cameras.read(CAMERA).common
    assert femto is not None
    for scene in tqdm(range(rooms), f"seed {seed}", unit="room", disable=None):
        rng = np.random.default_rng([seed, scene])
        colour = femto if scene % 2 == 0 else femto.resized(femto.width // 2, femto.height // 2)
        _, room = build_robot_room(rng)
        world = room.world()
        pose = choose_robot_poses(world, room, colour, 1, rng)[0]
        weakness = float(np.exp(rng.uniform(*np.log(TOF_WEAKNESS))))
        sensor = tof.tof_camera(colour)
        reading, first = tof.measure(world, colour, pose, rng, weakness)
        hits = world.cast(pose.position[None], camera_rays(colour, pose))
        to_colour = Registration(Lens.pinhole(sensor), colour, rigid(np.eye(3), np.array([tof.BASELINE, 0.0, 0.0])))
        yield View(reading, *_exact(world, first, sensor), to_colour, *_exact(world, hits, colour))


def _exact(world: World, hits: Hits, camera: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    shape = (camera.height, camera.width)
    depth = np.where(np.isfinite(hits.distance), hits.distance, 0).astype(np.float32)
    return depth.reshape(shape), (world.triangle_kind[hits.triangle] == OPAQUE).reshape(shape)


def add_noise(reading: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Readings with noise, uneven over the frame, and with flying pixels: between two depths, at edges.

    reading, truth: float32 [h,w] metres, 0 = none.
    """
    factor, flying_share = np.exp(rng.uniform(*np.log(NOISE))), rng.uniform(*FLYING)
    uneven = cv2.resize(rng.standard_normal((8, 8)), reading.shape[::-1], interpolation=cv2.INTER_CUBIC)
    deviation = factor * np.exp(UNEVEN * uneven) * (0.0015 + 0.0006 * reading**2)
    noisy = np.maximum(reading + deviation * rng.standard_normal(reading.shape), 0.01)
    kernel = np.ones((3, 3), np.uint8)
    near, far = cv2.erode(truth, kernel), cv2.dilate(truth, kernel)
    is_flying = (far - near > EDGE * np.maximum(truth, 0.5)) & (rng.random(reading.shape) < flying_share)
    mixed = near + (far - near) * rng.random(reading.shape)
    return np.where(reading > 0, np.where(is_flying, mixed, noisy), 0).astype(np.float32)


def fit(views: Iterable[View], rng: np.random.Generator) -> tuple[float, dict[str, float], int]:
    """Logistic regression of "the error is within the tolerance", without a weight above 0, on opaque surfaces.

    Returns the constant, {feature: weight}, and the number of readings.
    """
    rows, right = [], []
    for view in views:
        reading = add_noise(view.reading, view.truth, rng)
        features = measure(reading)
        chosen = (reading > 0) & (view.truth > 0) & view.is_opaque & (rng.random(reading.shape) < SAMPLED)
        rows.append(np.stack([np.ones(chosen.sum()), *(features[name][chosen] for name in WEIGHTS)], 1))
        right.append(np.abs(reading - view.truth)[chosen] <= tolerance(view.truth[chosen]))
    x, y = np.concatenate(rows), np.concatenate(right)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logit = x @ weights
        return float(np.mean(np.logaddexp(0, np.where(y, -logit, logit)))), x.T @ (expit(logit) - y) / len(y)

    bounds = [(None, None), *((None, 0) for _ in WEIGHTS)]
    constant, *weights = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds).x
    return constant, dict(zip(WEIGHTS, weights, strict=True)), len(y)


def read_views(views: Iterable[View], rng: np.random.Generator) -> tuple[dict[str, dict[str, Readings]], list[float]]:
    """Readings of the views with many dead pixels.

    Returns {a key of SENSORS: {a key of PLACES: Readings}} and the shares of dead pixels of these views.
    """
    parts: dict[str, dict[str, list[Readings]]] = {sensor: {place: [] for place in PLACES} for sensor in SENSORS}
    dead = []
    for view in views:
        share = float((view.reading == 0).mean())
        if not DEAD[0] <= share <= DEAD[1]:
            continue
        dead.append(share)
        for sensor, is_disturbed in SENSORS.items():
            reading = add_noise(view.reading, view.truth, rng) if is_disturbed else view.reading
            confidence = sensor_confidence(reading)
            depth, moved = view.registration.register_with(reading, confidence)
            assert moved is not None
            for place, found in zip(PLACES, (confidence, moved, sensor_confidence(depth)), strict=True):
                own = place == OWN_VIEW
                truth, is_opaque = (view.truth, view.is_opaque) if own else (view.colour_truth, view.colour_is_opaque)
                parts[sensor][place].append(_sample(reading if own else depth, found, truth, is_opaque, rng))
    if not dead:
        raise UserError("no test frame has 70 to 85 % dead pixels: raise --test-rooms")
    joined = {
        sensor: {place: Readings.join(found) for place, found in places.items()} for sensor, places in parts.items()
    }
    return joined, dead


def _sample(
    depth: np.ndarray, confidence: np.ndarray, truth: np.ndarray, is_opaque: np.ndarray, rng: np.random.Generator
) -> Readings:
    chosen = (depth > 0) & (truth > 0) & (rng.random(depth.shape) < SAMPLED)
    error = np.abs(depth - truth)[chosen]
    return Readings(confidence[chosen], error, truth[chosen], is_opaque[chosen])


def table_of_thresholds(readings: Readings) -> list[list[object]]:
    """Rows: threshold, share of the readings kept, their errors, their shares within the tolerance and of glass."""
    rows: list[list[object]] = []
    right = readings.is_right
    for threshold in THRESHOLDS:
        kept = readings.confidence >= threshold
        errors = 1000 * np.percentile(readings.error[kept], (50, 95))
        solid = kept & readings.is_opaque
        shares = (right[kept].mean(), right[solid].mean(), 1 - solid.sum() / kept.sum())
        rows.append(
            [threshold, f"{kept.mean():.1%}", *(f"{e:.1f}" for e in errors), *(f"{share:.1%}" for share in shares)]
        )
    return rows


def reliability(readings: Readings) -> list[tuple[float, float, float]]:
    """(mean confidence, share within the tolerance, share of the readings) in tenths of confidence."""
    tenth = np.minimum((10 * readings.confidence).astype(int), 9)
    right = readings.is_right
    found = [tenth == number for number in range(10)]
    return [(float(readings.confidence[f].mean()), float(right[f].mean()), float(f.mean())) for f in found if f.any()]


def draw_chart(path: Path, readings: Readings) -> None:
    """Draw what a threshold keeps, and confidence beside the share that is right."""
    thresholds = np.linspace(0, 0.99, 100)
    kept = [readings.confidence >= threshold for threshold in thresholds]
    right, solid = readings.is_right, readings.is_opaque
    with matplotlib.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(8.4, 3.8), layout="constrained")
        left, other = figure.subplots(1, 2)
        left.plot(thresholds, [100 * mask.mean() for mask in kept], color="#0072B2", label="readings kept")
        for chosen, style, name in ((right >= 0, "-", "of these"), (solid, "--", "of these without glass")):
            within = [100 * right[mask & chosen].mean() for mask in kept]
            left.plot(thresholds, within, style, color="#D55E00", label=f"{name} within 2 cm or 2 %")
        left.axvline(0.5, color="grey", linestyle=":")
        left.set(xlabel="threshold on confidence", ylabel="%", ylim=(80, 100.5))
        left.legend(loc="lower left")
        confidence, share, _ = zip(*reliability(readings.select(solid)), strict=True)
        other.plot(confidence, share, "o-", color="#D55E00")
        other.plot([0, 1], [0, 1], color="grey", linestyle=":")
        other.set(xlabel="confidence", ylabel="share within 2 cm or 2 %, without glass")
        figure.suptitle("Calibrated and measured on a simulated sensor in rendered rooms, not on a real one")
        figure.savefig(path, dpi=110)


def read_recording(folder: Path) -> Iterator[np.ndarray]:
    """The depth of a recording's frames, float32 [H,W] metres."""
    files, _ = find_recording(folder)
    for _, file in tqdm(files.values(), folder.name, leave=False, disable=None):
        if file.is_file():
            yield read_depth(file)


def agreement(folder: Path) -> list[list[str]]:
    """Rows: confidence, share of the readings, share of those that the next frame confirms; none without poses.

    A reading is projected into the next frame and compared with the nearest of the readings in 3x3 pixels, since edges
    move by a pixel. A constant error confirms itself.
    """
    files = {stem: pair for stem, pair in find_recording(folder)[0].items() if pair[1].is_file()}
    poses = {
        stem: read_pose(colour.with_name(f"{Path(stem).name}{POSE_SUFFIX}")) for stem, (colour, _) in files.items()
    }
    posed = [(files[stem][1], pose) for stem, pose in poses.items() if pose is not None]
    if len(posed) < 2:
        return []
    values = find_intrinsics(folder, CameraSettings())
    matrix = np.array([[values["fx"], 0, values["cx"]], [0, values["fy"], values["cy"]], [0, 0, 1]])
    confidence, confirmed = [], []
    for (file, pose), (next_file, next_pose) in tqdm(pairwise(posed), folder.name, len(posed) - 1, False, disable=None):
        depth = read_depth(file)
        chosen, is_confirmed = confirm(depth, read_depth(next_file), np.linalg.inv(next_pose) @ pose, matrix)
        confidence.append(sensor_confidence(depth)[chosen])
        confirmed.append(is_confirmed)
    of, right = np.concatenate(confidence), np.concatenate(confirmed)
    bands = [(low, high, (of >= low) & (of < high)) for low, high in pairwise(BANDS)]
    return [
        [f"{low:g} to {min(high, 1):g}", f"{mask.mean():.2%}", f"{right[mask].mean():.1%}"]
        for low, high, mask in bands
        if mask.any()
    ]


def confirm(
    depth: np.ndarray, other: np.ndarray, to_other: np.ndarray, matrix: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Compare a frame's readings with those of another frame.

    Args:
        depth: float32 [H,W] metres, 0 = no reading.
        other: depth of the other frame.
        to_other: from camera to camera, [4,4].
        matrix: of the camera, [3,3].

    Returns the rows and columns of the readings that fall on or beside readings of the other frame, and whether one of
    these is within the tolerance.
    """
    rows, columns = np.nonzero(depth)
    points = np.linalg.inv(matrix) @ np.stack([columns, rows, np.ones_like(rows)]) * depth[rows, columns]
    x, y, z = matrix @ (to_other[:3, :3] @ points + to_other[:3, 3:])
    u, v = np.rint(x / z).astype(int), np.rint(y / z).astype(int)
    inside = (z > 0) & (u >= 0) & (u < other.shape[1]) & (v >= 0) & (v < other.shape[0])
    padded = np.pad(np.where(other > 0, other, np.inf), 1, constant_values=np.inf)
    shifts = [(dy, dx) for dy in range(3) for dx in range(3)]
    differences = [np.abs(padded[v[inside] + dy, u[inside] + dx] - z[inside]) for dy, dx in shifts]
    nearest = np.min(differences, axis=0)
    has_reading = np.isfinite(nearest)
    chosen = rows[inside][has_reading], columns[inside][has_reading]
    return chosen, nearest[has_reading] <= tolerance(z[inside][has_reading])


def describe_recording(folder: Path) -> list[object]:
    """A row: recording, number of frames, share of pixels with a reading, and shares of those below 0.5 and 0.9."""
    frames, pixels, readings, low, lower = 0, 0, 0, 0, 0
    for depth in read_recording(folder):
        confidence = sensor_confidence(depth)[depth > 0]
        frames, pixels, readings = frames + 1, pixels + depth.size, readings + confidence.size
        low, lower = low + int(np.sum(confidence < 0.9)), lower + int(np.sum(confidence < 0.5))
    shares = (readings / pixels, lower / readings, low / readings)
    return [folder.resolve().name, frames, *(f"{share:.2%}" for share in shares)]


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--rooms", type=positive_int, default=100, help="to fit on (default: %(default)s)")
    parser.add_argument("--test-rooms", type=positive_int, default=200, help="to test on (default: %(default)s)")
    parser.add_argument("--seed", type=non_negative_int, default=1000, help="of the rooms to fit on (default: 1000)")
    parser.add_argument("--test-seed", type=non_negative_int, default=2000, help="of the test rooms (default: 2000)")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="write a chart to this .png or .svg")
    parser.add_argument(
        "--recordings", nargs="+", default=[], metavar="FOLDER", help="also print what thresholds drop of these"
    )
    arguments = parser.parse_args()
    if arguments.seed == arguments.test_seed:
        raise UserError("--seed and --test-seed are equal: the test would be on the rooms of the fit")
    recordings = [existing_dir(folder, "--recordings") for folder in arguments.recordings]
    rng = np.random.default_rng(0)
    constant, weights, count = fit(render_views(arguments.seed, arguments.rooms), rng)
    print(f"fitted on {count} readings of {arguments.rooms} rooms, beside what dataset/confidence.py has:")
    rows = [["constant", constant, CONSTANT], *([name, weights[name], WEIGHTS[name]] for name in WEIGHTS)]
    print(tabulate(rows, ["", "fitted", "in use"], floatfmt=".2f"))
    readings, dead = read_views(render_views(arguments.test_seed, arguments.test_rooms), rng)
    print(f"\ntest: {len(dead)} of {arguments.test_rooms} frames, {np.mean(dead):.1%} of the pixels dead")
    print("within: error at most 2 cm, or 2 % beyond 1 m; opaque: neither glass nor mirror")
    headers = ["threshold", "kept", "median mm", "95 % mm", "within", "within, opaque", "of glass"]
    for sensor, places in readings.items():
        for place, found in places.items():
            print(f"\n{sensor}, {place}")
            print(tabulate(table_of_thresholds(found), headers, disable_numparse=True))
            calibration = [
                [f"{confidence:.2f}", f"{share:.2f}", f"{of_readings:.1%}"]
                for confidence, share, of_readings in reliability(found.select(found.is_opaque))
            ]
            print(tabulate(calibration, ["confidence", "within, opaque", "of the readings"], disable_numparse=True))
    if arguments.chart:
        draw_chart(arguments.chart, readings[DISTURBED][REGISTERED])
    if recordings:
        print("\nreal recordings")
        headers = ["recording", "frames", "with a reading", "of those below 0.5", "below 0.9"]
        print(tabulate([describe_recording(folder) for folder in recordings], headers, disable_numparse=True))
    for folder in recordings:
        if confirmed := agreement(folder):
            print(f"\n{folder.resolve().name}: readings that the next frame confirms within 2 cm or 2 %")
            print(tabulate(confirmed, ["confidence", "of the readings", "confirmed"], disable_numparse=True))
    print("\nThe simulator calibrated this confidence: no real sensor's error is known here.")


if __name__ == "__main__":
    run(main)
