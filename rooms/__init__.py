"""Rendered rooms, the embedded data: procedural rooms, their renderer, and the scripts that write a data folder."""
