"""The gate before hours of teacher inference: is the depth teacher's output metric, on this data, with this camera?"""

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

NEAREST, FARTHEST = 0.1, 20.0  # metres: indoor depth lies between
SMALLEST_SHARE = 0.5  # of pixels with depth; sky and dropped pixels have none
RATIO_RANGE = (0.85, 1.18)  # of the median of teacher / reference, unless flags say otherwise
OUTLIER_FRAMES = 0.2  # share of frames whose own median may lie outside: good teachers miss a frame
SMALLEST_CORRELATION = 0.7
SMALLEST_SPREAD = 0.1  # below it a weak correlation says only that the frame is as flat as a wall
LARGEST_INVERSE_CORRELATION = -0.3  # nearer to 0 it is the depth of other frames rather than inverse depth
CAUSE_TOLERANCE = 0.08  # relative: how near a ratio must be to a known mistake's to be called that


@dataclass
class Comparison:
    """One frame's teacher depth, alone and against its reference (None without one or without common pixels)."""

    shape_ok: bool
    float32: bool
    finite: bool
    valid_share: float  # of pixels above 0
    nearest: float  # 1st and 99th percentile of valid pixels, metres
    farthest: float
    ratio: float | None = None  # median of teacher / reference
    correlation: float | None = None  # Pearson's, of depth
    spearman: float | None = None  # of ranks: near -1 for inverse depth, whatever its range
    abs_rel: float | None = None
    spread: float | None = None  # median of |teacher / reference / ratio - 1|: what no scale mends


def compare(teacher: np.ndarray, reference: np.ndarray | None, shape: tuple[int, int]) -> Comparison:
    """Measure one frame.

    teacher: what a depth teacher gave, meant to be float32 [H,W] metres, 0 = none. reference: float32 [H,W] metres,
    0 = none, or None. shape: (H, W) of the image.
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


def pooled_ratio(comparisons: list[Comparison]) -> float | None:
    """Median over the frames' medians, so that each frame counts alike; None without any."""
    ratios = [c.ratio for c in comparisons if c.ratio is not None]
    return float(np.median(ratios)) if ratios else None


def find_problems(
    comparisons: dict[str, Comparison], resize: float, ratio_range: tuple[float, float] = RATIO_RANGE
) -> list[str]:
    """What forbids to use the teacher, in words that name the probable cause; empty when the gate is passed.

    resize: width of the image that the network sees / width of the input image, for naming a forgotten rescaling.
    ratio_range: lowest and highest median of teacher / reference.
    """
    problems = [f"frame {stem}: {text}" for stem, c in comparisons.items() for text in _frame_problems(c)]
    measured = {stem: c for stem, c in comparisons.items() if c.ratio is not None}
    pooled = pooled_ratio(list(measured.values()))
    if pooled is None:
        return problems
    correlation, spearman, spread = (
        float(np.median([getattr(c, name) for c in measured.values()]))
        for name in ("correlation", "spearman", "spread")
    )
    if min(correlation, spearman) < LARGEST_INVERSE_CORRELATION:  # then no scale would help
        return [
            *problems,
            f"correlation: median {correlation:.2f} (of ranks {spearman:.2f}) is negative: this looks like inverse"
            " depth (disparity)",
        ]
    if correlation < SMALLEST_CORRELATION and spread > SMALLEST_SPREAD:
        problems.append(
            f"correlation: median {correlation:.2f} is below {SMALLEST_CORRELATION}, half of the pixels are more than"
            f" {spread:.0%} off at any scale: not a depth of these images; random weights, or stems that name other"
            " frames?"
        )
    low, high = ratio_range
    outside = [stem for stem, c in measured.items() if c.ratio is not None and not low <= c.ratio <= high]
    if not low <= pooled <= high:
        problems.append(
            f"scale: median teacher / reference is {pooled:.3g}, not in {low}..{high}: {_scale_cause(pooled, resize)}"
        )
    elif len(outside) > OUTLIER_FRAMES * len(measured):
        problems.append(
            f"scale: {len(outside)} of {len(measured)} frames lie outside {low}..{high} ({', '.join(outside)}):"
            " frames of several cameras under one focal length?"
        )
    return problems


def _frame_problems(c: Comparison) -> list[str]:
    if not c.shape_ok:
        return ["not of the image's size"]
    if not c.finite:
        return ["holds NaN or infinity: an overflow in half precision?"]
    if c.valid_share == 0:
        return ["all zero: weights not loaded, not finite before they were zeroed, or everything taken for sky?"]
    problems = [] if c.float32 else ["not float32"]
    if c.valid_share < SMALLEST_SHARE:
        problems.append(f"only {c.valid_share:.0%} of pixels have depth")
    if c.nearest < NEAREST or c.farthest > FARTHEST:
        unit = " (millimetres?)" if c.nearest > 100 * NEAREST else ""
        problems.append(f"{c.nearest:.3g}..{c.farthest:.3g} m leaves {NEAREST}..{FARTHEST} m{unit}")
    return problems


def _scale_cause(ratio: float, resize: float) -> str:
    units = UNITS.values()
    known = {unit.ratio_to_mm: f"the reference is in {unit.what}: give --depth-unit {unit.name}" for unit in units}
    known |= {
        1000.0: "the teacher gives millimetres, or the reference is read as metres / 1000",
        0.001: "the reference is in millimetres",
        1 / resize: "the focal length was not brought to the network's size (fx * tensor width / input width)",
        resize: "the focal length was brought to the network's size twice, or --fx/--fy are of a smaller image",
    }
    for value, cause in known.items():
        if abs(value - 1) > CAUSE_TOLERANCE and abs(ratio / value - 1) < CAUSE_TOLERANCE:
            return cause
    return f"wrong intrinsics? depth is proportional to focal length, and this one would fit divided by {ratio:.3g}"


