"""Speed of rooms/render_rooms.py beside that of an older revision, and the time of its stages.

Reads   the repository's history, of which it unpacks the older revision.
Writes  a temporary folder, removed at the end; prints two tables.

Both render the same rooms by turns, after one run that is not timed. The clock starts when each worker has finished its
first room, so that imports and the compilation of kernels do not count. Images are compared by their SHA-256.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    from cli import ArgumentParser, UserError, cpu_count, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

from tabulate import tabulate

from benchmarks.machine import processor

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "d91005d"  # the last revision without compiled kernels
STAGES = {
    "building the room": "build_room",
    "preparing it for rays": "world",
    "choosing poses": "choose_poses",
    "surfaces and textures": "_surface",
    "light": "_compute_irradiance",
    "reflections": "_add_reflections",
    "developing the image": "develop_image",
    "depth sensor": "simulate_sensor",
    "all": "render_scene",
}
# both revisions run it: renders scenes of seed 0
SCENES = """
from config import NYU_INTRINSICS

try:
    from rooms.scenes import SceneOptions, render_scenes
except ImportError:  # before

    def rendered(scenes, frames, workers=1):
        from rooms.render_rooms import render_scenes

        return render_scenes(0, scenes, frames, NYU_INTRINSICS, workers)
else:

    def rendered(scenes, frames, workers=1):
        return render_scenes(SceneOptions(0, frames, NYU_INTRINSICS), scenes, workers)
"""
# prints the seconds of the timed frames, their number, peak MB of a process, and their SHA-256
RENDER = """
import hashlib, json, resource, sys, time

if __name__ == "__main__":
    workers, scenes, frames = map(int, sys.argv[1:])
    digest, start = hashlib.sha256(), 0.0
    for number, frame in enumerate(rendered(scenes + workers, frames, workers)):
        for name in ("rgb", "depth", "sensor_depth", "labels", "instances"):
            digest.update(getattr(frame, name))
        if number == workers * frames - 1:
            start = time.perf_counter()
    seconds = time.perf_counter() - start
    kind = resource.RUSAGE_SELF if workers == 1 else resource.RUSAGE_CHILDREN
    peak = resource.getrusage(kind).ru_maxrss / 1024
    print(json.dumps([seconds, scenes * frames, peak, digest.hexdigest()]))
"""
# prints {function: CPU ms per frame}
PROFILE = """
import cProfile, json, pstats, sys, time

scenes, frames = map(int, sys.argv[1:])
list(rendered(1, 1))
profile = cProfile.Profile(time.process_time)
profile.runcall(lambda: list(rendered(scenes, frames)))
times = {}
for (_, _, name), (_, _, _, total, _) in pstats.Stats(profile).stats.items():
    times[name] = max(times.get(name, 0), 1000 * total / scenes / frames)
print(json.dumps(times))
"""


def run_in(folder: Path, script: str, *arguments: int) -> Any:
    """Run one of the scripts above with the code in `folder`, on one thread per worker; returns what it prints."""
    file = folder / "render_speed_child.py"
    file.write_text(SCENES + script, encoding="utf-8")
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    environment = {**os.environ, **threads, "PYTHONPATH": str(folder)}
    command = [sys.executable, str(file), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def unpack(revision: str, folder: Path) -> None:
    """Write the files of a revision of this repository to `folder`."""
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise UserError(f"--before {revision}: {archive.stderr.decode().strip()}")
    folder.mkdir()
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--before", default=BEFORE, metavar="REV", help="older revision (default: %(default)s)")
    parser.add_argument("--scenes", type=positive_int, default=10, help="timed rooms of a run (default: %(default)s)")
    parser.add_argument("--frames-per-scene", type=positive_int, default=1, help="views of each (default: %(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=3, help="timed runs of each (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Run the script."""
    arguments = parse_arguments()
    size = (arguments.scenes, arguments.frames_per_scene)
    with tempfile.TemporaryDirectory() as name:
        older, newer = Path(name) / "before", Path(name) / "now"
        unpack(arguments.before, older)
        newer.mkdir()
        for item in ("rooms", "dataset", "cli.py", "config.py"):
            (newer / item).symlink_to(ROOT / item)
        versions = {"before": older, "now": newer}
        rates: dict[tuple[str, int], list[float]] = {}
        peaks: dict[tuple[str, int], float] = {}
        digests = set()
        for round_number in range(arguments.rounds + 1):  # the first one warms up
            for workers in (1, 2):
                for version, folder in versions.items():
                    seconds, frames, peak, digest = run_in(folder, RENDER, workers, *size)
                    if round_number:
                        rates.setdefault((version, workers), []).append(60 * frames / seconds)
                        peaks[version, workers] = max(peak, peaks.get((version, workers), 0))
                    digests.add((workers, digest))
        profiles = {version: run_in(folder, PROFILE, *size) for version, folder in versions.items()}
    rows = [
        [version, workers, statistics.median(values), min(values), max(values), peaks[version, workers]]
        for (version, workers), values in rates.items()
    ]
    headers = ["version", "workers", "frames/min (median)", "min", "max", "peak MB of a process"]
    print(tabulate(rows, headers, floatfmt=".0f"))
    stages = [[stage, *(times[function] for times in profiles.values())] for stage, function in STAGES.items()]
    print(tabulate(stages, ["CPU ms per frame, one worker", *profiles], floatfmt=".0f"))
    print(
        f"{size[0]} rooms of {size[1]} views, {arguments.rounds} rounds; the frames are "
        f"{'the same' if len(digests) == 2 else 'NOT the same'}, byte for byte; {cpu_count()} cores of {processor()}"
    )


if __name__ == "__main__":
    run(main)
