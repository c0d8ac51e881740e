"""Start of a run: data, initial weights, and metadata of code and data."""

import itertools
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cli import UserError

import timm

from config import Recipe, Runtime
from dataset.cache import PackedCache
from dataset.files import remove_temporary_files
from dataset.frames import to_network_camera
from dataset.identity import content_sample
from dataset.locks import try_lock
from dataset.manifest import Row, read_manifest, select_rows
from hub import fetch
from models.student import Student, load_encoder_state, load_timm_weights
from rooms.prepare_rooms import prepare_rooms
from trainer.checkpoint import load_checkpoint, load_student, recipe_from_checkpoint
from trainer.distributed import Processes
from trainer.feed import PackedFrames
from trainer.mixture import MixedFrames, WeightedManifest


def find_manifests(
    manifest_flag: Sequence[WeightedManifest] | None, runtime: Runtime, required: bool
) -> tuple[Sequence[WeightedManifest], str | None]:
    """Find the manifests to train on; returns them and a notice if it falls back to rendered rooms.

    Args:
        manifest_flag: --manifest, if given.
        runtime: paths.
        required: raise UserError if there is no manifest, instead of rendering rooms. Corridor data is always required.
    """
    if manifest_flag:
        return manifest_flag, None
    manifest = runtime.teacher_data_dir / "manifest.jsonl"
    if manifest.is_file():
        return [WeightedManifest(manifest)], None
    if required or runtime.use_corridor_data:
        raise UserError(
            f"there is no {manifest}: run the teachers first (docs/teachers.md), or pass one with --manifest"
        )
    notice = (
        f"*** NO DATA: there is no {manifest}. This run trains on RENDERED ROOMS with reference labels. ***\n"
        "*** Its metrics say nothing about real rooms. ***"
    )
    print(notice)
    return [WeightedManifest(prepare_rooms(runtime.data_root / "rooms_teacher_data"))], notice


def open_cache(
    rows: list[Row],
    manifest: Path,
    recipe: Recipe,
    scale: float,
    workers: int,
    cache_dir: Path | None = None,
    selection: Mapping[str, Any] | None = None,
) -> PackedFrames:
    """Open the packed cache of these rows at `scale` times the network's input size; missing frames are packed.

    Args:
        rows: rows of the manifest.
        manifest: its path.
        recipe: input size of the network, and reference focal length.
        scale: size of the packed frames as a multiple of the input size.
        workers: number of threads that pack frames.
        cache_dir: folder of the cache (default: beside the manifest).
        selection: how the rows were selected from the manifest, including the split; JSON-serialisable. The new cache
            replaces outdated ones of the same selection. None: no cache is replaced.
    """
    size, focal = (round(recipe.width * scale), round(recipe.height * scale)), recipe.reference_focal * scale
    folder = (cache_dir or manifest.parent / ".cache").resolve()
    # relative: a data folder may be moved with its cache
    source = {"manifest": os.path.relpath(manifest.resolve(), folder), **selection} if selection else None
    return PackedFrames(PackedCache(rows, folder, size, focal, source), workers)


def open_caches(manifest: Path, recipe: Recipe, runtime: Runtime, limit: int | None) -> tuple[PackedFrames, ...]:
    """Open the packed caches of the training and the validation frames, in this order; missing frames are packed.

    Args:
        manifest: its path.
        recipe: input size of the network; training frames are packed Recipe.cache_scale times as large.
        runtime: cache folder, allowed links and number of threads.
        limit: maximum number of frames per split.
    """
    rows = read_manifest(manifest, runtime.allow_links_to)
    # select both splits first: an empty one must raise its error before hours of packing, not after
    selected = {split: select_rows(rows, split, limit) for split in ("train", "val")}
    workers, cache_dir = runtime.num_workers, runtime.cache_dir
    return tuple(
        open_cache(selected[split], manifest, recipe, scale, workers, cache_dir, {"split": split, "limit": limit})
        for split, scale in (("train", recipe.cache_scale), ("val", 1))
    )


