"""Moved to rooms/render_rooms.py, which this runs; this name goes with the next release."""

import os
import sys

print("dataset/rooms.py is now rooms/render_rooms.py", file=sys.stderr)
os.execv(sys.executable, [sys.executable, f"{os.path.dirname(__file__)}/../rooms/render_rooms.py", *sys.argv[1:]])
