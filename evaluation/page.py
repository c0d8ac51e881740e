"""The report page: Table IV, its slices and its best, median and worst frames in one HTML file."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import jinja2
import numpy as np

from config import CLASS_NAMES
from dataset.files import atomic_path
from dataset.frames import read_frame
from dataset.manifest import Row
from dataset.pictures import colour_depth, colour_error, depth_range
from evaluation.charts import chart_of_slices, chart_of_training
from evaluation.inference import Predictor
from evaluation.report import (
    ALIGNED_COLUMNS,
    DEPTH_COLUMNS,
    FILLED_ROW,
    HEADERS,
    INTERVAL_COLUMNS,
    SLICED_ROW,
    list_slices,
    with_interval,
    worst_first,
)
from evaluation.slices import SliceSums, frame_results

PICTURE_WIDTH, JPEG_QUALITY = 320, 85
CHART_METRICS = {"abs_rel": "AbsRel", "delta1": "delta1, within a factor of 1.25"}
GROUP_TITLES = {"range": "Range", "class": "Reference class", "edge": "Depth edges", "sensor": "Sensor reading"}
TRAINING_CURVES = (("loss",), ("rmse",), ("abs_rel", "delta1", "miou"))


@dataclass
class HtmlTable:
    """A table of text cells; the first cell of a line is its heading."""

    caption: str
    headers: Sequence[str]
    lines: Sequence[Sequence[str]]
    shares: Sequence[Sequence[float]] = ()  # shading of the cells after the first, 0 to 1


@dataclass
class Picture:
    """A picture as a data URI, with its caption and a text alternative."""

    source: str
    caption: str
    alternative: str


@dataclass
class Section:
    """A section of the page: texts, charts (<svg> elements), tables, and pictures in groups with a heading."""

    title: str
    texts: Sequence[str] = ()
    charts: Sequence[str] = ()
    tables: Sequence[HtmlTable] = ()
    pictures: Sequence[tuple[str, Sequence[Picture]]] = ()


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page as one self-contained HTML file, without JavaScript."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.get_template("page.html").render(title=title, sections=sections)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def describe(facts: Mapping[str, str], recipe: Mapping[str, object]) -> Section:
    """What was measured on what; recipe: the settings of the training, empty if unknown."""
    tables = [HtmlTable("Student and data", ("", "value"), list(facts.items()))]
    if recipe:
        lines = [(name, str(value)) for name, value in recipe.items()]
        tables.append(HtmlTable("Recipe", ("setting", "value"), lines))
    return Section("What was measured", tables=tables)


def summarise(where: dict) -> Section:
    """The main findings in words; where: from locate_errors()."""
    results = where["slices"].get(SLICED_ROW)
    if not results:
        return Section("In short", ["The frames have no reference to compare the student with."])
    whole, texts = results["all"]["all"], []
    if not math.isnan(whole["rmse"]):
        constant = where["slices"].get("baseline vs reference")
        beside = f"; the training data's mean has {constant['all']['all']['rmse']:.3f} m" if constant else ""
        texts.append(
            f"The student has RMSE {with_interval(whole['rmse'], whole['intervals']['rmse'])} m, AbsRel "
            f"{with_interval(whole['abs_rel'], whole['intervals']['abs_rel'])}{beside}."
        )
        ranges = {name: entry for name, entry in results["range"].items() if entry["pixels"]}
        worst = max(ranges, key=lambda name: ranges[name]["abs_rel"])
        texts.append(
            f"Weakest range: {worst}, with AbsRel {ranges[worst]['abs_rel']:.3f} and {ranges[worst]['delta1']:.1%} of "
            f"the pixels within a factor of 1.25 of the reference, against {whole['delta1']:.1%} of all."
        )
        texts.append(f"Worst frame: {where['worst_frames'][0]['stem']}, RMSE {where['worst_frames'][0]['rmse']:.3f} m.")
    return Section("In short", [*texts, where["intervals"]])


def table_iv(rows: Mapping[str, dict], where: dict) -> Section:
    """Table IV: a chart of the rows against the reference, then all rows in tables."""
    against = {name: results for name, results in where["slices"].items() if name.endswith("vs reference")}
    predictions = [name.removesuffix(" vs reference") for name in against]
    charts = [
        chart_of_slices(
            f"table-{metric}",
            f"{axis.partition(',')[0]} against the reference",
            axis,
            predictions,
            {"all": [_bounds(results["all"]["all"], metric) for results in against.values()]},
        )
        for metric, axis in {"rmse": "RMSE, m", "delta1": CHART_METRICS["delta1"]}.items()
        if any(not math.isnan(results["all"]["all"][metric]) for results in against.values())
    ]
    depth = [
        [name, *(_number(results["depth"][column]) for column in DEPTH_COLUMNS)]
        for name, results in rows.items()
        if "depth" in results
    ]
    seg = [
        [name, *map(_number, (results["seg"]["miou"], results["seg"]["pixel_accuracy"], *results["seg"]["iou"]))]
        for name, results in rows.items()
        if "seg" in results
    ]
    tables = [HtmlTable("Depth", ("row", *(HEADERS.get(column, column) for column in DEPTH_COLUMNS)), depth)]
    tables.append(HtmlTable("Classes: IoU", ("row", "mIoU", "pixel acc.", *CLASS_NAMES), seg))
    return Section("Table IV", charts=charts, tables=[table for table in tables if table.lines])


def slice_sections(where: dict) -> list[Section]:
    """A section for each group of slices with more than one slice: charts, then the numbers."""
    slices, sections = where["slices"], []
    for group, title in GROUP_TITLES.items():
        # depth without a sensor reading has a reference in the filled rows alone
        suffix = "vs filled reference" if group == "sensor" and FILLED_ROW in slices else "vs reference"
        rows = {
            name.removesuffix(f" {suffix}"): results[group]
            for name, results in slices.items()
            if name.endswith(suffix) and group in results and len(results[group]) > 1
        }
        if "student" not in rows:
            continue
        names = [name for name, entry in rows["student"].items() if entry["pixels"]]
        missing: dict = {metric: math.nan for metric in (*CHART_METRICS, *ALIGNED_COLUMNS)} | {"intervals": {}}
        charts = [
            chart_of_slices(
                f"{group}-{metric}",
                f"{axis.partition(',')[0]} by {title.lower()}",
                axis,
                names,
                {
                    prediction: [_bounds(entries.get(name, missing), metric) for name in names]
                    for prediction, entries in rows.items()
                },
            )
            for metric, axis in CHART_METRICS.items()
        ]
        total = slices[f"student {suffix}"]["all"]["all"]["pixels"]
        sections.append(Section(f"{title} ({suffix})", charts=charts, tables=_slice_tables(rows, total)))
    return sections


def _slice_tables(rows: Mapping[str, dict], total: int) -> list[HtmlTable]:
    headers = ("slice", "pixels", *(HEADERS.get(c, c) for c in (*INTERVAL_COLUMNS, *ALIGNED_COLUMNS, "pixel_accuracy")))
    tables = []
    for prediction, entries in rows.items():
        lines = [
            [
                name,
                f"{entry['pixels'] / max(1, total):.1%}",
                *(with_interval(entry[column], entry["intervals"][column]) for column in INTERVAL_COLUMNS),
                *(with_interval(entry[column]) for column in (*ALIGNED_COLUMNS, "pixel_accuracy")),
            ]
            for name, entry in entries.items()
        ]
        tables.append(HtmlTable(prediction, headers, lines))
    return tables


def differences(where: dict) -> list[Section]:
    """The section of the comparison with another student; none without one."""
    sections = []
    for row, results in where.get("differences", {}).items():
        lines = [
            [name, *(with_interval(entry[column], entry["intervals"][column]) for column in INTERVAL_COLUMNS)]
            for name, entry in list_slices(results)
        ]
        text = (
            "The other student minus the student, on the same frames and pixels. If an interval excludes 0, "
            "the difference is statistically significant at the 5 % level."
        )
        headers = ("slice", *(HEADERS.get(column, column) for column in INTERVAL_COLUMNS))
        sections.append(Section("Difference between the students", [text], tables=[HtmlTable(row, headers, lines)]))
    return sections


def confusion_section(sums: SliceSums) -> list[Section]:
    """The confusion matrix against the reference; none without reference classes."""
    counts = sums.confusion[:, 0].sum(axis=0)
    if not counts.any():
        return []
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [*CLASS_NAMES, "no prediction"]
    lines = [[name, *(f"{share:.1%}" for share in row)] for name, row in zip(CLASS_NAMES, shares, strict=True)]
    table = HtmlTable("Reference class by predicted class", ("", *names), lines, shares.tolist())
    return [Section("Confusion matrix", ["Share of the pixels of each reference class."], tables=[table])]


def training_section(history: Sequence[Mapping[str, float]]) -> list[Section]:
    """The training's curves; none without a history."""
    if not history:
        return []
    charts = [
        chart_of_training(f"training-{names[0]}", f"Training: {', '.join(names)}", history, names)
        for names in TRAINING_CURVES
    ]
    columns = ("epoch", *(name for names in TRAINING_CURVES for name in names))
    lines = [[str(entry["epoch"]), *(_number(entry.get(name, math.nan)) for name in columns[1:])] for entry in history]
    text = "Loss on the training frames, metrics on the validation frames."
    return [Section("Training", [text], charts, [HtmlTable("By epoch", columns, lines)])]


