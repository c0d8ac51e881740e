"""Manifests, reading and packing frames, dataset loaders, and the mapping of NYU's 894 classes to 6."""