def open_data(
    manifests: Sequence[WeightedManifest], recipe: Recipe, runtime: Runtime, limit: int | None
) -> tuple[PackedFrames | MixedFrames, dict[str, PackedFrames]]:
    """Open the packed training frames of all manifests, mixed, and {set: packed validation frames}.

    The arguments are those of open_caches(), with several manifests. Sets without validation frames are left out,
    unless all are. Raises UserError if a set is given twice, or one's training images are validated in
    another.
    """
    if len({manifest.path.resolve() for manifest in manifests}) < len(manifests):
        raise UserError("--manifest: a manifest is given twice; set its weight instead")
    opened = [open_caches(manifest.path, recipe, runtime, limit) for manifest in manifests]
    names = [manifest.name for manifest in manifests]
    if len(set(names)) < len(names):
        names = [str(manifest.path) for manifest in manifests]
    if len(opened) == 1:
        return opened[0][0], {names[0]: opened[0][1]}
    _check_leakage([frames for frames, _ in opened], [val for _, val in opened])
    mixed = MixedFrames([frames for frames, _ in opened], [manifest.weight for manifest in manifests])
    val_sets = {name: val for name, (_, val) in zip(names, opened, strict=True) if len(val)}
    return mixed, val_sets or {names[0]: opened[0][1]}


def _check_leakage(train: Sequence[PackedFrames], val: Sequence[PackedFrames]) -> None:
    """Raise UserError if an image is among the training frames of one set and the validation frames of another."""
    trained = {row.rgb.resolve() for frames in train for row in frames.rows}
    for row in (row for frames in val for row in frames.rows):
        if row.rgb.resolve() in trained:
            raise UserError(f"{row.rgb} is for training in one manifest and for validation in another")


@contextmanager
def lock_checkpoint_dir(checkpoint_dir: Path, processes: Processes) -> Iterator[None]:
    """Lock the checkpoint folder against concurrent training runs while the body runs.

    Creates the folder, removes the temporary files of killed runs, and removes the folder again if the body wrote
    nothing. Raises UserError if another training run holds the lock.
    """
    missing = [folder for folder in (checkpoint_dir, *checkpoint_dir.parents) if not folder.exists()]
    with ExitStack() as stack:
        with processes.main_process_first():
            if processes.is_main:
                stack.callback(_remove_empty_dirs, missing)
                checkpoint_dir.mkdir(parents=True, exist_ok=True)
                if not stack.enter_context(try_lock(checkpoint_dir / ".training.lock")):
                    raise UserError(
                        f"another training run writes to {checkpoint_dir}: use a different --checkpoint-dir"
                    )
                remove_temporary_files(checkpoint_dir)  # each as large as a checkpoint
        yield


