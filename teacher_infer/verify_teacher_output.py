"""Check on a few frames that the depth teacher is metric for this data and camera, before hours of inference."""

import sys
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path

try:
    from cli import (
        EXIT_GATE_FAILED,
        EXIT_OK,
        ArgumentParser,
        UserError,
        existing_dir,
        positive_float,
        positive_int,
        resolve_device,
        run,
    )
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import numpy as np
from scipy.stats import spearmanr
from tabulate import tabulate

from dataset.files import read_image, write_json, write_png
from dataset.frames import find_frames, find_map, read_depth
from dataset.listing import require_separate_output
from dataset.pictures import colour_depth, colour_error, depth_range, panel
from dataset.units import UNITS, DepthUnit, add_unit_flag
from teacher_infer.depth_backends import add_backend_flags, depth_of, load_depth_backend
from teacher_infer.stage import FrameCameras, add_camera_flags, limit_threads

MIN_DEPTH, MAX_DEPTH = 0.1, 20.0  # plausible indoor depth, metres
MIN_VALID_FRACTION = 0.5  # of pixels with depth; sky and dropped pixels have none
RATIO_RANGE = (0.85, 1.18)  # default for the median of teacher / reference
MAX_OUTLIER_FRACTION = 0.2  # of frames with a ratio outside the range: even a good teacher may miss a frame
MIN_CORRELATION = 0.7
MAX_SPREAD = 0.1  # up to it, a low correlation only means a flat scene, such as a wall
MAX_INVERSE_CORRELATION = (
    -0.3
)  # lower values mean inverse depth; between this and 0 it is rather the depth of different frames
CAUSE_TOLERANCE = 0.08  # relative: a ratio this close to that of a known mistake is attributed to it


@dataclass
class Comparison:
    """Statistics of one frame's teacher depth. Those against a reference are None without common valid pixels."""

    shape_ok: bool
    float32: bool
    finite: bool
    valid_fraction: float  # of pixels above 0
    nearest: float  # 1st and 99th percentile of valid pixels, metres
    farthest: float
    ratio: float | None = None  # median of teacher / reference
    correlation: float | None = None  # Pearson
    spearman: float | None = None  # near -1 for inverse depth of any range
    abs_rel: float | None = None
    spread: float | None = None  # median of |teacher / reference / ratio - 1|: the error left after scaling


def compare(teacher: np.ndarray, reference: np.ndarray | None, shape: tuple[int, int]) -> Comparison:
    """Compare one frame's teacher depth with its reference.

    Args:
        teacher: output of the depth teacher, expected to be float32 [H,W] metres, 0 = none.
        reference: float32 [H,W] metres, 0 = none; or None.
        shape: (H, W) of the image.
    """
    finite = bool(np.isfinite(teacher).all())
    valid = np.isfinite(teacher) & (teacher > 0)
    nearest, farthest = np.percentile(teacher[valid], (1, 99)) if valid.any() else (0.0, 0.0)
    result = Comparison(
        teacher.shape == shape,
        teacher.dtype == np.float32,
        finite,
        float(valid.mean()),
        float(nearest),
        float(farthest),
    )
    both = valid & (reference > 0) if reference is not None and teacher.shape == reference.shape else np.zeros(0, bool)
    if reference is not None and both.any():
        a, b = teacher[both].astype(np.float64), reference[both].astype(np.float64)
        result.ratio = float(np.median(a / b))
        result.abs_rel = float((np.abs(a - b) / b).mean())
        result.spread = float(np.median(np.abs(a / b / result.ratio - 1)))
        varies = a.std() > 1e-6 * a.mean() and b.std() > 1e-6 * b.mean()
        result.correlation = float(np.corrcoef(a, b)[0, 1]) if varies else 0.0
        result.spearman = float(spearmanr(a, b).statistic) if varies else 0.0
    return result


def median_ratio(comparisons: list[Comparison]) -> float | None:
    """Median of the frames' ratios, so that each frame has the same weight; None if no frame has a ratio."""
    ratios = [c.ratio for c in comparisons if c.ratio is not None]
    return float(np.median(ratios)) if ratios else None


