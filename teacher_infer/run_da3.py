"""Run the depth teacher over a folder of images."""

import sys
from argparse import Namespace
from pathlib import Path

try:
    from cli import ArgumentParser, existing_dir, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

from dataset.files import read_image
from dataset.frames import find_frames
from dataset.listing import require_separate_output
from teacher_infer.depth_backends import DepthBackend, Prepared, add_backend_flags, load_depth_backend
from teacher_infer.stage import (
    FrameCameras,
    add_camera_flags,
    add_stage_flags,
    claim_output,
    default_batch_size,
    limit_threads,
    run_stage,
)


def parse_args() -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(
        "Reads the images below --input-dir and camera.json beside that folder. Writes --output-dir/<stem>.npy,\n"
        "float32 [H,W] metres at the image's size, 0 = no depth, with provenance.json and failed_frames.jsonl.\n\n"
        "Finished frames are skipped, so an interrupted run resumes when the command is run again. Exit codes:\n"
        "0 all frames done or listed as failed, 2 wrong input, 75 stopped by SIGTERM or SIGUSR1 with frames left."
    )
    parser.add_argument("--input-dir", required=True, metavar="RGB", help="folder of images")
    parser.add_argument("--output-dir", required=True, metavar="OUT", help="folder for the depth maps")
    add_backend_flags(parser)
    add_camera_flags(parser)
    add_stage_flags(parser)
    return parser.parse_args()


class DepthTeacher:
    """Adapter of a depth backend to the Teacher interface of run_stage()."""

    def __init__(self, backend: DepthBackend, cameras: FrameCameras | None):
        self.backend, self.cameras = backend, cameras
        self.infer, self.finish = backend.infer, backend.finish
        self.provenance = backend.provenance | {"camera": cameras.settings() if cameras else None}

    def prepare(self, stem: str, path: Path) -> Prepared:
        """Read an image and resize it for the network; attach its camera if the backend needs one."""
        rgb = read_image(path)
        return self.backend.prepare(stem, rgb, self.cameras.get(stem, rgb) if self.cameras else None)


def main() -> int:
    """Run the script and return the exit code."""
    args = parse_args()
    limit_threads()
    input_dir, output_dir = existing_dir(args.input_dir, "--input-dir"), Path(args.output_dir)
    require_separate_output(output_dir, "--output-dir", input_dir)
    frames = find_frames(input_dir)
    # fail on missing intrinsics before the weights load, which takes minutes
    cameras = FrameCameras(input_dir, args.fx, args.fy) if args.backend == "da3" else None
    batch_size = args.batch_size or default_batch_size(args.backend, args.device)
    teacher = DepthTeacher(load_depth_backend(args, input_dir, batch_size), cameras)
    claim_output(output_dir, teacher.provenance, args.overwrite)
    return run_stage(frames, output_dir, teacher, args.shard, args.overwrite, batch_size, args.num_workers)


if __name__ == "__main__":
    run(main)