def _remove_empty_dirs(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def create_run_dir(log_dir: Path) -> str:
    """Create a run folder named after the current time; returns its name, with a number appended if it is taken."""
    now = time.strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        name = now if number == 1 else f"{now}-{number}"
        with suppress(FileExistsError):
            (log_dir / name).mkdir(parents=True)
            break
    return name


def find_checkpoint(choice: str | Path | None, checkpoint_dir: Path) -> Path | None:
    """The checkpoint that --resume chooses; None without --resume, or with 'auto' if there is no last.pt."""
    if choice != "auto":
        return Path(choice) if choice else None
    last = checkpoint_dir / "last.pt"
    return last if last.is_file() else None


def with_output_range(
    recipe: Recipe, frames: PackedFrames | MixedFrames, resumed: Path | None, init: Path | None
) -> Recipe:
    """The recipe with an output range that covers the training data.

    Converted to the reference focal length, the data spans from the minimum depth at the longest focal length to the
    maximum depth at the shortest, including zoom.

    Args:
        recipe: from the flags.
        frames: the training data.
        resumed: checkpoint to resume; its range is kept.
        init: checkpoint of --init; its range is kept, because it defines how raw outputs map to depth.

    Raises UserError if the range of `init` is too narrow for the data.
    """
    min_zoom, max_zoom = recipe.zoom
    nearest = recipe.min_depth * float(frames.focal_factor.min()) / max_zoom
    farthest = recipe.max_depth * float(frames.focal_factor.max()) / min_zoom
    checkpoint = resumed or init
    if not checkpoint:
        default = recipe.output_range
        return replace(recipe, output_range=(min(nearest, default[0]), max(farthest, default[1])))
    old_range = recipe_from_checkpoint(load_checkpoint(checkpoint), checkpoint).output_range
    if not resumed and (nearest < old_range[0] or farthest > old_range[1]):
        raise UserError(
            f"--init {init}: its output range is {old_range[0]:.2f} to {old_range[1]:.1f} m, but this data "
            f"needs {nearest:.2f} to {farthest:.1f} m: narrow --zoom, or start without --init"
        )
    return replace(recipe, output_range=old_range)


def load_initial_weights(model: Student, recipe: Recipe, weights: str | Path) -> str:
    """Load the initial weights in place.

    Args:
        model: the student to train.
        recipe: its recipe.
        weights: a Path is another run's checkpoint, whose whole student is loaded. A string chooses the encoder's
            weights: 'imagenet' (timm's, from the hub's cache or the hub), 'auto' (the same, or random ones if they are
            unavailable), 'none' (random), or the path of a state dict.

    Returns the origin of the weights. Raises UserError if they are unavailable or don't fit.
    """
    return _load_student(model, recipe, weights) if isinstance(weights, Path) else _load_encoder(model, recipe, weights)


def _load_encoder(model: Student, recipe: Recipe, choice: str) -> str:
    if choice == "none":
        return "random"
    try:
        if choice not in ("auto", "imagenet"):
            load_encoder_state(model, recipe.encoder, choice)
            return choice
        load_timm_weights(model, recipe.encoder, _fetch_imagenet_weights(recipe.encoder))
    except (OSError, RuntimeError, UserError) as error:
        if choice != "auto":
            raise UserError(f"--encoder-weights {choice}: {error}") from None
        print(f"WARNING: the encoder starts from random weights: {error}")
        return "random"
    return "imagenet"


def _fetch_imagenet_weights(encoder: str) -> str:
    config = timm.get_pretrained_cfg(encoder)
    if config is None or not config.hf_hub_id:
        raise UserError(f"timm publishes no weights for {encoder} on the Hugging Face Hub")
    return str(fetch(config.hf_hub_id, "model.safetensors"))


def _load_student(model: Student, recipe: Recipe, path: Path) -> str:
    student, old_recipe, content = load_student(path)
    if old_recipe.reference_focal != recipe.reference_focal:
        raise UserError(f"--init {path}: its reference focal length differs from this run's")
    if old_recipe.output_range != recipe.output_range:
        raise UserError(f"--init {path}: its output range, {old_recipe.output_range} m, differs from this run's")
    try:
        model.load_state_dict(student.state_dict())
    except RuntimeError:
        raise UserError(f"--init {path} has a different encoder or width") from None
    return f"student of {path}, whose encoder started from {content.get('notes', {}).get('encoder_start')}"


def check_same_recipe(path: Path, old_recipe: Recipe, recipe: Recipe) -> None:
    """Raise UserError if the recipe differs from that of the checkpoint `path`."""
    for name, value in asdict(recipe).items():
        if (old := getattr(old_recipe, name)) != value:
            raise UserError(
                f"{path} was trained with {name} {old}, not {value}: use the same settings, or start a new run in "
                "a different --checkpoint-dir"
            )


def check_same_data(path: Path, old: dict, current: dict) -> None:
    """Raise UserError if a checkpoint was trained on different data.

    Args:
        path: the checkpoint.
        old: its metadata.
        current: fingerprint of the current data, and its description from describe_data().
    """
    if old["data_fingerprint"] == current["data_fingerprint"]:
        return
    hashes_file_times = ":" not in old["data_fingerprint"]  # written by an older revision
    if hashes_file_times and all(old[name] == current[name] for name in ("train_stems", "camera", "teachers")):
        print(f"WARNING: {path} identifies its data by file times; frames, camera and teachers are the same: resuming")
        return
    raise UserError(f"{path} was trained on different data: start a new run in a different --checkpoint-dir")


def describe_data(rows: Sequence[Row], recipe: Recipe) -> dict:
    """Describe the training data for the checkpoint.

    Returns 'camera' (intrinsics at the network's input size; None unless all frames have the same), 'teachers', and
    'train_stems' and 'train_images' (content hashes), by which later stages exclude training images from a test.
    """
    size = (recipe.width, recipe.height)
    cameras = {to_network_camera(row.intrinsics, *size) if row.intrinsics else None for row in rows}
    camera = cameras.pop() if len(cameras) == 1 else None
    teachers = {json.dumps(row.made_by, sort_keys=True) for row in rows}
    return {
        "camera": vars(camera) if camera else None,
        "teachers": [json.loads(text) for text in sorted(teachers)],
        "train_stems": [row.stem for row in rows],
        "train_images": [content_sample(row.rgb) for row in rows],
    }


def git_revision() -> str:
    """Git revision of this code; 'unknown' outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).resolve().parents[1]), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
