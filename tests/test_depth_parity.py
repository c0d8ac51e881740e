"""The depth teachers' networks, with random weights from a local folder, against the output of their own packages.

With random weights depth spans a few per cent, so differences are measured against a map's own spread (max - min).
PARITY_RESOLUTION=504 (DA3's own) takes four times as long as the default here.
"""

import contextlib
import os
from functools import partial
from pathlib import Path

from cli import UserError

import cv2
import numpy as np
import pytest

from config import Intrinsics
from dataset.files import read_image
from teacher_infer import depth_backends

KITCHEN = Path(os.environ.get("RGBD_FRAMES") or Path(__file__).resolve().parents[2] / "shared" / "rgbd_kitchen")
RESOLUTION = int(os.environ.get("PARITY_RESOLUTION", "252"))
TOLERANCE = 1e-3  # of the spread

torch = pytest.importorskip("torch")
needs_frames = pytest.mark.skipif(not KITCHEN.is_dir(), reason=f"no real frames at {KITCHEN} (set RGBD_FRAMES)")


@pytest.fixture(scope="module")
def frames():
    """Four real frames of two sizes, uint8 [H,W,3]."""
    images = [read_image(path) for path in sorted(KITCHEN.glob("*.color.jpg"))[::90][:4]]
    return images[:2] + [np.ascontiguousarray(image[60:420]) for image in images[2:]]


def da3_folder(name, folder):
    api = pytest.importorskip("depth_anything_3.api", reason="depth-anything-3 is not installed")
    torch.manual_seed(0)
    api.DepthAnything3(model_name=name).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return da3_folder("da3-small", tmp_path_factory.mktemp("da3-small"))


def raw_depth(backend, images):
    """(raw depth, sky or None) of each image, as the network gave them."""
    prepared = [backend.prepare(str(n), image, None) for n, image in enumerate(images)]
    return [output[:2] for output in backend.infer(prepared)]


def package_depth(backend, images, monkeypatch):
    """Depth by the package's own inference(), in float32: it would ask for half precision on a CPU, too."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "autocast", lambda **_: contextlib.nullcontext())
        return backend.network.inference(images, process_res=backend.process_resolution).depth


def difference(ours, sky, theirs):
    """Largest difference over the spread of the package's map, where there is no sky."""
    seen = np.ones(ours.shape, bool) if sky is None else sky < depth_backends.SKY
    assert seen.mean() > 0.2
    return np.abs(ours - theirs)[seen].max() / np.ptp(theirs[seen])


def half_a_pixel_off(image):
    shift = np.float32([[1, 0, 0.5], [0, 1, 0.5]])
    return cv2.warpAffine(image, shift, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)


@needs_frames
@pytest.mark.parametrize("name", ["da3-small", "da3metric-large"])
def test_da3_equals_its_package(name, frames, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    backend = depth_backends.DA3(str(da3_folder(name, tmp_path)), "cpu", RESOLUTION, batch_size=2)
    expected = [package_depth(backend, [image], monkeypatch)[0] for image in frames]
    alone, together = [raw_depth(backend, [image])[0] for image in frames[::2]], raw_depth(backend, frames)
    for (ours, sky), theirs in zip(alone + together, expected[::2] + expected, strict=True):
        assert difference(ours, sky, theirs) < TOLERANCE
    for wrong in (np.ascontiguousarray(frames[0][..., ::-1]), half_a_pixel_off(frames[0])):
        assert difference(*raw_depth(backend, [wrong])[0], expected[0]) > 5 * TOLERANCE
    torch.set_num_threads(threads)


def test_da3_metres_follow_the_focal_length(small):
    backend = depth_backends.DA3(str(small), "cpu", 112)
    rgb = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    near = depth_backends.depth_of(backend, "a", rgb, Intrinsics(130, 130, 80, 60, 160, 120))
    assert near.shape == (120, 160) and near.dtype == np.float32 and (near > 0).all()
    far = depth_backends.depth_of(backend, "a", rgb, Intrinsics(260, 260, 80, 60, 160, 120))
    assert far == pytest.approx(near * 2, rel=1e-5)
    assert len(backend.provenance["weights_sha256"]) == 64


def test_a_frame_s_depth_does_not_depend_on_the_others_of_its_batch(small):
    backend = depth_backends.DA3(str(small), "cpu", 112, batch_size=4)
    images = np.random.default_rng(0).integers(0, 255, (4, 120, 160, 3), dtype=np.uint8)
    together, alone = raw_depth(backend, images), [raw_depth(backend, [image])[0] for image in images]
    assert all(a[0].tobytes() == b[0].tobytes() for a, b in zip(together, alone, strict=True))


def save_random(network, folder):
    torch.manual_seed(0)
    for parameter in network.parameters():  # the library's own start is so small that all depth is alike
        torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder)


