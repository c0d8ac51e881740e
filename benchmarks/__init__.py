"""Benchmarks of speed, memory and accuracy; each script prints a table."""
