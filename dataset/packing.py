"""Pack frames as integers at the network's input size or a multiple of it, for the packed cache and eval_frames.npz."""

import numpy as np

from config import IGNORE
from dataset.frames import Frame, to_millimetres, to_network_map, to_network_rgb

PACKED_ARRAYS = {  # name: (dtype, channels, fill value for frames without it); shape [N, height, width, channels]
    "rgb": (np.uint8, 3, 0),
    "depth": (np.uint16, 1, 0),  # millimetres; float16 metres would have a step of 8 mm above 8 m
    "confidence": (np.uint8, 1, 255),  # 0..255 for 0..1
    "da3_depth": (np.uint16, 1, 0),  # millimetres
    "sam2_seg": (np.uint8, 1, IGNORE),
    "seg_confidence": (np.uint8, 1, 255),  # 0..255 for 0..1; 1 if the teacher gives none
    "labels": (np.uint8, 1, IGNORE),
}


def pack_frame(frame: Frame, width: int, height: int) -> dict[str, np.ndarray]:
    """Resize a frame and convert it to the dtypes of PACKED_ARRAYS: {name: [height,width,channels]}."""

    def to_uint8(confidence: np.ndarray) -> np.ndarray:
        return np.rint(confidence * 255)

    units = {"depth": to_millimetres, "da3_depth": to_millimetres, "confidence": to_uint8, "seg_confidence": to_uint8}
    packed = {"rgb": to_network_rgb(frame.rgb, width, height)}
    for name, (dtype, channels, value) in PACKED_ARRAYS.items():
        if name == "rgb":
            continue
        if (array := getattr(frame, name)) is None:
            packed[name] = np.full((height, width, channels), value, dtype)
        else:
            resized = to_network_map(array, width, height)
            packed[name] = units.get(name, np.asarray)(resized).astype(dtype)[..., None]
    return packed
