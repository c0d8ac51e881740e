"""The parts of the training loop: feed, augmentation, exact resume, processes, validation."""
