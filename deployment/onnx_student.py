"""An exported graph as a student that evaluation can call."""

from pathlib import Path

from cli import UserError

import cv2
import numpy as np
import onnxruntime

from config import CLASS_NAMES, Intrinsics, Recipe
from dataset.files import read_json, sha256_of
from dataset.frames import from_network_map, to_network_camera, to_network_rgb
from dataset.manifest import Cameras, parse_intrinsics
from deployment.graph import DEPTH, INPUT, SEG, has_uint8_input, open_session, to_input
from evaluation.inference import Predictor


def load_onnx_student(path: Path, camera_file: Path | None) -> tuple[Predictor, Recipe]:
    """Load a graph as a predictor, run by ONNX Runtime on the CPU, and a recipe that has its input size.

    The graph's depth is in metres of one camera; for another camera with focal length f it is multiplied by f / f_graph
    (both at the network's size).

    Args:
        path: .onnx file with the inputs and outputs that export_trt.py writes.
        camera_file: camera.json of the graph's camera; None: the camera of student.json beside the graph.

    Raises UserError if the file is missing or no such graph, or its camera is unknown.
    """
    if not path.is_file():
        raise UserError(f"there is no graph {path}; export_trt.py writes one")
    try:
        session = open_session(path.read_bytes())
    except Exception as error:  # ONNX Runtime raises many types for a damaged file
        raise UserError(f"{path} is not a readable ONNX graph: {str(error).splitlines()[0][:200]}") from None
    height, width = _check_contract(path, session)
    camera = _graph_camera(path, camera_file)
    focal = to_network_camera(camera, width, height).focal
    uint8_input = has_uint8_input(session)
    recipe = Recipe(width=width, height=height)

    def predict(rgb: np.ndarray, frame_camera: Intrinsics | None) -> tuple[np.ndarray, np.ndarray]:
        size = rgb.shape[1], rgb.shape[0]
        image = to_input(to_network_rgb(rgb, width, height), uint8_input)
        depth, logits = session.run([DEPTH, SEG], {INPUT: image})
        scale = to_network_camera(frame_camera, width, height).focal / focal if frame_camera else 1.0
        metres = np.maximum(depth[0, 0], recipe.min_depth) * np.float32(scale)  # a ReLU's 0 means near, not missing
        return (
            from_network_map(metres, *size, cv2.INTER_LINEAR),
            from_network_map(logits[0].argmax(axis=0).astype(np.uint8), *size, cv2.INTER_NEAREST),
        )

    return predict, recipe


def _check_contract(path: Path, session: onnxruntime.InferenceSession) -> tuple[int, int]:
    """Height and width of a graph's input; raises UserError if its inputs or outputs are not a student's."""
    tensors = {value.name: (value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())}
    kind, shape = tensors.get(INPUT, ("", []))
    height, width = (shape[1:3] if kind == "tensor(uint8)" else shape[2:4]) if len(shape) == 4 else (0, 0)
    expected = {
        INPUT: (kind, [1, height, width, 3] if kind == "tensor(uint8)" else [1, 3, height, width]),
        DEPTH: ("tensor(float)", [1, 1, height, width]),
        SEG: ("tensor(float)", [1, len(CLASS_NAMES), height, width]),
    }
    if tensors != expected or kind not in ("tensor(uint8)", "tensor(float)") or not isinstance(height, int):
        found = ", ".join(f"{name} {kind} {shape}" for name, (kind, shape) in tensors.items())
        raise UserError(
            f"{path} is not a student's graph: it must map {INPUT} [1,3,H,W] to {DEPTH} [1,1,H,W] and {SEG} "
            f"[1,{len(CLASS_NAMES)},H,W], and has {found}"
        )
    return height, width


def _graph_camera(path: Path, camera_file: Path | None) -> Intrinsics:
    """The camera whose metres a graph predicts; raises UserError if it is unknown."""
    if camera_file:
        camera = Cameras.read(camera_file).common
        if camera is None:
            raise UserError(f"{camera_file} holds a camera for each frame: a graph's depth is for one camera")
        return camera
    description = path.parent / "student.json"
    if not description.is_file():
        raise UserError(f"the camera of {path} is unknown: there is no student.json beside it; give its camera.json")
    content = read_json(description)
    try:
        graphs = {entry["onnx"]["file"]: entry["onnx"]["sha256"] for entry in content["precisions"]}
        camera = parse_intrinsics(content["camera"], str(description))
    except (KeyError, TypeError):
        raise UserError(f"{description} does not describe graphs and their camera; export again") from None
    if graphs.get(path.name) != sha256_of(path):
        raise UserError(f"{path} is not what {description} describes: export again, or give its camera.json")
    return camera
