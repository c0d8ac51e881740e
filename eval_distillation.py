"""Table IV: compare the student with its teachers, and both with the references.

Reads   a checkpoint, a manifest and the frames of one of its splits.
Writes  table_4.md, table_4.json and pictures of some frames (frame_<n>.png), and prints the table.

Maps are compared at the reference's size, in the Eigen crop for NYU's camera, without scale alignment. Baselines: the
training data's mean depth (times f / f_ref, like the student) and majority class.
"""

import sys
from argparse import Namespace
from pathlib import Path

from cli import ArgumentParser, UserError, add_flags, flag_values, positive_int, resolve_device, run

from config import Runtime
from dataset.files import atomic_path, write_json
from dataset.manifest import SPLITS, read_manifest
from evaluation.comparison import compare
from evaluation.inference import make_predictor
from evaluation.report import table_title, to_markdown
from trainer.checkpoint import load_student
from trainer.memory import keep_freed_memory

MAX_PICTURES = 6


def parse_arguments() -> Namespace:
    """Flags of the command line."""
    parser = ArgumentParser(__doc__)
    runtime = Runtime()
    parser.add_argument("--checkpoint", type=Path, required=True, help="best.pt of train.py")
    manifest = runtime.teacher_data_dir / "manifest.jsonl"
    parser.add_argument("--manifest", type=Path, default=manifest, help="default: %(default)s")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    parser.add_argument("--output-dir", type=Path, help="default: table_4 beside the checkpoint")
    parser.add_argument("--data-limit", type=positive_int, help="maximum number of frames to evaluate")
    add_flags(parser, runtime, "allow_links_to", "device")
    return parser.parse_args()


def main() -> int:
    """Run the script; returns the exit code."""
    arguments = parse_arguments()
    keep_freed_memory()  # scoring allocates many maps
    runtime = Runtime(**flag_values(arguments, Runtime))
    device = resolve_device(runtime.device)
    student, recipe, checkpoint = load_student(arguments.checkpoint)
    all_rows = read_manifest(arguments.manifest, runtime.allow_links_to)
    rows = [row for row in all_rows if row.split == arguments.split][: arguments.data_limit]
    if not rows:
        raise UserError(f"{arguments.manifest} has no frame of the split {arguments.split!r}")
    if any(row.intrinsics is None for row in rows):
        print("WARNING: some frames have no intrinsics; assuming the reference camera for them", file=sys.stderr)
    output = arguments.output_dir or arguments.checkpoint.parent / "table_4"
    pictures = [output / f"frame_{index}.png" for index in range(min(MAX_PICTURES, len(rows)))]
    metadata = checkpoint.get("notes", {})
    results = compare(make_predictor(student.to(device), recipe, device), rows, metadata, recipe, pictures)
    if not any(results.values()):
        raise UserError(f"{arguments.manifest}: the frames have neither depth nor classes to compare with")

    heading = table_title(rows, arguments.split)
    table = to_markdown(heading, results)
    with atomic_path(output / "table_4.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    content = {"title": heading, "checkpoint": str(arguments.checkpoint), "rows": results}
    write_json(output / "table_4.json", content)
    print(f"{table}\ntable: {output / 'table_4.md'}\npictures: {output}/frame_*.png")
    return 0


if __name__ == "__main__":
    run(main)
