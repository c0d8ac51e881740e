"""Table IV: how well the student learned from its teachers, and how good teachers and student are against references.

Reads   a checkpoint, a manifest and the frames of one of its splits.
Writes  table_4.md, table_4.json and pictures of some frames (frame_<n>.png), and prints the table.

Maps are compared at the size of the reference, within the Eigen crop where the data has NYU's camera and frame, without
any scale alignment. Baselines: the training data's mean depth (times f / f_ref, like the student) and majority class.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from cli import ArgumentParser, UserError, positive_int, resolve_device, run
from config import CLASS_NAMES, NYU_INTRINSICS, Config
from dataset.files import atomic_path, write_json, write_png
from dataset.frames import Frame, read_frame
from dataset.manifest import SPLITS, Row, read_manifest
from dataset.pictures import colour_classes, colour_depth, colour_error, depth_range, panel, stack
from models.metrics import ConfusionMatrix, DepthMetrics, eigen_crop
from models.student import Student
from training.checkpoint import load_student
from training.inference import focal_scale, predict

DEPTH_COLUMNS = ("rmse", "image_rmse", "mae", "abs_rel", "sq_rel", "rmse_log", "log10", "silog")
DEPTH_COLUMNS += ("delta1", "delta2", "delta3", "median_ratio")
ROWS = (
    "student vs teacher",
    "baseline vs teacher",
    "student vs reference",
    "baseline vs reference",
    "teacher vs reference",
)
PICTURES = 6
Maps = tuple[np.ndarray | None, np.ndarray | None]  # depth float32 [H,W] metres and classes uint8 [H,W] of one frame
HEADERS = {"image_rmse": "RMSE/img", "rmse": "RMSE", "mae": "MAE", "abs_rel": "AbsRel", "sq_rel": "SqRel",
              "rmse_log": "RMSElog", "silog": "SILog", "median_ratio": "med.ratio"}  # fmt: skip


class Comparison:
    """One row of the table: the sums of comparing two pairs of maps over a set."""

    def __init__(self, config: Config):
        self.depth = DepthMetrics(config.min_depth, config.max_depth)
        self.seg = ConfusionMatrix(len(CLASS_NAMES))

    def update(self, answer: Maps, truth: Maps, crop: tuple[slice, slice]) -> None:
        """Add one frame; depth is compared inside the crop, and what either side lacks is not compared."""
        if answer[0] is not None and truth[0] is not None:
            self.depth.update(torch.from_numpy(answer[0][crop]), torch.from_numpy(truth[0][crop]))
        if answer[1] is not None and truth[1] is not None:
            self.seg.update(torch.from_numpy(answer[1]), torch.from_numpy(truth[1]))

    def results(self) -> dict:
        """Metrics of what was compared: 'depth' and 'seg', each absent when no pixel was."""
        results = {"depth": self.depth.compute()} if self.depth.sums else {}
        return results | ({"seg": self.seg.compute()} if self.seg.counts.any() else {})


def compare(
    student: Student, rows: list[Row], notes: dict, config: Config, device: torch.device, pictures: list[Path]
) -> dict[str, dict]:
    """All rows of the table as {name: results}, in the order in which they are printed.

    pictures: where to draw some of the frames.
    """
    table = {name: Comparison(config) for name in ROWS}
    drawn = dict(zip(np.linspace(0, len(rows) - 1, len(pictures)).round().astype(int), pictures, strict=True))
    for index, row in enumerate(tqdm(rows, desc="evaluating", disable=None)):
        frame = read_frame(row)
        scale = focal_scale(frame.intrinsics, config)
        answers = {
            "student": predict(student, frame.rgb, scale, config, device),
            "baseline": baseline(frame.rgb.shape[:2], scale, notes),
            "teacher": (frame.da3_depth, frame.sam2_seg),
        }
        truths = {"teacher": (frame.da3_depth, frame.sam2_seg), "reference": (frame.depth, frame.labels)}
        crop = eigen_crop(*frame.depth.shape) if is_nyu(frame) else (slice(None), slice(None))
        for name, comparison in table.items():
            answer, truth = name.split(" vs ")
            comparison.update(answers[answer], truths[truth], crop)
        if index in drawn:
            write_png(drawn[index], picture(frame, *answers["student"]))
    return {name: comparison.results() for name, comparison in table.items()}


def baseline(shape: tuple[int, int], scale: float, notes: dict) -> Maps:
    """What needs no learning: the training data's mean depth (through this lens) and most frequent class."""
    mean, majority = notes.get("mean_depth"), notes.get("majority_class")
    depth = None if mean is None else np.full(shape, mean * scale, dtype=np.float32)
    return depth, None if majority is None else np.full(shape, majority, dtype=np.uint8)


