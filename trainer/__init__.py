"""Parts of the training loop: batches, augmentation, checkpoints, distributed training, validation."""
