"""The manifest, reading and packing of frames, the loaders of data sets, and the table from 894 classes to 6."""
