"""Table IV: compare the student with its teachers, and both with the references.

Reads   a checkpoint or an exported graph, a manifest and the frames of one of its splits; with --compare another
        student's checkpoint or graph.
Writes  table_4.md, table_4.json, table_4_frames.csv (a line a frame) and pictures of some frames (frame_<n>.png), and
        prints the table, then where the student is right and wrong; --report: one HTML page with all of it, with
        charts, the training's curves, pictures, and Table III if --engine-dir holds that of this student.

Maps are compared at the reference's size, in the Eigen crop for NYU's camera, without scale alignment. Baselines: the
training data's mean depth (times f / f_ref, like the student) and majority class.
"""

import sys
from argparse import Namespace
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cli import ArgumentParser, UserError, add_flags, flag_values, positive_int, resolve_device, run

import torch

from config import WEIGHTS_FOLDER, Recipe, Runtime, student_path
from dataset.files import atomic_path, read_json, sha256_of, write_json
from dataset.manifest import SPLITS, Row, read_manifest
from evaluation import page
from evaluation.comparison import Table, compare
from evaluation.inference import Predictor, make_predictor
from evaluation.report import SLICED_ROW, errors_to_markdown, locate_errors, table_title, to_markdown, write_frames
from trainer.checkpoint import load_student
from trainer.memory import keep_freed_memory

MAX_PICTURES = 6


@dataclass
class EvaluatedStudent:
    """A student to evaluate.

    Attributes:
        path: its file.
        predict: maps an image and its camera to depth and classes.
        recipe: of the student; for a graph the default one, at the graph's size.
        metadata: of its checkpoint; empty for a graph.
    """

    path: Path
    predict: Predictor
    recipe: Recipe
    metadata: dict = field(default_factory=dict)


def load(path: Path, camera_file: Path | None, device: torch.device) -> EvaluatedStudent:
    """Load a student from a checkpoint, or from an exported graph (.onnx), whose camera the file overrides.

    Raises UserError as load_student() and load_onnx_student() do, or if a camera is given for a checkpoint.
    """
    if path.suffix == ".onnx":
        from deployment.onnx_student import load_onnx_student  # needs onnxruntime, which checkpoints don't

        return EvaluatedStudent(path, *load_onnx_student(path, camera_file))
    if camera_file:
        raise UserError(f"{path} is no .onnx graph, so it needs no camera: omit the flag {camera_file}")
    student, recipe, checkpoint = load_student(path)
    predict = make_predictor(student.to(device), recipe, device)
    return EvaluatedStudent(path, predict, recipe, checkpoint.get("notes", {}))


def describe(students: list[EvaluatedStudent], manifest: Path, rows: list[Row]) -> dict[str, str]:
    """What was measured on what, as {name: text}; students: the student and, if there is one, the other."""
    facts = {}
    for name, student in zip(("student", "other student"), students, strict=False):
        metadata = student.metadata
        facts[name] = f"{student.path.name}, sha256 {sha256_of(student.path)}"
        facts[f"{name}: encoder"] = f"{student.recipe.encoder}, start {metadata['encoder_start']}" if metadata else ""
        facts[f"{name}: training data"] = metadata.get("data_fingerprint", "")
        facts[f"{name}: revision"] = metadata.get("git_revision", "")
        facts[f"{name}: teachers"] = describe_teachers(metadata.get("teachers", []))
    focals = sorted({row.intrinsics.focal for row in rows if row.intrinsics})
    facts["data"] = f"{manifest.parent.name}/{manifest.name}, sha256 {sha256_of(manifest)}"
    facts["frames"] = f"{len(rows)}, of {len({row.recording for row in rows if row.recording})} named recordings"
    facts["focal lengths"] = f"{focals[0]:.0f} to {focals[-1]:.0f} pixels" if focals else "unknown"
    facts["teachers of these frames"] = describe_teachers([row.made_by for row in rows])
    return {name: text for name, text in facts.items() if text}


def describe_teachers(made_by: list[dict]) -> str:
    """The distinct teachers of labels, from made_by of the manifest's rows."""
    stages = [(name, stage) for entry in made_by for name, stage in entry.items() if isinstance(stage, dict)]
    return "; ".join(dict.fromkeys(f"{name}: {stage.get('backend')}, {stage.get('model')}" for name, stage in stages))


def read_table_iii(engine_dir: Path, checkpoint: Path) -> list[page.Section]:
    """Table III, if an engines folder has that of this student.

    Args:
        engine_dir: the folder.
        checkpoint: the checkpoint that its graphs were exported from, or one of its graphs.

    Raises UserError if a file of the folder is damaged.
    """
    table, description = engine_dir / "table_3.json", engine_dir / "student.json"
    if not (table.is_file() and description.is_file()):
        return []
    content, exported = read_json(table), read_json(description)
    try:
        is_graph = checkpoint.parent.resolve() == engine_dir.resolve()
        if is_graph or exported["checkpoint"]["sha256"] == sha256_of(checkpoint):
            return [page.table_iii(content)]
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{table} or {description} is damaged: export and measure again") from None
    print(f"{table} is another student's: left out of the page", file=sys.stderr)
    return []


