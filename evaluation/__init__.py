"""Evaluation: masks of valid pixels, metrics, inference on images of any size, Table IV."""
