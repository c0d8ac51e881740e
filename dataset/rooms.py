"""Runs rooms/render_rooms.py, where this script has moved; to be removed in the next release."""

import os
import sys

print("dataset/rooms.py is now rooms/render_rooms.py", file=sys.stderr)
os.execv(sys.executable, [sys.executable, f"{os.path.dirname(__file__)}/../rooms/render_rooms.py", *sys.argv[1:]])