def find_problems(
    comparisons: dict[str, Comparison], resize: float, ratio_range: tuple[float, float] = RATIO_RANGE
) -> list[str]:
    """Return the reasons not to use the teacher, with their probable causes; empty if the check passes.

    Args:
        comparisons: {stem: comparison}.
        resize: width of the network's input / width of the image; identifies a focal length that was not scaled.
        ratio_range: lowest and highest accepted median of teacher / reference.
    """
    problems = [f"frame {stem}: {text}" for stem, c in comparisons.items() for text in _frame_problems(c)]
    measured = {stem: c for stem, c in comparisons.items() if c.ratio is not None}
    overall = median_ratio(list(measured.values()))
    if overall is None:
        return problems
    correlation, spearman, spread = (
        float(np.median([getattr(c, name) for c in measured.values()]))
        for name in ("correlation", "spearman", "spread")
    )
    if min(correlation, spearman) < MAX_INVERSE_CORRELATION:  # the scale is meaningless for inverse depth
        return [
            *problems,
            f"correlation: median {correlation:.2f} (Spearman {spearman:.2f}) is negative: this looks like inverse"
            " depth (disparity)",
        ]
    if correlation < MIN_CORRELATION and spread > MAX_SPREAD:
        problems.append(
            f"correlation: median {correlation:.2f} is below {MIN_CORRELATION}, and half of the pixels are off by more"
            f" than {spread:.0%} even after scaling: this is not the depth of these images. Random weights, or stems"
            " that belong to different frames?"
        )
    low, high = ratio_range
    outside = [stem for stem, c in measured.items() if c.ratio is not None and not low <= c.ratio <= high]
    if not low <= overall <= high:
        problems.append(
            f"scale: median teacher / reference is {overall:.3g}, not in {low}..{high}: {_scale_cause(overall, resize)}"
        )
    elif len(outside) > MAX_OUTLIER_FRACTION * len(measured):
        problems.append(
            f"scale: {len(outside)} of {len(measured)} frames are outside {low}..{high} ({', '.join(outside)}):"
            " one focal length for frames from several cameras?"
        )
    return problems


def _frame_problems(c: Comparison) -> list[str]:
    if not c.shape_ok:
        return ["depth and image differ in size"]
    if not c.finite:
        return ["contains NaN or infinity: an overflow in half precision?"]
    if c.valid_fraction == 0:
        return ["all zero: weights not loaded, non-finite output, or everything classified as sky?"]
    problems = [] if c.float32 else ["not float32"]
    if c.valid_fraction < MIN_VALID_FRACTION:
        problems.append(f"only {c.valid_fraction:.0%} of pixels have depth")
    if c.nearest < MIN_DEPTH or c.farthest > MAX_DEPTH:
        unit = " (millimetres?)" if c.nearest > 100 * MIN_DEPTH else ""
        problems.append(f"{c.nearest:.3g}..{c.farthest:.3g} m is outside {MIN_DEPTH}..{MAX_DEPTH} m{unit}")
    return problems


def _scale_cause(ratio: float, resize: float) -> str:
    units = UNITS.values()
    known = {unit.ratio_to_mm: f"the reference is in {unit.what}: give --depth-unit {unit.name}" for unit in units}
    known |= {
        1000.0: "the teacher outputs millimetres, or the reference was divided by 1000 once too often",
        0.001: "the reference is in millimetres",
        1 / resize: "the focal length was not scaled to the network's input (fx * tensor width / input width)",
        resize: "the focal length was scaled to the network's input twice, or --fx/--fy belong to a smaller image",
    }
    for value, cause in known.items():
        if abs(value - 1) > CAUSE_TOLERANCE and abs(ratio / value - 1) < CAUSE_TOLERANCE:
            return cause
    return (
        f"wrong intrinsics? Depth is proportional to focal length: dividing the focal length by {ratio:.3g} would fit"
    )