def report_sections(
    student: EvaluatedStudent, rows: list[Row], table: Table, where: dict, facts: dict[str, str], engine_dir: Path
) -> list[page.Section]:
    """The sections of the report page; where: from locate_errors(); facts: from describe()."""
    sums = table.slices[SLICED_ROW]
    return [
        page.summarise(where),
        page.table_iv(table.rows, where),
        *page.differences(where),
        *page.slice_sections(where),
        *page.confusion_section(sums),
        *page.frame_section(rows, sums, student.predict),
        *read_table_iii(engine_dir, student.path),
        *page.training_section(student.metadata.get("history", [])),
        page.describe(facts, asdict(student.recipe) if student.metadata else {}),
    ]


def parse_arguments() -> Namespace:
    """Flags of the command line."""
    parser = ArgumentParser(__doc__)
    runtime = Runtime()
    parser.add_argument(
        "--checkpoint",
        type=student_path,
        required=True,
        help="best.pt of train.py, .onnx of export_trt.py, or rooms: the student of weights/",
    )
    parser.add_argument("--camera", type=Path, help="camera.json of an .onnx --checkpoint (default: student.json's)")
    parser.add_argument("--compare", type=student_path, metavar="OTHER", help="another student to compare with")
    parser.add_argument("--compare-camera", type=Path, help="the same for an .onnx --compare")
    manifest = runtime.teacher_data_dir / "manifest.jsonl"
    parser.add_argument("--manifest", type=Path, default=manifest, help="default: %(default)s")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    parser.add_argument(
        "--output-dir", type=Path, help="default: table_4 beside the checkpoint, or ./table_4 for a student of weights/"
    )
    parser.add_argument("--data-limit", type=positive_int, help="maximum number of frames to evaluate")
    parser.add_argument("--report", type=Path, metavar="HTML", help="also write a page with charts and pictures")
    add_flags(parser, runtime, "engine_dir", "allow_links_to", "device")
    arguments = parser.parse_args()
    if arguments.compare_camera and not arguments.compare:
        parser.error("--compare-camera goes with --compare")
    return arguments


def main() -> int:
    """Run the script; returns the exit code."""
    arguments = parse_arguments()
    keep_freed_memory()  # scoring allocates many maps
    runtime = Runtime(**flag_values(arguments, Runtime))
    device = resolve_device(runtime.device)
    student = load(arguments.checkpoint, arguments.camera, device)
    other = load(arguments.compare, arguments.compare_camera, device) if arguments.compare else None
    all_rows = read_manifest(arguments.manifest, runtime.allow_links_to)
    rows = [row for row in all_rows if row.split == arguments.split][: arguments.data_limit]
    if not rows:
        raise UserError(f"{arguments.manifest} has no frame of the split {arguments.split!r}")
    if any(row.intrinsics is None for row in rows):
        print("WARNING: some frames have no intrinsics; assuming the reference camera for them", file=sys.stderr)
    parent = Path() if arguments.checkpoint.parent == WEIGHTS_FOLDER else arguments.checkpoint.parent
    output = arguments.output_dir or parent / "table_4"
    pictures = [output / f"frame_{index}.png" for index in range(min(MAX_PICTURES, len(rows)))]
    table = compare(student.predict, rows, student.metadata, student.recipe, pictures, other.predict if other else None)
    if not any(table.rows.values()):
        raise UserError(f"{arguments.manifest}: the frames have neither depth nor classes to compare with")

    heading = table_title(rows, arguments.split)
    where = locate_errors(rows, table.slices)
    text = "\n".join([to_markdown(heading, table.rows), *errors_to_markdown(where)])
    with atomic_path(output / "table_4.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    compared = {"compared_with": str(arguments.compare)} if other else {}
    content = {"title": heading, "checkpoint": str(arguments.checkpoint), **compared, "rows": table.rows, **where}
    write_json(output / "table_4.json", content)
    write_frames(output / "table_4_frames.csv", rows, table.slices)
    print(f"{text}\ntable: {output / 'table_4.md'}\nframes: {output / 'table_4_frames.csv'}")
    print(f"pictures: {output}/frame_*.png")
    if arguments.report:
        facts = describe([student, other] if other else [student], arguments.manifest, rows)
        sections = report_sections(student, rows, table, where, facts, runtime.engine_dir)
        page.write_page(arguments.report, heading, sections)
        print(f"page: {arguments.report}")
    return 0


if __name__ == "__main__":
    run(main)
