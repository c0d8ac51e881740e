"""Table IV as Markdown, its frames as CSV and as pictures."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from config import CLASS_NAMES
from dataset.files import atomic_path
from dataset.frames import Frame
from dataset.manifest import Row
from dataset.pictures import colour_classes, colour_depth, colour_error, depth_range, panel, stack
from evaluation.intervals import find_units
from evaluation.slices import SliceSums, frame_results, slice_results

DEPTH_COLUMNS = (
    *("rmse", "image_rmse", "mae", "abs_rel", "sq_rel", "rmse_log", "log10", "silog"),
    *("delta1", "delta2", "delta3", "median_ratio", "coverage"),
)
HEADERS = {"image_rmse": "RMSE/img", "rmse": "RMSE", "mae": "MAE", "abs_rel": "AbsRel", "sq_rel": "SqRel",
              "rmse_log": "RMSElog", "silog": "SILog", "median_ratio": "med.ratio", "aligned_rmse": "RMSE aligned",
              "aligned_abs_rel": "AbsRel aligned", "aligned_delta1": "delta1 aligned",
              "pixel_accuracy": "pixel acc.", "miou": "mIoU"}  # fmt: skip
SLICED_ROW, FILLED_ROW = "student vs reference", "student vs filled reference"
OTHER_ROW = "other student vs reference"
INTERVAL_COLUMNS = ("rmse", "abs_rel", "delta1")  # with intervals where there is room for a few columns alone
ALIGNED_COLUMNS = ("aligned_rmse", "aligned_abs_rel", "aligned_delta1")
N_WORST = 5


def draw_comparison(frame: Frame, depth: np.ndarray, seg: np.ndarray) -> np.ndarray:
    """Draw the image; reference, predicted depth and its error; reference and predicted classes. RGB uint8 [H,W,3]."""
    near, far = depth_range(frame.depth)
    classes = frame.labels if frame.labels is not None else frame.sam2_seg
    tiles = [
        ("image", frame.rgb),
        (f"reference depth, {near:.1f} to {far:.1f} m", colour_depth(frame.depth, near, far)),
        ("student depth", colour_depth(depth, near, far)),
        ("error: blue 1 m near, red 1 m far", colour_error(depth, frame.depth)),
    ]
    if classes is not None:
        tiles += [
            ("reference classes", colour_classes(classes)),
            ("student classes", colour_classes(seg)),
        ]
    return stack([panel(tiles)], legend=classes is not None)


def table_title(rows: list[Row], split: str) -> str:
    """Title of the table; marks labels of reference teachers."""
    backends = {str(stage.get("backend")) for row in rows for stage in row.made_by.values() if isinstance(stage, dict)}
    text = f"Table IV: distillation, {len(rows)} frames of split '{split}'"
    return f"{text}; REFERENCE TEACHERS, not learned ones" if "reference" in backends else text


def to_markdown(heading: str, results: dict[str, dict]) -> str:
    """Format the depth and segmentation tables as Markdown."""
    depth = [[name, *(r["depth"][c] for c in DEPTH_COLUMNS)] for name, r in results.items() if "depth" in r]
    seg = [
        [name, r["seg"]["miou"], r["seg"]["pixel_accuracy"], *r["seg"]["iou"], r["seg"]["coverage"]]
        for name, r in results.items()
        if "seg" in r
    ]
    parts = [f"### {heading}"]
    if depth:
        headers = ["depth", *(HEADERS.get(column, column) for column in DEPTH_COLUMNS)]
        parts.append(tabulate(depth, headers, tablefmt="github", floatfmt=".3f"))
    if seg:
        headers = ["classes", "mIoU", "pixel acc.", *CLASS_NAMES, "coverage"]
        parts.append(tabulate(seg, headers, tablefmt="github", floatfmt=".3f"))
    parts.append(
        "RMSE, MAE and SqRel are in metres. RMSE/img is averaged over images, med.ratio is the median over images, and "
        "the other metrics are pooled over pixels. The baseline predicts the training data's mean depth and majority "
        "class everywhere. Rows with the same reference cover the same pixels; coverage is the fraction of them with a "
        "prediction. A pixel without a prediction counts as wrong, except a teacher's, which is skipped."
    )
    if any("filled" in name for name in results):
        parts.append("The filled reference is NYU's depth with its holes filled in; confidence is ignored.")
    return "\n\n".join(parts) + "\n"


def locate_errors(rows: Sequence[Row], slices: Mapping[str, SliceSums]) -> dict:
    """Where the predictions are right and wrong: the content of table_4.json besides the rows.

    Args:
        rows: the frames' rows of the manifest.
        slices: of the table's rows, from compare().

    Returns 'intervals', a sentence; 'slices', {row: slice_results()}; 'worst_frames', the frames of the student with
    the highest RMSE; with another student 'differences', {row: slice_results() of the other minus the student}.
    """
    units = find_units(rows)
    results = {name: slice_results(sums, units) for name, sums in slices.items()}
    content: dict = {"intervals": units.sentence}
    content["slices"] = {name: result for name, result in results.items() if result}
    frames = frame_results(slices[SLICED_ROW])
    content["worst_frames"] = [
        {"stem": rows[index].stem, "recording": rows[index].recording, "rmse": float(frames["rmse"][index])}
        for index in worst_first(frames["rmse"])[:N_WORST]
    ]
    if OTHER_ROW in slices:
        content["differences"] = {OTHER_ROW: slice_results(slices[SLICED_ROW], units, slices[OTHER_ROW])}
    return content


def worst_first(rmse: np.ndarray) -> list[int]:
    """Indices of the frames with an RMSE, float64 [F] in metres or NaN, the highest first."""
    return [int(index) for index in np.argsort(-rmse, kind="stable") if not np.isnan(rmse[index])]


def write_frames(path: Path, rows: Sequence[Row], slices: Mapping[str, SliceSums]) -> None:
    """Write the metrics of each frame against the reference as CSV, one line a frame; what does not exist is empty.

    Args:
        path: the file.
        rows: the frames' rows of the manifest.
        slices: of the table's rows, from compare().
    """
    frames = {name: frame_results(sums) for name, sums in slices.items() if "filled" not in name}
    columns = [(name, metric) for name, metrics in frames.items() for metric in metrics]
    titles = [f"{name.removesuffix(' vs reference')} {metric}".replace(" ", "_") for name, metric in columns]
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["stem", "recording", *titles])
        for index, row in enumerate(rows):
            values = [float(frames[name][metric][index]) for name, metric in columns]
            writer.writerow([row.stem, row.recording or "", *("" if np.isnan(v) else f"{v:.6g}" for v in values)])


def errors_to_markdown(content: dict) -> list[str]:
    """Format what locate_errors() found against the reference as Markdown, a text per table."""
    slices = content["slices"]
    if SLICED_ROW not in slices:
        return []
    parts = [_slices_to_markdown(slices[SLICED_ROW], slices.get(FILLED_ROW, {}), content["intervals"])]
    if "differences" in content:
        parts.append(_differences_to_markdown(slices[SLICED_ROW], slices[OTHER_ROW], content["differences"][OTHER_ROW]))
    if worst := content["worst_frames"]:
        frames = ", ".join(f"{frame['stem']} ({frame['rmse']:.3f} m)" for frame in worst)
        parts.append(f"Worst frames by RMSE: {frames}.\n")
    return parts


def _slices_to_markdown(results: dict, filled: dict, sentence: str) -> str:
    entries = list_slices(results)
    if "sensor" in filled:  # depth without a reading is in the filled reference alone, classes are in this one
        entries = [(name, entry) for name, entry in entries if name not in filled["sensor"]]
        for name, entry in filled["sensor"].items():
            classes = results["sensor"].get(name, {}).get("pixel_accuracy", np.nan)
            entries.append((f"{name} (filled)", entry | {"pixel_accuracy": classes}))
    total = max(1, results["all"]["all"]["pixels"])
    plain = (*ALIGNED_COLUMNS, "pixel_accuracy")
    lines = [
        [
            name,
            f"{entry['pixels'] / total:.1%}",
            *(with_interval(entry[column], entry["intervals"][column]) for column in INTERVAL_COLUMNS),
            *(with_interval(entry[column]) for column in plain),
        ]
        for name, entry in entries
    ]
    headers = ["slice", "pixels", *(HEADERS.get(column, column) for column in (*INTERVAL_COLUMNS, *plain))]
    table = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    note = (
        "Pixels: number with valid depth, relative to all. Aligned: each image's depth is divided by its median ratio "
        f"to the reference. {sentence}"
    )
    return f"### Where: {SLICED_ROW}\n\n{table}\n\n{note}\n"


def _differences_to_markdown(results: dict, others: dict, differences: dict) -> str:
    lines = []
    triples = zip(*map(list_slices, (results, others, differences)), strict=True)
    for (name, entry), (_, other), (_, difference) in triples:
        line = [name]
        for column in INTERVAL_COLUMNS:
            line += [with_interval(entry[column]), with_interval(other[column])]
            line.append(with_interval(difference[column], difference["intervals"][column]))
        lines.append(line)
    titles = [HEADERS.get(column, column) for column in INTERVAL_COLUMNS]
    headers = ["slice", *(f"{title}{part}" for title in titles for part in ("", ", other", ", difference"))]
    table = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    note = (
        "Difference: the other student minus the student, on the same frames and pixels. If its interval "
        "excludes 0, the difference is statistically significant at the 5 % level."
    )
    return f"### {SLICED_ROW.capitalize()}, beside another student\n\n{table}\n\n{note}\n"


def with_interval(value: float, bounds: Sequence[float] = (np.nan, np.nan)) -> str:
    """Format a value with its interval, if it has one; empty for NaN."""
    if np.isnan(value):
        return ""
    return f"{value:.3f}" + ("" if np.isnan(bounds[0]) else f" [{bounds[0]:.3f}, {bounds[1]:.3f}]")


def list_slices(results: Mapping[str, dict]) -> list[tuple[str, dict]]:
    """The slices of slice_results() as (name, entry), without groups of a single slice, which equals all."""
    groups = [slices for group, slices in results.items() if group == "all" or len(slices) > 1]
    return [pair for slices in groups for pair in slices.items()]
