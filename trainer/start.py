"""What a run starts from: data, weights, and what its notes say of code and data."""

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
from trainer.checkpoint import load_checkpoint, load_student, recipe_of
from trainer.distributed import Processes
from trainer.feed import PackedFrames


def find_manifest(named: Path | None, runtime: Runtime, required: bool) -> tuple[Path, str | None]:
    """The manifest to train on, and a notice for the user when it falls back to rendered rooms.

    Args:
        named: the one that the user names.
        runtime: where data lies.
        required: whether it is an error that there is none.
    """
    if named:
        return named, None
    manifest = runtime.teacher_data_dir / "manifest.jsonl"
    if manifest.is_file():
        return manifest, None
    if required or runtime.use_corridor_data:
        raise UserError(
            f"there is no {manifest}: run the teachers first (docs/teachers.md), or name one with --manifest"
        )
    notice = (
        f"*** NO DATA: there is no {manifest}. This run trains on RENDERED ROOMS with reference labels. ***\n"
        "*** Its figures say that the code runs, nothing about real rooms. ***"
    )
    print(notice)
    return prepare_rooms(runtime.data_root / "rooms_teacher_data"), notice


def pack(
    rows: list[Row],
    manifest: Path,
    recipe: Recipe,
    scale: int,
    workers: int,
    cache_dir: Path | None = None,
    which: Mapping[str, Any] | None = None,
) -> PackedFrames:
    """The rows' packed cache at `scale` times the network's size.

    Args:
        rows: some of a manifest's.
        manifest: where they are from.
        recipe: says the network's size and its reference focal length.
        scale: 1 or more.
        workers: threads that pack what is missing.
        cache_dir: where the cache is kept; by default beside the manifest.
        which: what the rows are of the manifest, in plain JSON, among it the split: a cache of the same ones that is
            older than their files is replaced. Without it none is.
    """
    size, focal = (recipe.width * scale, recipe.height * scale), recipe.reference_focal * scale
    folder = (cache_dir or manifest.parent / ".cache").resolve()
    # relative: a data folder may be moved with its cache
    source = {"manifest": os.path.relpath(manifest.resolve(), folder), **which} if which else None
    return PackedFrames(PackedCache(rows, folder, size, focal, source), workers)


def pack_splits(manifest: Path, recipe: Recipe, runtime: Runtime, limit: int | None) -> tuple[PackedFrames, ...]:
    """The frames to train and to validate on, packed as training reads them.

    Args:
        manifest: lists them.
        recipe: training frames are kept larger than the network's size, see Recipe.cache_scale.
        runtime: where the cache is kept, where links may lead, and how many threads pack what is missing.
        limit: maximum number of frames of each split.
    """
    rows = read_manifest(manifest, runtime.allow_links_to)
    chosen = {split: select_rows(rows, split, limit) for split in ("train", "val")}  # before hours of packing
    where = (runtime.num_workers, runtime.cache_dir)
    return tuple(
        pack(chosen[split], manifest, recipe, scale, *where, {"split": split, "limit": limit})
        for split, scale in (("train", recipe.cache_scale), ("val", 1))
    )


@contextmanager
def only_writer(checkpoint_dir: Path, processes: Processes) -> Iterator[None]:
    """Keep other trainings than that of these processes out of a checkpoint folder in the body.

    What killed writers have left half-written there goes, and so does the folder when the body has written nothing.
    Raises UserError when another training writes there.
    """
    made = [folder for folder in (checkpoint_dir, *checkpoint_dir.parents) if not folder.exists()]
    with ExitStack() as held:
        with processes.main_first():
            if processes.main:
                held.callback(_remove_empty, made)
                checkpoint_dir.mkdir(parents=True, exist_ok=True)
                if not held.enter_context(try_lock(checkpoint_dir / ".training.lock")):
                    raise UserError(f"another training writes to {checkpoint_dir}: give another --checkpoint-dir")
                remove_temporary_files(checkpoint_dir)  # each as large as a checkpoint
        yield


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def new_run(log_dir: Path) -> str:
    """Make the folder of a run that starts now; returns its name, with a number where another has started just now."""
    now = time.strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        name = now if number == 1 else f"{now}-{number}"
        with suppress(FileExistsError):
            (log_dir / name).mkdir(parents=True)
            break
    return name


def checkpoint_to_resume(choice: str | Path | None, checkpoint_dir: Path) -> Path | None:
    """The checkpoint that --resume names; None without the flag, and for 'auto' when there is no last.pt."""
    if choice != "auto":
        return Path(choice) if choice else None
    last = checkpoint_dir / "last.pt"
    return last if last.is_file() else None


