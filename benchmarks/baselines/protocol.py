"""What a driver in a venv of its own does: read a line with a kind and runs, hand them in, and say so."""

from __future__ import annotations

import json
import sys


def serve(hand_in) -> None:
    """Answer each line of stdin once its runs are handed in."""
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        hand_in(asked["kind"], asked["runs"])
        print("done", flush=True)
