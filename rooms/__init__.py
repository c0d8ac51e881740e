"""Procedural rooms, their renderer, and the scripts that write a data folder from them."""