def depth_anything(folder, kind="metric"):
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=48,
        neck_hidden_sizes=[16, 24, 48, 48],
        fusion_hidden_size=16,
        head_hidden_size=16,
        depth_estimation_type=kind,
        max_depth=20,
    )
    save_random(DepthAnythingForDepthEstimation(config), folder)
    DPTImageProcessor(
        size={"height": 112, "width": 112}, keep_aspect_ratio=True, ensure_multiple_of=14, resample=3
    ).save_pretrained(folder)


def zoe_depth(folder):
    from transformers import BeitConfig, ZoeDepthConfig, ZoeDepthForDepthEstimation, ZoeDepthImageProcessor

    backbone = BeitConfig(
        image_size=96,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=37,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = ZoeDepthConfig(
        backbone_config=backbone,
        backbone_hidden_size=32,
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=16,
        bottleneck_features=16,
        num_out_features=[16, 16, 16, 16],
        bin_configurations=[{"name": "nyu", "n_bins": 8, "min_depth": 0.001, "max_depth": 10.0}],
    )
    save_random(ZoeDepthForDepthEstimation(config), folder)
    ZoeDepthImageProcessor(size={"height": 96, "width": 96}).save_pretrained(folder)


@pytest.mark.parametrize("build", [depth_anything, zoe_depth])
def test_transformers_backend_equals_the_library_s_pipeline(build, tmp_path):
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    build(tmp_path)
    images = np.random.default_rng(0).integers(0, 255, (3, 12, 16, 3), dtype=np.uint8)
    images = [cv2.resize(image, (160, 120), interpolation=cv2.INTER_CUBIC) for image in images]
    backend = depth_backends.Transformers(str(tmp_path), "cpu", batch_size=2)
    prepared = [backend.prepare(str(n), image, None) for n, image in enumerate(images)]
    depths = [backend.finish(p, output) for p, output in zip(prepared, backend.infer(prepared), strict=True)]
    pipeline = transformers.pipeline("depth-estimation", model=str(tmp_path), device="cpu")
    for image, depth in zip(images, depths, strict=True):
        expected = pipeline(Image.fromarray(image))["predicted_depth"].numpy()
        expected = np.maximum(expected, 0)  # its bicubic resize overshoots
        assert depth.shape == (120, 160) and depth.dtype == np.float32
        assert np.abs(depth - expected).max() / np.ptp(expected) < TOLERANCE


@pytest.mark.parametrize("build", [depth_anything, zoe_depth])
def test_a_gpus_half_precision_does_not_round_metres(build, tmp_path, monkeypatch):
    """The encoder may be bfloat16, as autocast on this CPU is; what makes metres of it is float32."""
    pytest.importorskip("transformers")
    build(tmp_path)
    image = cv2.resize(np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8), (160, 120))
    values = {}
    for enabled in (False, True):
        half = partial(torch.autocast, "cpu", torch.bfloat16, enabled)
        monkeypatch.setattr(depth_backends, "half_precision", lambda device, half=half: half())
        backend = depth_backends.Transformers(str(tmp_path), "cpu")
        (output,) = backend.infer([backend.prepare("a", image, None)])
        values[enabled] = output
    assert not np.array_equal(values[True], values[False]), "the encoder is not in half precision"
    assert len(np.unique(values[True])) > 0.5 * len(np.unique(values[False])) > 5000


def test_relative_depth_is_refused(tmp_path):
    pytest.importorskip("transformers")
    depth_anything(tmp_path, kind="relative")
    with pytest.raises(UserError, match="relative"):
        depth_backends.Transformers(str(tmp_path), "cpu")