def is_nyu(frame: Frame) -> bool:
    """Whether a frame has NYU's size and camera, so that the Eigen crop applies."""
    return frame.intrinsics == NYU_INTRINSICS


def picture(frame: Frame, depth: np.ndarray, seg: np.ndarray) -> np.ndarray:
    """RGB, reference, prediction and error of depth; reference and prediction of the classes."""
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


def title(rows: list[Row], split: str) -> str:
    """The table's heading; says so when what made the labels is no teacher but the reference."""
    backends = {str(made.get("backend")) for row in rows for made in row.made_by.values() if isinstance(made, dict)}
    text = f"Table IV: distillation, {len(rows)} frames of split '{split}'"
    return f"{text}; REFERENCE TEACHERS, not learned ones" if "reference" in backends else text


def as_markdown(heading: str, results: dict[str, dict]) -> str:
    """The depth table and the segmentation table as Markdown."""
    depth = [[name, *(r["depth"][c] for c in DEPTH_COLUMNS)] for name, r in results.items() if "depth" in r]
    seg = [
        [name, r["seg"]["miou"], r["seg"]["pixel_accuracy"], *r["seg"]["iou"]]
        for name, r in results.items()
        if "seg" in r
    ]
    parts = [f"### {heading}"]
    if depth:
        headers = ["depth", *(HEADERS.get(column, column) for column in DEPTH_COLUMNS)]
        parts.append(tabulate(depth, headers, tablefmt="github", floatfmt=".3f"))
    if seg:
        headers = ["classes", "mIoU", "pixel acc.", *CLASS_NAMES]
        parts.append(tabulate(seg, headers, tablefmt="github", floatfmt=".3f"))
    parts.append(
        "RMSE, MAE, SqRel in metres; RMSE and all else pooled over pixels, RMSE/img the mean over images; the "
        "baseline predicts the training data's mean depth and its majority class everywhere."
    )
    return "\n\n".join(parts) + "\n"


def parse_arguments():
    parser = ArgumentParser(__doc__)
    config = Config()
    parser.add_argument("--checkpoint", type=Path, required=True, help="best.pt of train.py")
    parser.add_argument("--manifest", type=Path, default=config.teacher_data_dir / "manifest.jsonl", help="%(default)s")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    parser.add_argument("--output-dir", type=Path, help="default: table_4 beside the checkpoint")
    parser.add_argument("--data-limit", type=positive_int, help="evaluate at most so many frames")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    device = resolve_device(arguments.device)
    student, checkpoint = load_student(arguments.checkpoint)
    config = Config(reference_focal=checkpoint["reference_focal"])
    rows = [row for row in read_manifest(arguments.manifest) if row.split == arguments.split][: arguments.data_limit]
    if not rows:
        raise UserError(f"{arguments.manifest} has no frame of the split {arguments.split!r}")
    if any(row.intrinsics is None for row in rows):
        print("WARNING: frames without intrinsics are taken as seen by the reference camera", file=sys.stderr)
    output = arguments.output_dir or arguments.checkpoint.parent / "table_4"
    pictures = [output / f"frame_{number}.png" for number in range(min(PICTURES, len(rows)))]
    notes = checkpoint.get("notes", {})
    results = compare(student.to(device), rows, notes, config, device, pictures)
    if not any(results.values()):
        raise UserError(f"{arguments.manifest}: the frames have neither depth nor classes to compare with")

    heading = title(rows, arguments.split)
    table = as_markdown(heading, results)
    with atomic_path(output / "table_4.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    content = {"title": heading, "checkpoint": str(arguments.checkpoint), "rows": results}
    write_json(output / "table_4.json", content)
    print(f"{table}\ntable: {output / 'table_4.md'}\npictures: {output}/frame_*.png")
    return 0


if __name__ == "__main__":
    run(main)