def with_output_range(recipe: Recipe, frames: PackedFrames, resumed: Path | None, init: Path | None) -> Recipe:
    """The recipe of a run with the depth that its student can say.

    A longer lens shows what is farther away, so at the reference focal length the depth range reaches from the nearest
    through the longest lens to the farthest through the shortest one, zooms included.

    Args:
        recipe: as the flags make it.
        frames: the training data.
        resumed: the checkpoint that the run goes on from, whose range stays.
        init: the checkpoint that it starts from, whose range stays, since its metres are made of it.

    Raises UserError when the range of `init` is too narrow for the data.
    """
    shortest, longest = recipe.zoom
    nearest = recipe.min_depth * float(frames.focal_factor.min()) / longest
    farthest = recipe.max_depth * float(frames.focal_factor.max()) / shortest
    given = recipe_of(load_checkpoint(path), path).output_range if (path := resumed or init) else None
    if resumed and given:
        return replace(recipe, output_range=given)
    if given:
        if nearest < given[0] or farthest > given[1]:
            raise UserError(
                f"--init {init}: it can say {given[0]:.2f} to {given[1]:.1f} m, and the lenses of this data ask for "
                f"{nearest:.2f} to {farthest:.1f} m: narrow --zoom, or start without --init"
            )
        return replace(recipe, output_range=given)
    default = recipe.output_range
    return replace(recipe, output_range=(min(nearest, default[0]), max(farthest, default[1])))


def load_start(model: Student, recipe: Recipe, weights: str | Path) -> str:
    """Load the weights that training starts from, in place.

    Args:
        model: the student to train.
        recipe: what it was made by.
        weights: a Path is another run's checkpoint, whose whole student is loaded. A string chooses the encoder's
            weights: 'imagenet' (timm's, from the hub's cache or the hub), 'auto' (the same, or random ones if they are
            unavailable), 'none' (random), or the path of a state dict.

    Returns: where the weights are from. Raises UserError when they are unavailable or don't fit.
    """
    return _student(model, recipe, weights) if isinstance(weights, Path) else _encoder(model, recipe, weights)


def _encoder(model: Student, recipe: Recipe, choice: str) -> str:
    if choice == "none":
        return "random"
    try:
        if choice not in ("auto", "imagenet"):
            load_encoder_state(model, recipe.encoder, choice)
            return choice
        load_timm_weights(model, recipe.encoder, _imagenet_file(recipe.encoder))
    except (OSError, RuntimeError, UserError) as error:
        if choice != "auto":
            raise UserError(f"--encoder-weights {choice}: {error}") from None
        print(f"WARNING: the encoder starts from random weights: {error}")
        return "random"
    return "imagenet"


def _imagenet_file(encoder: str) -> str:
    config = timm.get_pretrained_cfg(encoder)
    if config is None or not config.hf_hub_id:
        raise UserError(f"timm publishes no weights of {encoder} on the hub")
    return str(fetch(config.hf_hub_id, "model.safetensors"))


def _student(model: Student, recipe: Recipe, path: Path) -> str:
    student, trained, content = load_student(path)
    if trained.reference_focal != recipe.reference_focal:
        raise UserError(f"--init {path}: its metres are those of another reference focal length")
    if trained.output_range != recipe.output_range:
        raise UserError(f"--init {path}: its depth has another range, {trained.output_range} m")
    try:
        model.load_state_dict(student.state_dict())
    except RuntimeError:
        raise UserError(f"--init {path} is a student of another encoder or width") from None
    return f"student of {path}, whose encoder started from {content.get('notes', {}).get('encoder_start')}"


def refuse_other_recipe(path: Path, trained: Recipe, recipe: Recipe) -> None:
    """Raise UserError when the current recipe differs from the one that a checkpoint was trained with."""
    for name, value in asdict(recipe).items():
        if (before := getattr(trained, name)) != value:
            raise UserError(
                f"{path} was trained with {name} {before}, not {value}: give the same settings, or start anew in "
                "another --checkpoint-dir"
            )


def refuse_other_data(path: Path, trained: dict, notes: dict) -> None:
    """Raise UserError when a checkpoint was trained on other data than the current run's.

    Args:
        path: its checkpoint.
        trained: the checkpoint's notes.
        notes: fingerprint and description of the current data.
    """
    if trained["data_fingerprint"] == notes["data_fingerprint"]:
        return
    by_times = ":" not in trained["data_fingerprint"]  # of revisions before
    if by_times and all(trained[name] == notes[name] for name in ("train_stems", "camera", "teachers")):
        print(f"WARNING: {path} knows its data by the files' times; frames, camera and teachers are the same: going on")
        return
    raise UserError(f"{path} was trained on other data: start anew in another --checkpoint-dir")


def describe(rows: Sequence[Row], recipe: Recipe) -> dict:
    """What later stages want to know of the training data.

    Its camera when all of it has one, its teachers, and its images by name and by content, which tells held-out ones.
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
    """The commit of this code, 'unknown' outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).resolve().parents[1]), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
