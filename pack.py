"""Pack the frames for train.py ahead of time, on CPUs only; an interrupted run resumes.

Reads   a manifest and its files (default: manifest.jsonl in $SCRATCH/nyu_teacher_data or ./data/nyu_teacher_data).
Writes  <cache-dir>/<content hash>/: arrays with all frames of a split at one size (default: .cache beside the
        manifest). Outdated caches of the same frames are removed.

Takes the flags of train.py, so the same command line packs exactly what train.py will read; flags that don't affect the
choice or the size of the frames are ignored. A signal stops it with exit code 75.
"""

from cli import EXIT_OK, run

from trainer.options import parse_arguments
from trainer.start import find_manifests, open_caches


def main() -> int:
    """Run the script and return its exit code."""
    arguments, recipe, runtime = parse_arguments(__doc__)
    required = arguments.require_data or bool(arguments.data_root)
    manifests, _ = find_manifests(arguments.manifest, runtime, required)
    for manifest in manifests:
        packed = open_caches(manifest.path, recipe, runtime, arguments.data_limit)
        for split, frames in zip(("train", "val"), packed, strict=True):
            print(f"{len(frames)} {split} frames: {frames.folder}")
    return EXIT_OK


if __name__ == "__main__":
    run(main)