def parse_args() -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(
        "Reads images, camera.json beside their folder, and reference depth. Runs the depth teacher on a few frames\n"
        "and writes gate.json and, per frame, <stem>.png (image | teacher | reference | ratio) to --output-dir.\n\n"
        "Exit codes: 0 the check passed, 1 it failed (the probable cause is printed), 2 wrong input."
    )
    parser.add_argument("--input-dir", required=True, metavar="RGB", help="folder of images")
    parser.add_argument(
        "--gt-depth-dir",
        metavar="DEPTH",
        help="reference depth; without it scale and correlation are not checked",
    )
    parser.add_argument("--output-dir", required=True, metavar="OUT", help="folder for gate.json and visualisations")
    for flag, value, word in (("--min-ratio", RATIO_RANGE[0], "lowest"), ("--max-ratio", RATIO_RANGE[1], "highest")):
        parser.add_argument(
            flag, type=positive_float, default=value, help=f"{word} median of teacher / reference (default: {value})"
        )
    parser.add_argument("--n-frames", type=positive_int, default=5, help="number of frames, evenly spaced (default: 5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add_unit_flag(parser, "the reference depth")
    add_backend_flags(parser)
    add_camera_flags(parser)
    return parser.parse_args()


def choose_frames(frames: dict[str, Path], reference_dir: Path | None, n: int) -> list[str]:
    """Choose up to n evenly spaced stems that have a reference; raises UserError if none has."""
    stems = [stem for stem in frames if reference_dir is None or find_map(reference_dir, stem)]
    if not stems:
        raise UserError(f"--gt-depth-dir {reference_dir} contains no depth for any of the images")
    return [stems[round(i)] for i in np.linspace(0, len(stems) - 1, min(n, len(stems)))]


def read_reference(folder: Path, stem: str, shape: tuple[int, int], unit: DepthUnit | None) -> np.ndarray:
    """Read a frame's reference depth, float32 [H,W] metres; raises UserError if its size differs from `shape`."""
    path = find_map(folder, stem)
    assert path is not None  # choose_frames() returns only frames with a reference
    reference = read_depth(path, unit)
    if reference.shape != shape:
        raise UserError(f"{path} is {reference.shape[1]}x{reference.shape[0]} but its image is {shape[1]}x{shape[0]}")
    return reference


def draw_frame(rgb: np.ndarray, teacher: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
    """Draw image | teacher | reference | ratio, both depths with the same colour range."""
    maps = [teacher] if reference is None else [teacher, reference]
    near, far = depth_range(*maps)
    columns = [
        ("image", rgb),
        (f"teacher: {near:.1f} m red, {far:.1f} m blue", colour_depth(teacher, near, far)),
    ]
    if reference is not None and teacher.shape == reference.shape:
        columns.append(("reference", colour_depth(reference, near, far)))
        # colour_error(predicted, reference) draws predicted - reference: log2(ratio) + 1 against 1 gives log2(ratio)
        error = colour_error(
            np.log2(np.maximum(teacher, 1e-3) / np.maximum(reference, 1e-3)) + 1, (reference > 0) * 1.0
        )
        columns.append(("ratio: x0.5 blue, x1 white, x2 red", error))
    return panel(columns)


def format_table(comparisons: dict[str, Comparison]) -> str:
    """Format the comparisons as a table with one row per frame."""
    names = {
        "valid_fraction": "valid",
        "nearest": "p1 m",
        "farthest": "p99 m",
        "ratio": "teacher/ref",
        "correlation": "Pearson",
        "spearman": "Spearman",
        "abs_rel": "AbsRel",
    }
    rows = [[stem, *(getattr(c, name) for name in names)] for stem, c in comparisons.items()]
    return tabulate(rows, headers=["frame", *names.values()], floatfmt=".3f", missingval="-", disable_numparse=[0])


def main() -> int:
    """Run the script and return the exit code."""
    args = parse_args()
    limit_threads()
    resolve_device(args.device)
    input_dir, output_dir = existing_dir(args.input_dir, "--input-dir"), Path(args.output_dir)
    reference_dir = existing_dir(args.gt_depth_dir, "--gt-depth-dir") if args.gt_depth_dir else None
    require_separate_output(output_dir, "--output-dir", input_dir, reference_dir)
    frames = find_frames(input_dir)
    stems = choose_frames(frames, reference_dir, args.n_frames)
    cameras = FrameCameras(input_dir, args.fx, args.fy) if args.backend == "da3" else None
    backend = load_depth_backend(args, input_dir, batch_size=1)
    comparisons, problems = {}, []
    for stem in stems:
        rgb = read_image(frames[stem])
        reference = read_reference(reference_dir, stem, rgb.shape[:2], args.depth_unit) if reference_dir else None
        camera = cameras.get(stem, rgb) if cameras else None
        try:
            teacher = depth_of(backend, stem, rgb, camera)
        except UserError as error:  # the teacher failed: a finding of the gate, not wrong usage
            problems.append(f"frame {stem}: {error}")
            continue
        comparisons[stem] = compare(teacher, reference, rgb.shape[:2])
        measured = comparisons[stem]
        if reference is not None and measured.shape_ok and measured.valid_fraction and measured.ratio is None:
            problems.append(f"frame {stem}: no pixel has both teacher and reference depth")
        write_png(output_dir / f"{stem}.png", draw_frame(rgb, teacher, reference))
    problems += find_problems(comparisons, args.process_res / max(rgb.shape[:2]), (args.min_ratio, args.max_ratio))
    return report(output_dir, backend.provenance, comparisons, problems)


def report(output_dir: Path, provenance: dict, comparisons: dict[str, Comparison], problems: list[str]) -> int:
    """Print the table and the verdict, write gate.json and return the exit code."""
    if comparisons:
        print(format_table(comparisons))
    overall = median_ratio(list(comparisons.values()))
    unchecked = ["scale (teacher / reference)", "correlation", "AbsRel"] if overall is None else []
    if unchecked:
        print(f"no reference: could not check {', '.join(unchecked)}")
    else:
        print(f"median teacher / reference over all frames: {overall:.3f}")
    write_json(
        output_dir / "gate.json",
        {
            "passed": not problems,
            "problems": problems,
            "not_checked": unchecked,
            "median_ratio": overall,
            "frames": {stem: asdict(c) for stem, c in comparisons.items()},
            "teacher": provenance,
        },
    )
    for problem in problems:
        print(f"FAILED: {problem}")
    if not problems:
        print(f"passed: {len(comparisons)} frames" + (", scale and correlation not checked" if unchecked else ""))
    return EXIT_GATE_FAILED if problems else EXIT_OK


if __name__ == "__main__":
    run(main)
