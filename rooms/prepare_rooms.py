"""Render rooms and run every stage up to the manifest, which gives training data without a download.

Reads   nothing.
Writes  a data folder with a manifest. Depth and object masks come from the renderer; floor, wall and glass from depth
        geometry. Each stage runs as its own process, and its command is printed.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from cli import EXIT_STOPPED, ArgumentParser, Stopped, UserError, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

from rooms.flags import add_room_flags, focal_scale_range

ROOT = Path(__file__).resolve().parents[1]
SCENES, FRAMES_PER_SCENE = 20, 4


def prepare_rooms(
    out: Path,
    scenes: int = SCENES,
    frames_per_scene: int = FRAMES_PER_SCENE,
    seed: int = 0,
    focal_scale: Sequence[float] = (1.0,),
    view: str = "handheld",
) -> Path:
    """Create the data folder `out` unless its manifest exists; returns the path of the manifest.

    Raises UserError if a stage fails, which prints its own message first, and Stopped if a signal stopped it.
    """
    out = Path(out)
    manifest = out / "manifest.jsonl"
    if manifest.is_file():
        print(f"{manifest} exists and is kept; remove {out} to render again")
        return manifest
    mat = out / "rooms.mat"
    rgb, depth, confidence = (str(out / name) for name in ("rgb", "depth", "confidence"))
    da3, sam2 = str(out / "da3_depth"), str(out / "sam2_seg")
    reference = ["--backend", "reference"]
    if not mat.is_file():
        _stage(
            "rooms/render_rooms.py", "--out", str(mat), "--scenes", str(scenes),
            "--frames-per-scene", str(frames_per_scene), "--seed", str(seed), "--view", view,
            "--focal-scale", *map(str, focal_scale),
        )  # fmt: skip
    _stage("dataset/nyu_loader.py", "--mat", str(mat), "--out", str(out))
    _stage(
        "teacher_infer/verify_teacher_output.py", "--input-dir", rgb, "--gt-depth-dir", depth,
        "--output-dir", str(out / "gate"), "--n-frames", "5", *reference,
    )  # fmt: skip
    _stage("teacher_infer/run_da3.py", "--input-dir", rgb, "--output-dir", da3, *reference)
    _stage(
        "teacher_infer/run_sam2.py", "--input-dir", rgb, "--depth-dir", da3, "--output-dir", sam2,
        "--sensor-depth-dir", depth, "--confidence-dir", confidence, "--save-panels", "6", *reference,
    )  # fmt: skip
    _stage(
        "teacher_infer/build_manifest.py", "--rgb-dir", rgb, "--depth-dir", depth, "--da3-dir", da3,
        "--sam2-dir", sam2, "--confidence-dir", confidence, "--labels-dir", str(out / "labels"),
        "--output", str(manifest),
    )  # fmt: skip
    return manifest


def _stage(script: str, *arguments: str) -> None:
    print("$ python", script, *arguments, flush=True)
    with subprocess.Popen([sys.executable, str(ROOT / script), *arguments]) as stage:
        try:
            code = stage.wait()
        except KeyboardInterrupt:
            stage.terminate()  # the stage removes its half-written files
            raise
    if code == EXIT_STOPPED:
        raise Stopped(f"a signal to {script}")
    if code:
        raise UserError(f"{script} failed with exit code {code}; see its message above")


def main() -> int:
    """Run the script and return the exit code."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="data folder to write")
    add_room_flags(parser, SCENES, FRAMES_PER_SCENE)
    arguments = parser.parse_args()
    focal_scale_range(arguments.focal_scale)  # check before anything is written
    manifest = prepare_rooms(
        arguments.out,
        arguments.scenes,
        arguments.frames_per_scene,
        arguments.seed,
        arguments.focal_scale,
        arguments.view,
    )
    print(f"manifest: {manifest}")
    return 0


if __name__ == "__main__":
    run(main)