def table_iii(content: dict) -> Section:
    """Table III of an engines folder; content: of table_3.json."""
    columns = {"precision": "precision", "runtime": "runs in", "median_ms": "median ms", "p99_ms": "p99 ms",
               "fps": "FPS", "file_mib": "file MiB", "rmse": "RMSE m", "delta1": "delta1", "miou": "mIoU"}  # fmt: skip
    lines = [
        [value if isinstance(value := row.get(key), str) else _number(value) for key in columns]
        for row in content["rows"]
    ]
    texts = [text for text in (content["title"], content.get("notice")) if text]
    return Section("Table III", texts, tables=[HtmlTable("By precision", tuple(columns.values()), lines)])


def frame_section(rows: Sequence[Row], sums: SliceSums, predict: Predictor) -> list[Section]:
    """The best, the median and the three worst frames by RMSE against the reference, as pictures."""
    rmse = frame_results(sums)["rmse"]
    order = worst_first(rmse)
    if not order:
        return []
    chosen = {order[-1]: "best frame", order[len(order) // 2]: "median frame"}
    for position, rank in ((2, "third worst frame"), (1, "second worst frame"), (0, "worst frame")):
        if position < len(order):
            chosen[order[position]] = rank
    groups = []
    for index, rank in chosen.items():
        frame = read_frame(rows[index])
        depth, _ = predict(frame.rgb, frame.intrinsics)
        near, far = depth_range(frame.depth)
        scale = f"{near:.1f} m red to {far:.1f} m blue, black without a value"
        pictures = [Picture(_data_uri(frame.rgb), "image", f"Image of frame {frame.stem}")]
        maps = {"reference": frame.depth, "teacher": frame.da3_depth, "student": depth}
        for name, values in maps.items():
            if values is not None:
                source = _data_uri(colour_depth(values, near, far))
                pictures.append(Picture(source, name, f"Depth of the {name} for frame {frame.stem}, {scale}"))
        error = _data_uri(colour_error(depth, frame.depth))
        caption = "error: blue 1 m near, red 1 m far"
        pictures.append(Picture(error, caption, f"Error of the student's depth for frame {frame.stem}, {caption}"))
        groups.append((f"{rank.capitalize()}: {frame.stem}, RMSE {rmse[index]:.3f} m", pictures))
    return [Section("Frames", ["Depth from near (red) to far (blue), one scale per frame."], pictures=groups)]


def _data_uri(picture: np.ndarray) -> str:
    """A picture, RGB uint8 [H,W,3], as a JPEG of PICTURE_WIDTH in a data URI."""
    height = round(picture.shape[0] * PICTURE_WIDTH / picture.shape[1])
    resized = cv2.resize(picture, (PICTURE_WIDTH, height), interpolation=cv2.INTER_AREA)
    bgr, quality = cv2.cvtColor(resized, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, content = cv2.imencode(".jpg", bgr, quality)
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode("ascii")


def _bounds(entry: dict, metric: str) -> tuple[float, float, float]:
    return (entry[metric], *entry["intervals"].get(metric, (math.nan, math.nan)))


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"
