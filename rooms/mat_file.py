"""Write rendered frames in the layout of nyu_depth_v2_labeled.mat."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from dataset.files import atomic_path
from rooms.scenes import RenderedFrame, class_table


def write_mat(path: str | Path, frames: Iterator[RenderedFrame], count: int, width: int, height: int) -> None:
    """Write `count` frames of width x height pixels, one by one, in the layout of nyu_depth_v2_labeled.mat.

    Datasets: images (N,3,W,H) uint8; depths, rawDepths (N,W,H) float32; labels (N,W,H) uint16; instances (N,W,H)
    uint8; names (1,894), scenes, sceneTypes (1,N) references to uint16 characters. Not part of NYU's layout:
    intrinsics (N,4) float64, fx fy cx cy. Raises ValueError if `frames` yields another number of frames.
    """
    layout = {
        "images": ((3, width, height), np.uint8),
        "depths": ((width, height), np.float32),
        "rawDepths": ((width, height), np.float32),
        "labels": ((width, height), np.uint16),
        "instances": ((width, height), np.uint8),
    }
    scenes, types, cameras = [], [], []
    with atomic_path(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
        datasets = {
            name: file.create_dataset(
                name, (count, *shape), dtype, chunks=(1, *shape), compression="gzip", compression_opts=1, shuffle=True
            )
            for name, (shape, dtype) in layout.items()
        }
        for index, frame in enumerate(frames):
            datasets["images"][index] = frame.rgb.transpose(2, 1, 0)
            for name, image in (
                ("depths", frame.depth),
                ("rawDepths", frame.sensor_depth),
                ("labels", frame.labels),
                ("instances", frame.instances),
            ):
                datasets[name][index] = image.T
            scenes.append(frame.scene)
            types.append(frame.scene_type)
            cameras.append([frame.camera.fx, frame.camera.fy, frame.camera.cx, frame.camera.cy])
        if len(scenes) != count:
            raise ValueError(f"expected {count} frames, got {len(scenes)}")
        for name, texts in (("names", class_table()[0]), ("scenes", scenes), ("sceneTypes", types)):
            _write_cell_array(file, name, texts)
        file["intrinsics"] = np.array(cameras)
        file.attrs["rendered"] = 1


def _write_cell_array(file: h5py.File, name: str, texts: list[str]) -> None:
    """Write a MATLAB cell array of strings: (1,n) references to (k,1) character codes in the group #refs#."""
    references = file.create_dataset(name, (1, len(texts)), h5py.ref_dtype)
    references.attrs["MATLAB_class"] = np.bytes_("cell")
    group = file.require_group("#refs#")
    for index, text in enumerate(texts):
        codes = np.array([ord(character) for character in text], np.uint16)[:, None]
        string = group.create_dataset(f"{name}_{index}", data=codes)
        string.attrs["MATLAB_class"] = np.bytes_("char")
        references[0, index] = string.ref