def parse_args() -> Namespace:
    """Flags of the command line."""
    parser = ArgumentParser(
        "Reads images, camera.json beside their folder and reference depth; runs the depth teacher on a few frames;\n"
        "writes gate.json and, a frame, <stem>.png (image | teacher | reference | ratio) to --output-dir.\n\n"
        "Exit 0: the teacher may be used; 1: it may not, with the probable cause; 2: wrong input."
    )
    parser.add_argument("--input-dir", required=True, metavar="RGB", help="folder of images")
    parser.add_argument(
        "--gt-depth-dir",
        metavar="DEPTH",
        help="reference depth; without it scale and correlation stay unchecked",
    )
    parser.add_argument("--output-dir", required=True, metavar="OUT", help="folder for gate.json and pictures")
    for flag, value, word in (("--min-ratio", RATIO_RANGE[0], "lowest"), ("--max-ratio", RATIO_RANGE[1], "highest")):
        parser.add_argument(
            flag, type=positive_float, default=value, help=f"{word} median of teacher / reference (default: {value})"
        )
    parser.add_argument("--n-frames", type=positive_int, default=5, help="frames, evenly spread (default: 5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add_unit_flag(parser, "the reference depth")
    add_backend_flags(parser)
    add_camera_flags(parser)
    return parser.parse_args()


def choose_frames(frames: dict[str, Path], reference_dir: Path | None, n: int) -> list[str]:
    """Up to n stems, evenly spread over those that have a reference; UserError when none has."""
    stems = [stem for stem in frames if reference_dir is None or find_map(reference_dir, stem)]
    if not stems:
        raise UserError(f"--gt-depth-dir {reference_dir} has no depth for any of the images")
    return [stems[round(i)] for i in np.linspace(0, len(stems) - 1, min(n, len(stems)))]


def read_reference(folder: Path, stem: str, shape: tuple[int, int], unit: DepthUnit | None) -> np.ndarray:
    """Reference depth of a frame, float32 [H,W] metres; UserError when it is not of the image's size."""
    path = find_map(folder, stem)
    assert path is not None  # choose_frames() takes frames that have one
    reference = read_depth(path, unit)
    if reference.shape != shape:
        raise UserError(f"{path} is {reference.shape[1]}x{reference.shape[0]}, its image {shape[1]}x{shape[0]}")
    return reference


def picture(rgb: np.ndarray, teacher: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
    """Image | teacher | reference | difference, the depths in one range of colours."""
    maps = [teacher] if reference is None else [teacher, reference]
    near, far = depth_range(*maps)
    columns = [
        ("image", rgb),
        (f"teacher, {near:.1f} m red to {far:.1f} m blue", colour_depth(teacher, near, far)),
    ]
    if reference is not None and teacher.shape == reference.shape:
        columns.append(("reference", colour_depth(reference, near, far)))
        # colour_error shows predicted - reference where reference > 0: here log2 of the ratio, shifted by 1
        error = colour_error(
            np.log2(np.maximum(teacher, 1e-3) / np.maximum(reference, 1e-3)) + 1, (reference > 0) * 1.0
        )
        columns.append(("ratio: x0.5 blue, x1 white, x2 red", error))
    return panel(columns)


def table(comparisons: dict[str, Comparison]) -> str:
    """One row a frame."""
    names = {
        "valid_share": "valid",
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
    """Run the script; returns the exit code."""
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
        camera = cameras.of(stem, rgb) if cameras else None
        try:
            teacher = depth_of(backend, stem, rgb, camera)
        except UserError as error:  # the teacher's fault, so the gate's verdict and not wrong usage
            problems.append(f"frame {stem}: {error}")
            continue
        comparisons[stem] = compare(teacher, reference, rgb.shape[:2])
        measured = comparisons[stem]
        if reference is not None and measured.shape_ok and measured.valid_share and measured.ratio is None:
            problems.append(f"frame {stem}: no pixel has both the teacher's depth and the reference's")
        write_png(output_dir / f"{stem}.png", picture(rgb, teacher, reference))
    problems += find_problems(comparisons, args.process_res / max(rgb.shape[:2]), (args.min_ratio, args.max_ratio))
    return report(output_dir, backend.provenance, comparisons, problems)


def report(output_dir: Path, provenance: dict, comparisons: dict[str, Comparison], problems: list[str]) -> int:
    """Print the table and the verdict, write gate.json; returns the exit code."""
    if comparisons:
        print(table(comparisons))
    pooled = pooled_ratio(list(comparisons.values()))
    unchecked = ["scale (teacher / reference)", "correlation", "AbsRel"] if pooled is None else []
    if unchecked:
        print(f"nothing to compare with: could not check {', '.join(unchecked)}")
    else:
        print(f"median teacher / reference over all frames: {pooled:.3f}")
    write_json(
        output_dir / "gate.json",
        {
            "passed": not problems,
            "problems": problems,
            "not_checked": unchecked,
            "median_ratio": pooled,
            "frames": {stem: asdict(c) for stem, c in comparisons.items()},
            "teacher": provenance,
        },
    )
    for problem in problems:
        print(f"FAILED: {problem}")
    if not problems:
        print(f"passed: {len(comparisons)} frames" + (", unchecked: scale and correlation" if unchecked else ""))
    return EXIT_GATE_FAILED if problems else EXIT_OK


if __name__ == "__main__":
    run(main)
