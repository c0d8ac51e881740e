"""Write rendered scenes as a data folder with a manifest, each frame once; several processes may share the work.

The renderer is its own teacher here: da3_depth is the exact depth and sam2_seg are the exact classes, and the rows name
the same files twice. Depth is stored in millimetres. A scene counts as finished once its rows/<scene>.json exists, so a
stopped run resumes, and shards on several machines may write to one folder.
"""

import hashlib
import json
import math
from contextlib import closing
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from cli import Stopped, StopSignal, UserError

import numpy as np
from tqdm import tqdm

from dataset.files import prepare_data_folder, read_json, write_json, write_png
from dataset.frames import to_millimetres
from dataset.label_remapper import remap
from dataset.manifest import Row, parse_intrinsics, write_manifest
from dataset.parallel import process_map
from rooms.scenes import RenderedFrame, SceneOptions, render_scene

MAPS = ("rgb", "depth", "confidence", "labels")
ROWS = "rows"  # subfolder with one file per finished scene
TEST_FRACTION, VAL_FRACTION = 0.02, 0.03  # of the scenes; scores on unseen rooms come from another seed
MADE_BY = {
    "da3_depth": {"backend": "reference", "model": "renderer"},
    "sam2_seg": {"backend": "reference", "model": "renderer"},
}


def write_data_folder(
    out: Path, options: SceneOptions, scenes: int, workers: int, shard: tuple[int, int] = (0, 1)
) -> Path | None:
    """Render the scenes of a shard that are missing, and write the manifest once all scenes of all shards exist.

    Args:
        out: the data folder.
        options: what to render; a folder keeps to its first options.
        scenes: number of scenes of all shards.
        workers: number of processes.
        shard: (i, n): render every n-th scene, starting with scene i.

    Returns the manifest's path, or None while scenes of other shards are missing. Raises UserError if the folder can't
    be written or was made with other options, and Stopped after a signal; the next run resumes.
    """
    what = "rendered rooms: synthetic images with the renderer's exact depth and classes as labels"
    source = json.loads(json.dumps({"what": what, "scenes": scenes} | asdict(options)))
    # another shard's temporary files are in use
    prepare_data_folder(out, source, MAPS if shard == (0, 1) else ())
    missing = [scene for scene in range(shard[0], scenes, shard[1]) if not _rows_file(out, scene).is_file()]
    write = partial(_write_scene, out, options, scenes)
    with StopSignal() as stop, closing(process_map(write, missing, workers)) as done:
        for _ in tqdm(done, total=len(missing), unit="room", disable=None):
            if stop.received:
                raise Stopped(stop.received.name)
    files = [_rows_file(out, scene) for scene in range(scenes)]
    if not all(file.is_file() for file in files):
        return None
    rows = [_parse(out, entry) for file in files for entry in read_json(file)]
    write_manifest(out / "manifest.jsonl", rows)
    return out / "manifest.jsonl"


def _rows_file(out: Path, scene: int) -> Path:
    return out / ROWS / f"{scene // 1000:03d}" / f"{scene:06d}.json"


def _write_scene(out: Path, options: SceneOptions, scenes: int, scene: int) -> None:
    """Render a scene and write its frames, then its rows."""
    entries = []
    for number, frame in enumerate(render_scene(options, scene)):
        stem = f"{scene // 1000:03d}/{frame.scene}_{number:02d}"
        write_frame(out, stem, frame)
        entry: dict[str, Any] = {
            "stem": stem, "split": _held_out(scenes).get(scene, "train"), "recording": frame.scene,
            "intrinsics": asdict(frame.camera), "pose": frame.pose.matrix().tolist(),
        }  # fmt: skip
        entries.append(entry if frame.time is None else entry | {"time": frame.time})
    _rows_file(out, scene).parent.mkdir(parents=True, exist_ok=True)
    write_json(_rows_file(out, scene), entries)


def write_frame(out: Path, stem: str, frame: RenderedFrame) -> None:
    """Write a frame's image, depth in millimetres, confidence (255 where the sensor reads) and classes as PNG."""
    maps = {
        "rgb": frame.rgb,
        "depth": to_millimetres(frame.depth),
        "confidence": np.where(frame.sensor_depth > 0, 255, 0).astype(np.uint8),
        "labels": remap(frame.labels),
    }
    for name, image in maps.items():
        path = out / name / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, image)


@cache
def _held_out(scenes: int) -> dict[int, str]:
    """{scene: test or val}, drawn by the hashes of the scenes' numbers; none if there are fewer than three scenes."""
    order = sorted(range(scenes), key=lambda number: hashlib.sha256(str(number).encode()).digest())
    n_test, n_val = (math.ceil(fraction * scenes) if scenes > 2 else 0 for fraction in (TEST_FRACTION, VAL_FRACTION))
    return dict.fromkeys(order[:n_test], "test") | dict.fromkeys(order[n_test : n_test + n_val], "val")


def _parse(out: Path, entry: dict[str, Any]) -> Row:
    try:
        files = {name: out / name / f"{entry['stem']}.png" for name in MAPS}
        return Row(
            stem=entry["stem"],
            rgb=files["rgb"],
            depth=files["depth"],
            confidence=files["confidence"],
            labels=files["labels"],
            da3_depth=files["depth"],
            sam2_seg=files["labels"],
            split=entry["split"],
            intrinsics=parse_intrinsics(entry["intrinsics"], entry["stem"]),
            made_by=MADE_BY,
            recording=entry["recording"],
            time=entry.get("time"),
            pose=tuple(map(tuple, entry["pose"])),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{out / ROWS} has an entry that is not a rendered frame ({error}): remove it") from None
