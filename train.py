"""Train the student on teacher labels.

Reads   a manifest and its files (default: manifest.jsonl of $SCRATCH/nyu_teacher_data or ./data/nyu_teacher_data);
        a checkpoint with --resume or --init.
Writes  <checkpoint-dir>/last.pt and best.pt; <log-dir>/<start time>/: config.json, history.csv, curves.png,
        validation.png and TensorBoard events; not_finite.pt, the last batch, if training diverges.

Without NYU data it trains on rendered rooms and says so; --require-data makes missing data an error. SIGTERM, SIGHUP,
SIGUSR1 and Ctrl-C end the run after the current step with exit code 75; --resume continues it as if never stopped.
"""

import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli import EXIT_STOPPED, StopSignal, UserError, check_compiler, run

import torch
from tqdm import tqdm

from config import Recipe, Runtime
from dataset.files import atomic_path, write_json
from dataset.identity import fingerprint
from models.losses import LossWeights, class_weights, distillation_loss, loss_denominators
from trainer.augment import N_SIZES, augment
from trainer.checkpoint import (
    MovingAverage,
    build_student,
    freeze_batch_norm,
    load_checkpoint,
    recipe_from_checkpoint,
    save_checkpoint,
)
from trainer.compilation import compile_for_sizes
from trainer.distributed import Processes, process_group
from trainer.feed import (
    Batch,
    PackedFrames,
    batches_per_epoch,
    depth_target,
    target_statistics,
    training_batches,
)
from trainer.guard import MAX_CONSECUTIVE_SKIPS, FiniteGuard
from trainer.memory import keep_freed_memory
from trainer.mixture import MixedFrames
from trainer.options import parse_arguments
from trainer.report import log_epoch
from trainer.start import (
    check_same_data,
    check_same_recipe,
    create_run_dir,
    describe_data,
    find_checkpoint,
    find_manifests,
    git_revision,
    load_initial_weights,
    lock_checkpoint_dir,
    open_data,
    with_output_range,
)
from trainer.validation import best_score, validate_sets


def main() -> int:
    """Run the script; returns the exit code."""
    arguments, recipe, runtime = parse_arguments(__doc__)
    with process_group(runtime.device) as (processes, device), lock_checkpoint_dir(runtime.checkpoint_dir, processes):
        return train(arguments, recipe, runtime, processes, device)


def train(arguments: Namespace, recipe: Recipe, runtime: Runtime, processes: Processes, device: torch.device) -> int:
    """Train as one rank of a run; returns the exit code."""
    if device.type == "cpu":
        keep_freed_memory()
    if runtime.compile:
        check_compiler(device)
    with processes.main_process_first():
        required = arguments.require_data or bool(arguments.data_root)
        manifests, rooms_notice = find_manifests(arguments.manifest, runtime, required)
        frames, val_sets = open_data(manifests, recipe, runtime, arguments.data_limit)
    checkpoint = find_checkpoint(arguments.resume, runtime.checkpoint_dir)
    recipe = with_output_range(recipe, frames, checkpoint, arguments.init)
    val_rows = [row for val_frames in val_sets.values() for row in val_frames.rows]
    data_fingerprint = fingerprint([*frames.rows, *val_rows])
    if len(manifests) > 1:
        data_fingerprint += "|" + ":".join(f"{manifest.weight:g}" for manifest in manifests)
    trainer = Trainer(recipe, runtime, device, frames, val_sets, data_fingerprint, processes)
    description = describe_data(frames.rows, recipe)
    if checkpoint:
        trainer.resume(checkpoint, description)
    else:
        statistics = trainer.target_statistics
        if statistics["mean_depth"] is None and statistics["majority_class"] is None:
            paths = ", ".join(str(manifest.path) for manifest in manifests)
            raise UserError(f"{paths}: no training frame has depth or classes to learn from")
        trainer.start(arguments.init or arguments.encoder_weights or "auto", description | statistics)
    if runtime.compile:
        compile_for_sizes(trainer.model, N_SIZES)
    print_main: Callable[[str], None] = print if processes.is_main else lambda text: None
    print_main(
        f"training on {len(frames)} frames, validating on {len(val_rows)}, device {device}, {processes.world_size} "
        f"process(es), encoder start {trainer.metadata['encoder_start']}, step {trainer.step} of "
        f"{trainer.total_steps}, log {trainer.run_dir}"
    )
    with StopSignal() as stop:
        for epoch in range(len(trainer.metadata["history"]), recipe.epochs):
            if trainer.train_epoch(epoch, stop):
                trainer.save("last.pt")
                print_main(f"stopped by a signal at step {trainer.step}; continue with --resume auto")
                return EXIT_STOPPED
            trainer.finish_epoch(epoch)
    if val_rows and trainer.metadata["best_score"] == -math.inf:
        raise UserError("training has diverged: no epoch has a finite validation score; use a lower --lr")
    chosen = "last epoch (no validation frames)"
    if val_rows:
        chosen = f"best score {trainer.metadata['best_score']:.4f}"
    print_main(f"{chosen}: {runtime.checkpoint_dir / 'best.pt'}")
    if rooms_notice:
        print_main(rooms_notice)
    return 0


