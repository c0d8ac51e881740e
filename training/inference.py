"""The student on one image of any size: to the network's size and back, in metres of the image's own camera."""

import cv2
import numpy as np
import torch

from config import Config, Intrinsics
from dataset.frames import from_network_map, to_network_camera, to_network_rgb
from models.student import Student


def focal_scale(camera: Intrinsics | None, config: Config) -> float:
    """f / f_ref at the network's size, by which the student's depth is multiplied; 1 for an unknown camera."""
    if camera is None:
        return 1.0
    return to_network_camera(camera, config.width, config.height).focal / config.reference_focal


@torch.inference_mode()
def predict(
    student: Student, rgb: np.ndarray, scale: float, config: Config, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Depth and classes of one image.

    Args:
        student: in eval mode, on the device.
        rgb: uint8 [H,W,3].
        scale: f / f_ref, see focal_scale().

    Returns: depth float32 [H,W] in metres and classes uint8 [H,W]; NaN and 255 outside the window of the network's
        aspect ratio, for images of another one.
    """
    height, width = rgb.shape[:2]
    tensor = torch.from_numpy(to_network_rgb(rgb, config.width, config.height)).to(device)
    depth, logits = student(tensor.permute(2, 0, 1).unsqueeze(0).float() / 255)
    seg = logits[0].argmax(dim=0).byte().cpu().numpy()
    return (
        from_network_map(depth[0, 0].cpu().numpy() * scale, width, height, cv2.INTER_LINEAR),
        from_network_map(seg, width, height, cv2.INTER_NEAREST),
    )
