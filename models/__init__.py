"""The student and what it learns from: the network and its losses."""
