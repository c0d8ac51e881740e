"""Train the student on teacher labels.

Reads   a manifest and what it lists (default: manifest.jsonl of $SCRATCH/nyu_teacher_data or ./data/nyu_teacher_data);
        a checkpoint with --resume or --init.
Writes  <checkpoint-dir>/last.pt and best.pt; <log-dir>/<start time>/: config.json, history.csv, curves.png,
        validation.png and TensorBoard events; not_finite.pt, a batch, when training diverges.

Without NYU data at hand it trains on rendered rooms and says so; --require-data makes that an error.
SIGTERM or SIGUSR1 ends it after the step in hand with exit code 75; --resume then goes on as if nothing had happened.
"""

import math
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cli import (
    EXIT_STOPPED,
    ArgumentParser,
    StopSignal,
    UserError,
    non_negative_int,
    positive_float,
    positive_int,
    resolve_device,
    run,
)
from config import CLASS_NAMES, Config
from dataset.files import atomic_path, remove_temporaries, write_json
from dataset.manifest import Row, fingerprint, read_manifest
from dataset.prepare_rooms import prepare_rooms
from models.losses import LossWeights, distillation_loss, hybrid_depth
from models.metrics import ConfusionMatrix, DepthMetrics
from training.augment import augment
from training.checkpoint import MovingAverage, build_student, load_checkpoint, plain_config, save_checkpoint
from training.feed import (
    Batch,
    PackedFrames,
    batches_per_epoch,
    choose_rows,
    ordered_batches,
    target_statistics,
    training_batches,
)
from training.guard import LARGEST_ROW, FiniteGuard
from training.report import report_epoch, validation_panel
from training.start import describe, git_revision, load_start

SCHEDULE_SETTINGS = ("epochs", "batch_size", "lr", "seed", "encoder", "neck_channels", "reference_focal")
AUGMENTATION_SETTINGS = ("zoom_min", "zoom_max")


