"""Write a student to share: its weights in half precision, with everything needed to run and fine-tune it.

Reads   a checkpoint.
Writes  one .safetensors file, half the size of the weights in a checkpoint, without the state of the training.

predict.py, eval_distillation.py, export_trt.py and train.py --init read it like a checkpoint. In weights/ it has a
name: weights/rooms.safetensors is `rooms`.
"""

import sys
from argparse import Namespace
from pathlib import Path

try:
    from cli import ArgumentParser, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

from dataset.files import sha256_of
from trainer.checkpoint import load_student
from trainer.shared_weights import SUFFIX, write_shared_weights


def parse_arguments() -> Namespace:
    """Flags of the command line."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="best.pt of train.py")
    parser.add_argument("--out", type=Path, required=True, help=f"file to write, with the suffix {SUFFIX}")
    arguments = parser.parse_args()
    if arguments.out.suffix != SUFFIX:
        parser.error(f"--out {arguments.out}: the suffix must be {SUFFIX}")
    return arguments


def main() -> int:
    """Run the script; returns the exit code."""
    arguments = parse_arguments()
    _, _, content = load_student(arguments.checkpoint)
    write_shared_weights(arguments.out, content)
    size = arguments.out.stat().st_size / 1e6
    print(f"{arguments.out}: {size:.2f} MB, sha256 {sha256_of(arguments.out)}")
    return 0


if __name__ == "__main__":
    run(main)
