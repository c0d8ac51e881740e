"""Pack the frames that train.py reads, as a stage of its own: on CPUs alone, and on from where it was stopped.

Reads   a manifest and what it lists (default: manifest.jsonl of $SCRATCH/nyu_teacher_data or ./data/nyu_teacher_data).
Writes  <cache-dir>/<name of the content>/: arrays of all frames of a split at one size (default: .cache beside the
        manifest). A cache of the same frames that is older than their files is removed.

It takes train.py's flags, so that the same command line packs what train.py is going to look for; only those that
choose frames matter here. A signal ends it with exit code 75; started again, killed or not, it goes on.
"""

from cli import EXIT_OK, run

from trainer.options import parse_arguments
from trainer.start import find_manifest, pack_splits


def main() -> int:
    """Run the script; returns the exit code."""
    arguments, recipe, runtime = parse_arguments(__doc__)
    manifest, _ = find_manifest(arguments.manifest, runtime, arguments.require_data or bool(arguments.data_root))
    packed = pack_splits(manifest, recipe, runtime, arguments.data_limit)
    for split, frames in zip(("train", "val"), packed, strict=True):
        print(f"{len(frames)} {split} frames: {frames.folder}")
    return EXIT_OK


if __name__ == "__main__":
    run(main)
