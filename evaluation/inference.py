"""Inference on images of any size, in metres of each image's own camera."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import nn

from config import Intrinsics, Recipe
from dataset.frames import from_network_map, to_network_camera, to_network_rgb

# Maps an image, uint8 [H,W,3], and its camera (None: the reference camera) to depth float32 [H,W] in metres of that
# camera and classes uint8 [H,W]; NaN and 255 outside the student's window.
Predictor = Callable[[np.ndarray, Intrinsics | None], tuple[np.ndarray, np.ndarray]]


def focal_scale(camera: Intrinsics | None, recipe: Recipe) -> float:
    """Factor f / f_ref at the network's input size: the student's depth times it is a camera's depth; 1 if unknown."""
    if camera is None:
        return 1.0
    return to_network_camera(camera, recipe.width, recipe.height).focal / recipe.reference_focal


def make_predictor(student: nn.Module, recipe: Recipe, device: torch.device) -> Predictor:
    """Wrap a student, in eval mode on the device, as a function of an image and its camera."""

    @torch.inference_mode()
    def predict(rgb: np.ndarray, camera: Intrinsics | None) -> tuple[np.ndarray, np.ndarray]:
        height, width = rgb.shape[:2]
        tensor = torch.from_numpy(to_network_rgb(rgb, recipe.width, recipe.height)).to(device)
        depth, logits = student(tensor.permute(2, 0, 1).unsqueeze(0).float() / 255)
        metres = depth[0, 0].cpu().numpy() * focal_scale(camera, recipe)
        seg = logits[0].argmax(dim=0).byte().cpu().numpy()
        return (
            from_network_map(metres, width, height, cv2.INTER_LINEAR),
            from_network_map(seg, width, height, cv2.INTER_NEAREST),
        )

    return predict