def parse_arguments():
    parser = ArgumentParser(__doc__)
    defaults = Config()
    parser.add_argument("--manifest", type=Path, help="manifest.jsonl to train on (default: the one of --data-root)")
    parser.add_argument("--data-root", type=Path, help=f"folder of the data folders (default: {defaults.data_root})")
    parser.add_argument("--checkpoint-dir", type=Path, help=f"default: {defaults.checkpoint_dir}")
    parser.add_argument("--log-dir", type=Path, help=f"default: {defaults.log_dir}")
    parser.add_argument("--epochs", type=positive_int, help=f"default: {defaults.epochs}")
    parser.add_argument("--batch-size", type=positive_int, help=f"default: {defaults.batch_size}")
    parser.add_argument("--lr", type=positive_float, help=f"highest learning rate (default: {defaults.lr})")
    parser.add_argument(
        "--zoom",
        type=positive_float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="lenses to be ready for, in focal lengths of the data's: wide where the robot's camera may be another, "
        f"near 1 where it is the data's own (default: {defaults.zoom_min} {defaults.zoom_max})",
    )
    parser.add_argument("--seed", type=non_negative_int, help=f"default: {defaults.seed}")
    parser.add_argument("--num-workers", type=non_negative_int, help=f"threads (default: {defaults.num_workers})")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    parser.add_argument("--data-limit", type=positive_int, help="train and validate on at most so many frames each")
    parser.add_argument("--resume", nargs="?", const="auto", help="a checkpoint, or auto: last.pt if there is one")
    parser.add_argument(
        "--encoder-weights",
        help="imagenet: an error when they can't be had; auto (default): a random start then; none; or a file",
    )
    parser.add_argument(
        "--init", type=Path, help="start from the student of this checkpoint, pretrained on rendered rooms, say"
    )
    parser.add_argument("--require-data", action="store_true", help="fail rather than train on rendered rooms")
    parser.add_argument(
        "--use-corridor-data", action="store_true", default=None, help="train on corridor_teacher_data of the data root"
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    config = Config(**{setting.name: given[setting.name] for setting in fields(Config) if setting.name in given})
    if arguments.zoom:
        config.zoom_min, config.zoom_max = arguments.zoom
        if config.zoom_min > config.zoom_max:
            raise UserError("--zoom LOW HIGH: the first is the smaller one")
    if arguments.init and arguments.encoder_weights:
        raise UserError("--init brings the encoder's weights, too: leave --encoder-weights out")
    device = resolve_device(arguments.device)

    manifest, rooms_notice = find_manifest(arguments, config)
    rows = read_manifest(manifest)
    train_rows, val_rows = (choose_rows(rows, split, arguments.data_limit) for split in ("train", "val"))
    frames, val_frames = pack(train_rows, manifest, config, config.cache_scale), pack(val_rows, manifest, config, 1)
    remove_temporaries(config.checkpoint_dir)  # each as large as a checkpoint
    trainer = Trainer(config, device, frames, val_frames, fingerprint(train_rows + val_rows))
    resumed = trainer.resume(arguments.resume)
    if not resumed:
        baselines = target_statistics(frames, config.confidence_threshold)
        if set(baselines.values()) == {None}:
            raise UserError(f"{manifest}: no training frame has depth or classes to learn from")
        trainer.start(arguments.init or arguments.encoder_weights or "auto", describe(train_rows, config) | baselines)
    print(
        f"training on {len(frames)} frames, validating on {len(val_frames)}, device {device}, encoder start "
        f"{trainer.notes['encoder_start']}, step {trainer.step} of {trainer.total_steps}, log {trainer.run_dir}"
    )
    with StopSignal() as stop:
        for epoch in range(len(trainer.notes["history"]), config.epochs):
            trainer.train_epoch(epoch, stop)
            if stop:
                trainer.save("last.pt")
                print(f"stopped by {stop.received.name} at step {trainer.step}; go on with --resume auto")
                return EXIT_STOPPED
            trainer.finish_epoch(epoch)
    if trainer.notes["best_score"] == -math.inf:
        raise UserError("training has diverged: no epoch's student has a score; take a lower --lr")
    print(f"best score {trainer.notes['best_score']:.4f}: {config.checkpoint_dir / 'best.pt'}")
    if rooms_notice:
        print(rooms_notice)
    return 0


def find_manifest(arguments, config: Config) -> tuple[Path, str | None]:
    """The manifest to train on, and what to tell the user when it is the rendered rooms' for want of data."""
    if arguments.manifest:
        return arguments.manifest, None
    manifest = config.teacher_data_dir / "manifest.jsonl"
    if manifest.is_file():
        return manifest, None
    if arguments.require_data or config.use_corridor_data or arguments.data_root:
        raise UserError(f"there is no {manifest}: run the teachers first (README), or name one with --manifest")
    notice = (
        f"*** NO DATA: there is no {manifest}. This run trains on RENDERED ROOMS with reference labels. ***\n"
        "*** Its figures say that the code runs, nothing about real rooms. ***"
    )
    print(notice)
    return prepare_rooms(config.data_root / "rooms_teacher_data"), notice


def pack(rows: list[Row], manifest: Path, config: Config, scale: int) -> PackedFrames:
    """The rows' packed cache at `scale` times the network's size, kept beside their manifest."""
    size, focal = (config.width * scale, config.height * scale), config.reference_focal * scale
    return PackedFrames(rows, manifest.parent / ".cache", size, focal, config.num_workers)


class Trainer:
    """A model in training. Everything random is drawn from (seed, step), so weights and step are all of its state."""

    def __init__(self, config: Config, device: torch.device, frames: PackedFrames, val_frames: PackedFrames, data: str):
        self.config, self.device, self.frames, self.val_frames = config, device, frames, val_frames
        self.steps_per_epoch = batches_per_epoch(len(frames), config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.weights = LossWeights(config.depth_weight, config.segmentation_weight, config.smoothness_weight)
        torch.manual_seed(config.seed % 2**63)
        # the smallest images of the pyramid are where channels_last pays: both cuDNN and the CPU's kernels prefer it
        self.model = build_student(config).to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.guard = FiniteGuard(self.model, self.optimizer, device)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            config.lr,
            total_steps=self.total_steps + 1,
            pct_start=max(config.warmup_fraction, 2 / (self.total_steps + 1)),  # a warm-up of no step divides by zero
        )
        self.average = MovingAverage(self.model, config.ema_decay)
        self.step = 0
        self.epoch_loss = torch.zeros((), device=device)  # sum over the steps of the epoch in hand
        self.notes = {"data_fingerprint": data, "history": [], "best_score": float("-inf")}

    def start(self, weights: str | Path, description: dict) -> None:
        """Begin a new run: load the weights to start from (see load_start), open a run folder."""
        start = load_start(self.model, self.config, weights)
        self.average = MovingAverage(self.model, self.config.ema_decay)
        name = time.strftime("%Y%m%d-%H%M%S")
        revision = {"git_revision": git_revision()}
        self.notes |= {"encoder_start": start, "run": name} | revision | description
        data = {"data_fingerprint": self.notes["data_fingerprint"]}
        write_json(self.run_dir / "config.json", plain_config(self.config) | revision | data)

    def resume(self, choice: str | None) -> bool:
        """Take up the run of a checkpoint; False when there is none to take up."""
        path = self.config.checkpoint_dir / "last.pt" if choice == "auto" else choice
        if choice is None or (choice == "auto" and not path.is_file()):
            return False
        content = load_checkpoint(path)
        for name in SCHEDULE_SETTINGS + AUGMENTATION_SETTINGS:
            if content["config"].get(name) != getattr(self.config, name):
                raise UserError(
                    f"{path} was trained with {name} {content['config'].get(name)}, not {getattr(self.config, name)}: "
                    "give the same settings, or start anew in another --checkpoint-dir"
                )
        try:
            if content["notes"]["data_fingerprint"] != self.notes["data_fingerprint"]:
                raise UserError(f"{path} was trained on other data: start anew in another --checkpoint-dir")
            self.model.load_state_dict(content["model"])
            self.average.model.load_state_dict(content["ema"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load_state_dict(content["schedule"])
            self.guard.load_state_dict(content["guard"])
            self.epoch_loss.copy_(content["epoch_loss"])
            self.step, self.notes = content["step"], content["notes"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"{path} can't be resumed, it is of another model: {str(error)[:200]}") from None
        return True

    @property
    def run_dir(self) -> Path:
        return self.config.log_dir / self.notes["run"]

    def train_epoch(self, epoch: int, stop: StopSignal) -> None:
        """Train to the end of an epoch, from the step in it that the run has come to, or until a stop signal."""
        self.model.train()
        done = self.step - epoch * self.steps_per_epoch
        batches = training_batches(
            self.frames, self.config.batch_size, self.config.seed, epoch, skip=done, device=self.device
        )
        start, images = time.perf_counter(), 0
        bar = tqdm(batches, initial=done, total=self.steps_per_epoch, desc=f"epoch {epoch + 1}", disable=None)
        for batch in bar:
            self.epoch_loss += self.train_step(batch)
            images += len(batch.rgb)
            if stop or self.guard.gave_up:
                break
        if self.guard.gave_up:
            raise self.divergence()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the time of an epoch is the device's
        self.images_per_second = images / (time.perf_counter() - start)

    def train_step(self, batch: Batch) -> torch.Tensor:
        """One optimizer step; returns the total loss without waiting for the device."""
        config = self.config
        size = (config.height, config.width)
        batch = augment(batch, (config.zoom_min, config.zoom_max), size, config.seed, self.step)
        target = hybrid_depth(batch.depth, batch.confidence, batch.da3_depth, config.confidence_threshold)
        target = target * batch.focal_factor.view(-1, 1, 1, 1)
        self.guard.begin_step()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            depth, seg = self.model(batch.rgb.contiguous(memory_format=torch.channels_last))
        classes = (batch.sam2_seg, batch.seg_confidence)
        loss = distillation_loss(depth, seg, batch.rgb, target, *classes, self.weights)["total"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        loss = self.guard.judge(loss.detach(), norm, self.step)
        self.optimizer.step()
        self.schedule.step()
        self.average.update(self.model, self.step)
        self.step += 1
        return loss

    def divergence(self) -> UserError:
        """What to say when the loss was not finite again and again; writes the batch of the last such step."""
        step = self.guard.last_skipped
        epoch, skip = divmod(step, self.steps_per_epoch)
        config, size = self.config, (self.config.height, self.config.width)
        batch = next(training_batches(self.frames, config.batch_size, config.seed, epoch, skip, torch.device("cpu")))
        batch = augment(batch, (config.zoom_min, config.zoom_max), size, config.seed, step)
        path = self.run_dir / "not_finite.pt"
        with atomic_path(path) as temporary:
            torch.save(vars(batch), temporary)
        return UserError(
            f"training has diverged, the loss was not finite in {self.guard.longest} steps in a row; the batch of the "
            f"last one, step {step}, is in {path}: take a lower --lr"
        )

    def finish_epoch(self, epoch: int) -> None:
        """Validate, tell, log, and save."""
        skipped = self.guard.skipped - sum(entry["skipped_steps"] for entry in self.notes["history"])
        if self.guard.longest >= LARGEST_ROW:
            raise self.divergence()
        metrics, panels = self.validate()
        entry = {
            "epoch": epoch + 1,
            "step": self.step,
            "loss": self.epoch_loss.item() / counted if (counted := self.steps_per_epoch - skipped) else math.nan,
            "skipped_steps": skipped,
            "images_per_second": self.images_per_second,
        } | metrics
        self.epoch_loss.zero_()
        self.notes["history"].append(entry)
        print("  ".join(f"{name} {value:.4g}" for name, value in entry.items() if value == value))  # without NaN
        report_epoch(self.run_dir, self.notes["history"], panels)
        if metrics["score"] > self.notes["best_score"] or not self.val_frames:
            self.notes["best_score"] = metrics["score"]
            self.save("best.pt")
        self.save("last.pt")

    @torch.inference_mode()
    def validate(self) -> tuple[dict[str, float], list[np.ndarray]]:
        """Metrics of the moving average on the validation frames at the network's size, and pictures of some.

        The score that best.pt is chosen by: delta1 + mIoU (delta1 alone without classes); NaN without frames.
        """
        depth_metrics = DepthMetrics(self.config.min_depth, self.config.max_depth)
        confusion = ConfusionMatrix(len(CLASS_NAMES))
        panels = []
        for batch in ordered_batches(self.val_frames, self.config.batch_size, self.device):
            depth, seg = self.average.model(batch.rgb)
            depth = depth / batch.focal_factor.view(-1, 1, 1, 1)
            reference = torch.where(batch.confidence >= self.config.confidence_threshold, batch.depth, 0)
            classes = seg.argmax(dim=1)
            known = (batch.labels != 255).flatten(1).any(dim=1).view(-1, 1, 1)
            class_reference = torch.where(known, batch.labels, batch.sam2_seg)
            for predicted, truth in zip(depth[:, 0], reference[:, 0], strict=True):
                depth_metrics.update(predicted, truth)
            confusion.update(classes, class_reference)
            if len(panels) < 4:
                panels.append(validation_panel(batch, depth, reference, classes, class_reference))
        metrics = {name: depth_metrics.compute()[name] for name in ("rmse", "abs_rel", "delta1")}
        metrics["miou"] = confusion.compute()["miou"]
        metrics["score"] = metrics["delta1"] + (metrics["miou"] if metrics["miou"] == metrics["miou"] else 0.0)
        return metrics, panels

    def save(self, name: str) -> None:
        """Write a checkpoint into the checkpoint folder."""
        save_checkpoint(
            self.config.checkpoint_dir / name,
            {
                "model": self.model.state_dict(),
                "ema": self.average.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "guard": self.guard.state_dict(),
                "step": self.step,
                "epoch_loss": self.epoch_loss,
                "config": plain_config(self.config),
                "class_names": list(CLASS_NAMES),
                "reference_focal": self.config.reference_focal,
                "notes": self.notes,
            },
        )


if __name__ == "__main__":
    run(main)