class Trainer:
    """The training state and its steps. Random numbers depend on (seed, step) only: no generator state is saved."""

    def __init__(
        self,
        recipe: Recipe,
        runtime: Runtime,
        device: torch.device,
        frames: PackedFrames | MixedFrames,
        val_sets: dict[str, PackedFrames],
        data_fingerprint: str,
        processes: Processes | None = None,
    ):
        self.recipe, self.runtime, self.device = recipe, runtime, device
        self.frames, self.val_sets = frames, val_sets
        self.processes = processes or Processes()
        if min(recipe.batch_size, frames.epoch_length) % self.processes.world_size:
            raise UserError(
                f"--batch-size {recipe.batch_size} with {frames.epoch_length} frames can't be split evenly over "
                f"{self.processes.world_size} processes"
            )
        self.steps_per_epoch = batches_per_epoch(frames.epoch_length, recipe.batch_size)
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.freeze_bn_step = (1 - recipe.freeze_bn_fraction) * self.total_steps  # batch norm is frozen from here on
        self.loss_weights = LossWeights(
            recipe.depth_weight, recipe.segmentation_weight, recipe.dice_weight, recipe.smoothness_weight
        )
        self.target_statistics = target_statistics(frames, recipe)
        class_frequencies = torch.tensor(self.target_statistics["class_shares"])
        self.class_weights = class_weights(class_frequencies, recipe.class_balance).to(device)
        torch.manual_seed(recipe.seed % 2**63)
        # cuDNN and the CPU's kernels prefer channels_last
        self.model = build_student(recipe).to(device).to(memory_format=torch.channels_last)
        if not frames.has("sam2_seg"):
            self.loss_weights.segmentation = self.loss_weights.dice = 0.0
        # a decoder without a loss is frozen at its initial weights
        self.model.depth_decoder.requires_grad_(bool(self.loss_weights.depth or self.loss_weights.smoothness))
        self.model.seg_decoder.requires_grad_(bool(self.loss_weights.segmentation or self.loss_weights.dice))
        self.ddp_model = self.processes.data_parallel(self.model, device)
        encoder_weights = list(self.model.encoder.parameters())
        other_weights = [weight for name, weight in self.model.named_parameters() if not name.startswith("encoder.")]
        groups = [{"params": encoder_weights}, {"params": other_weights}]  # start() changes the encoder's learning rate
        self.optimizer = torch.optim.AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        self.guard = FiniteGuard(self.model, self.optimizer, device)
        self.lr_schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            recipe.lr,
            total_steps=self.total_steps + 1,
            pct_start=max(recipe.warmup_fraction, 2 / (self.total_steps + 1)),  # a warm-up of 0 steps divides by zero
        )
        self.ema = MovingAverage(self.model, recipe.ema_decay)
        self.step = 0
        self.epoch_loss = torch.zeros((), device=device)  # sum over the steps of the current epoch
        self.displayed_loss = torch.zeros((), pin_memory=device.type == "cuda")  # on the host, for the progress bar
        # stored as 'notes' in the checkpoint
        self.metadata: dict[str, Any] = {"data_fingerprint": data_fingerprint, "history": [], "best_score": -math.inf}

    def start(self, weights: str | Path, description: dict) -> None:
        """Start a new run: load the initial weights and create the run folder.

        Args:
            weights: see load_initial_weights().
            description: description of the training data, from describe_data(), and its target statistics.
        """
        origin = load_initial_weights(self.model, self.recipe, weights)
        self.processes.broadcast_weights(self.model)  # some processes may not have reached the hub
        self.ema = MovingAverage(self.model, self.recipe.ema_decay)
        revision = {"git_revision": git_revision(), "processes": self.processes.world_size}
        run = create_run_dir(self.runtime.log_dir) if self.processes.is_main else None
        self.metadata |= {"encoder_start": origin, "run": run} | revision | description
        self.metadata = self.processes.broadcast_from_main(self.metadata)
        if self.metadata["encoder_start"] != "random" and not isinstance(weights, Path):
            # a high learning rate would destroy the pretrained encoder
            for rate in ("lr", "initial_lr", "max_lr", "min_lr"):
                self.optimizer.param_groups[0][rate] *= self.recipe.pretrained_encoder_lr_factor
        if self.processes.is_main:
            runtime_settings = {name: str(value) for name, value in asdict(self.runtime).items()}
            fingerprint_entry = {"data_fingerprint": self.metadata["data_fingerprint"]}
            config = asdict(self.recipe) | runtime_settings | revision | fingerprint_entry
            write_json(self.run_dir / "config.json", config)

    def resume(self, path: Path, description: dict) -> None:
        """Resume the run of a checkpoint; raises UserError if its recipe, data or model differ.

        Args:
            path: the checkpoint.
            description: description of the training data, from describe_data().
        """
        content = load_checkpoint(path)
        if "optimizer" not in content:
            raise UserError(f"{path} holds a student alone, which can't be resumed: start from it with --init")
        check_same_recipe(path, recipe_from_checkpoint(content, path), self.recipe)
        try:
            check_same_data(path, content["notes"], self.metadata | description)
            self.model.load_state_dict(content["model"])
            self.ema.model.load_state_dict(content["ema"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.lr_schedule.load_state_dict(content["schedule"])
            self.guard.load_state_dict(content["guard"])
            self.epoch_loss.copy_(content["epoch_loss"])
            self.step, self.metadata = content["step"], content["notes"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"{path} can't be resumed because it holds a different model: {str(error)[:200]}") from None

    @property
    def run_dir(self) -> Path:
        """The run's folder below --log-dir."""
        return self.runtime.log_dir / self.metadata["run"]

    def train_epoch(self, epoch: int, stop: StopSignal) -> bool:
        """Train the remaining steps of an epoch; returns whether a signal stopped it."""
        self.model.train()
        steps_done = self.step - epoch * self.steps_per_epoch
        start, images = time.perf_counter(), 0
        stopped = self.processes.any_rank(bool(stop))[0]
        with self.progress_bar(epoch, steps_done) as bar:
            for batch in self.batches(epoch, steps_done, self.device):
                if self.step >= self.freeze_bn_step:
                    freeze_batch_norm(self.model)
                loss = self.train_step(batch)
                self.epoch_loss += loss
                self.displayed_loss.copy_(loss, non_blocking=True)
                bar.set_postfix(self.progress_values(), refresh=False)
                bar.update(len(batch) * self.processes.world_size)
                images += len(batch) * self.processes.world_size
                stopped, diverged = self.processes.any_rank(bool(stop), self.guard.diverged)
                if diverged:
                    raise self.divergence_error()
                if stopped:
                    break
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # include the device's work in the time
        self.images_per_second = images / (time.perf_counter() - start)
        return stopped

    def progress_bar(self, epoch: int, steps_done: int) -> tqdm:
        """Progress bar of an epoch, in images, with `steps_done` steps already finished."""
        batch_size = min(self.recipe.batch_size, self.frames.epoch_length)
        disable = None if self.processes.is_main else True  # None: no bar if stderr is not a terminal
        total, initial = self.steps_per_epoch * batch_size, steps_done * batch_size
        return tqdm(total=total, initial=initial, unit=" images", desc=f"epoch {epoch + 1}", disable=disable)

    def progress_values(self) -> dict[str, str]:
        """Values beside the progress bar: the latest loss copied from the device, and the last validation metrics."""
        values = {"loss": float(self.displayed_loss)}
        for entry in self.metadata["history"][-1:]:
            values |= {"RMSE": entry["rmse"], "mIoU": entry["miou"]}
        return {name: f"{value:.3f}" for name, value in values.items() if not math.isnan(value)}

    def batches(self, epoch: int, skip: int, device: torch.device) -> Iterator[Batch]:
        """This rank's slice of each batch of an epoch, without the first `skip` batches."""
        batch_size, seed = self.recipe.batch_size, self.recipe.seed
        rank, world_size = self.processes.rank, self.processes.world_size
        return training_batches(self.frames, batch_size, seed, epoch, skip, device, rank, world_size)

    def augment_batch(self, batch: Batch, step: int) -> Batch:
        """The augmented batch of a step."""
        recipe, processes = self.recipe, self.processes
        return augment(
            batch,
            recipe.zoom,
            (recipe.height, recipe.width),
            recipe.seed,
            step,
            recipe.texture,
            recipe.camera_jitter,
            processes.rank,
            processes.world_size,
        )

    def train_step(self, batch: Batch) -> torch.Tensor:
        """Run one optimizer step; returns the total loss without waiting for the device."""
        micro_batches = self.augment_batch(batch, self.step).split(self.recipe.accumulation_steps)
        all_targets = [self.targets(micro_batch) for micro_batch in micro_batches]
        denominators = torch.stack([loss_denominators(*targets) for targets in all_targets])
        term_scales = denominators / self.processes.all_reduce_mean(denominators.sum(dim=0)).clamp(min=1)
        self.guard.begin_step()
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        parts = zip(micro_batches, all_targets, term_scales, strict=True)
        for number, (micro_batch, targets, scales) in enumerate(parts, start=1):
            with self.processes.gradient_sync(self.ddp_model, enabled=number == len(micro_batches)):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                    depth, seg = self.ddp_model(micro_batch.rgb.contiguous(memory_format=torch.channels_last))
                terms = distillation_loss(depth, seg, micro_batch.rgb, *targets, self.loss_weights, scales)
                micro_loss = terms["total"]
                micro_loss.backward()
            loss += micro_loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)
        loss = self.guard.skip_if_not_finite(self.processes.all_reduce_mean(loss), norm, self.step)
        self.optimizer.step()
        self.lr_schedule.step()
        self.processes.average_running_statistics(self.guard.running_statistics)
        self.ema.update(self.step)
        self.step += 1
        return loss

    def targets(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Targets of a batch: depth at the reference focal length, classes, and the weight of each pixel's class.

        Shapes and units are those of the arguments of distillation_loss().
        """
        depth = depth_target(batch, self.recipe) * batch.focal_factor.view(-1, 1, 1, 1)
        seg_weight = batch.seg_confidence * self.class_weights.take(batch.sam2_seg.long())[:, None]
        return depth, batch.sam2_seg, seg_weight

    def divergence_error(self) -> UserError:
        """Save this rank's slice of the last skipped batch; returns the error to raise."""
        step = self.guard.last_skipped_step
        epoch, steps_before = divmod(step, self.steps_per_epoch)
        batch = next(self.batches(epoch, steps_before, torch.device("cpu")))
        path = self.run_dir / f"not_finite{self.processes.rank or ''}.pt"
        with atomic_path(path) as temporary:
            torch.save(vars(self.augment_batch(batch, step)), temporary)
        return UserError(
            f"training has diverged: the loss was not finite in {self.guard.most_consecutive_skips} steps in a row; "
            f"the batch of step {step} is in {path}: use a lower --lr"
        )

    def finish_epoch(self, epoch: int) -> None:
        """Validate; print and log the metrics; save best.pt, if this epoch is the best, and last.pt."""
        skipped = self.guard.skipped - sum(entry["skipped_steps"] for entry in self.metadata["history"])
        finite_steps = self.steps_per_epoch - skipped
        if self.guard.most_consecutive_skips >= MAX_CONSECUTIVE_SKIPS:
            raise self.divergence_error()
        metrics, panels = validate_sets(self.ema.model, self.val_sets, self.recipe, self.device, self.processes)
        entry = {
            "epoch": epoch + 1,
            "step": self.step,
            "loss": self.epoch_loss.item() / finite_steps if finite_steps else math.nan,
            "skipped_steps": skipped,
            "ema_decay": self.ema.decay_at(self.step - 1),
            "images_per_second": self.images_per_second,
        } | metrics
        self.epoch_loss.zero_()
        self.metadata["history"].append(entry)
        if self.processes.is_main:
            print("  ".join(f"{name} {value:.4g}" for name, value in entry.items() if not math.isnan(value)))
            log_epoch(self.run_dir, self.metadata["history"], panels)
        self.metadata["best_score"] = best_score(self.metadata["history"], self.freeze_bn_step)
        if metrics["score"] == self.metadata["best_score"] or not any(map(len, self.val_sets.values())):
            self.save("best.pt")
        self.save("last.pt")

    def save(self, name: str) -> None:
        """Write a checkpoint. The other processes wait: if one exited early, the launcher could kill the writer."""
        with self.processes.main_process_first():
            if self.processes.is_main:
                self.write_checkpoint(name)

    def write_checkpoint(self, name: str) -> None:
        """Write a checkpoint, on the main process."""
        save_checkpoint(
            self.runtime.checkpoint_dir / name,
            self.recipe,
            {
                "model": self.model.state_dict(),
                "ema": self.ema.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.lr_schedule.state_dict(),
                "guard": self.guard.state_dict(),
                "step": self.step,
                "epoch_loss": self.epoch_loss,
                "notes": self.metadata,
            },
        )


if __name__ == "__main__":
    run(main)
