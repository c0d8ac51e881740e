"""Hand-drawn outlines of persons on two photographs from ultralytics, run through run_sam2.py and downsampled.

The depth is a vertical wall, so the geometry labels everything wall and persons come from the objects alone.
"""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from box_room import PERSON, WALL

from config import NETWORK_HEIGHT, NETWORK_WIDTH, Intrinsics
from dataset.files import read_image, write_npy, write_png
from dataset.frames import centre_crop, to_network_map

SCRIPT = Path(__file__).resolve().parents[1] / "teacher_infer" / "run_sam2.py"
SUPERSAMPLING = 8  # OpenCV fills polygons half a pixel too wide; supersampling makes that negligible
PERSONS = {  # corners x, y in pixels of the photograph
    "bus": [
        [(103, 412), (130, 400), (158, 410), (155, 455), (180, 490), (200, 560), (192, 690), (180, 700), (182, 760)]
        + [(202, 852), (243, 880), (182, 898), (172, 850), (140, 720), (118, 700), (90, 860), (106, 895), (54, 890)]
        + [(62, 840), (75, 700), (60, 690), (65, 520), (100, 450)],
        [(266, 412), (290, 406), (306, 420), (303, 470), (332, 490), (343, 552), (325, 570), (336, 690), (338, 720)]
        + [(285, 780), (298, 818), (290, 857), (256, 852), (246, 760), (244, 700), (226, 695), (236, 540), (262, 470)],
        [(809, 395), (790, 415), (796, 470), (770, 545), (724, 545), (724, 565), (762, 600), (750, 680), (760, 690)]
        + [(720, 815), (672, 828), (738, 876), (809, 720)],
    ],
    "zidane": [
        [(510, 225), (565, 203), (630, 228), (663, 300), (656, 372), (690, 410), (780, 440), (915, 445), (1000, 425)]
        + [(1148, 407), (1150, 420), (1090, 436), (1078, 480), (965, 490), (930, 512), (830, 532), (670, 505)]
        + [(663, 620), (630, 719), (122, 719), (175, 620), (175, 540), (235, 400), (290, 325)]
        + [(410, 322), (475, 303), (485, 265)],
        [(900, 90), (985, 43), (1068, 95), (1055, 180), (1020, 282), (1065, 355), (1085, 405), (1148, 407), (1000, 425)]
        + [(915, 445), (780, 440), (752, 430), (770, 340), (905, 240), (895, 150)],
    ],
}


def photograph(name: str) -> np.ndarray:
    assets = pytest.importorskip("ultralytics.utils").ASSETS
    return read_image(Path(assets) / f"{name}.jpg")


def outlines(name: str, shape: tuple[int, int], scale: float = 1, left: float = 0, top: float = 0) -> np.ndarray:
    """bool [H,W]: the persons drawn at another scale, with the photograph's pixel (left, top) in the corner."""
    fine = np.zeros((shape[0] * SUPERSAMPLING, shape[1] * SUPERSAMPLING), np.uint8)
    for polygon in PERSONS[name]:
        corners = ((np.float64(polygon) + 0.5 - (left, top)) * scale) * SUPERSAMPLING - 0.5
        cv2.fillPoly(fine, [np.rint(corners * 256).astype(np.int32)], 1, shift=8)
    return fine[SUPERSAMPLING // 2 :: SUPERSAMPLING, SUPERSAMPLING // 2 :: SUPERSAMPLING] > 0  # pixel centres


def write_data(root: Path, name: str) -> None:
    rgb = photograph(name)
    persons = outlines(name, rgb.shape[:2])
    height, width = persons.shape
    write_png(root / "rgb" / f"{name}.png", rgb)
    write_png(root / "labels" / f"{name}.png", np.where(persons, PERSON, WALL).astype(np.uint8))
    write_png(root / "instances" / f"{name}.png", persons.astype(np.uint16))
    write_npy(root / "depth" / f"{name}.npy", np.full(persons.shape, 3, np.float32))
    camera = Intrinsics(800.0, 800.0, width / 2, height / 2, width, height)
    (root / "camera.json").write_text(json.dumps({name: vars(camera)}))


@pytest.mark.parametrize("name", PERSONS)
def test_persons_match_the_outlines_within_one_pixel(name, tmp_path):
    write_data(tmp_path, name)
    flags = ("--input-dir", "rgb", "--depth-dir", "depth", "--output-dir", "sam2_seg", "--backend", "reference")
    subprocess.run([sys.executable, SCRIPT, *flags], cwd=tmp_path, check=True)
    merged = np.load(tmp_path / "sam2_seg" / f"{name}.npy")
    assert set(np.unique(merged)) == {WALL, PERSON}
    found = to_network_map(merged, NETWORK_WIDTH, NETWORK_HEIGHT) == PERSON
    left, top, width, _ = centre_crop(merged.shape[1], merged.shape[0], NETWORK_WIDTH / NETWORK_HEIGHT)
    expected = outlines(name, found.shape, NETWORK_WIDTH / width, left, top).astype(np.uint8)
    one_pixel = np.ones((3, 3), np.uint8)
    assert not (found & ~(cv2.dilate(expected, one_pixel) > 0)).any()
    assert not ((cv2.erode(expected, one_pixel) > 0) & ~found).any()
    mirrored = found[:, ::-1]
    assert ((cv2.erode(expected, one_pixel) > 0) & ~mirrored).any(), "the outlines are not symmetric"
