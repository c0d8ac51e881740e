"""Table IV as Markdown, and pictures of its frames."""

import numpy as np
from tabulate import tabulate

from config import CLASS_NAMES
from dataset.frames import Frame
from dataset.manifest import Row
from dataset.pictures import colour_classes, colour_depth, colour_error, depth_range, panel, stack

DEPTH_COLUMNS = (
    *("rmse", "image_rmse", "mae", "abs_rel", "sq_rel", "rmse_log", "log10", "silog"),
    *("delta1", "delta2", "delta3", "median_ratio", "coverage"),
)
HEADERS = {"image_rmse": "RMSE/img", "rmse": "RMSE", "mae": "MAE", "abs_rel": "AbsRel", "sq_rel": "SqRel",
              "rmse_log": "RMSElog", "silog": "SILog", "median_ratio": "med.ratio"}  # fmt: skip


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
