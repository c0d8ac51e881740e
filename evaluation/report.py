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


def picture(frame: Frame, depth: np.ndarray, seg: np.ndarray) -> np.ndarray:
    """Draw the image, reference, prediction and error of depth, and reference and predicted classes."""
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
    """Title of the table; says so if the labels come from reference teachers."""
    backends = {str(made.get("backend")) for row in rows for made in row.made_by.values() if isinstance(made, dict)}
    text = f"Table IV: distillation, {len(rows)} frames of split '{split}'"
    return f"{text}; REFERENCE TEACHERS, not learned ones" if "reference" in backends else text


def as_markdown(heading: str, results: dict[str, dict]) -> str:
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
        "RMSE, MAE, SqRel in metres; RMSE and all else pooled over pixels, RMSE/img the mean over images; the "
        "baseline predicts the training data's mean depth and its majority class everywhere. Rows against one truth "
        "cover the same pixels of it; coverage is the share of them with an answer. A pixel without one counts as "
        "wrong, but a teacher's is left out."
    )
    if any("filled" in name for name in results):
        parts.append(
            "The filled reference is NYU's depth as it was filled in, where the sensor had none, too: confidence is "
            "ignored."
        )
    return "\n\n".join(parts) + "\n"
