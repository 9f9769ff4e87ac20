"""Processes that are killed again and again, forked from one that has imported everything.

``sweep`` sweeps for ever. ``submit FILE`` submits goals of every shape until no submission is killed any more, and
writes the keys of all into the file. ``replay`` replays every dead letter, the same one again if that was killed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import shapes

from loomq.ids import uuid7
from loomq.loom import Loom
from loomq.services.submit import submit_goal
from loomq.settings import Settings
from loomq.store import letters
from loomq.store.engine import Database
from loomq.store.letters import LetterFilter
from loomq.store.stages import StageKey


def in_child(work: Callable[[], None]) -> int:
    """Do something in a forked process; gives its exit status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        work()
    except BaseException as error:  # noqa: BLE001  (a child must not go on as its parent)
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)
    os._exit(0)


def sweep(loom: Loom) -> None:
    """Sweep without a pause worth the name."""
    holder = uuid7()

    def work() -> None:
        sweeper = loom.sweeper(holder)
        while os.getppid() != 1:
            sweeper.sweep()
            time.sleep(0.02)

    while in_child(work):
        pass


def submit(loom: Loom, file: Path) -> None:
    """Submit each shape under new keys until a submission comes to its end."""
    keys: dict[str, list[str]] = {}
    for shape in shapes.PARENTS | shapes.RAW:
        keys[shape] = []
        while True:
            key = f"{shape}-{len(keys[shape])}"
            keys[shape].append(key)
            if not in_child(lambda s=shape, k=key: submit_one(loom, s, k)):
                break
    file.write_text(json.dumps(keys))


def replay(loom: Loom) -> None:
    """Replay dead letters until there are none."""
    while keys := in_hand(loom):
        for key in keys:
            in_child(lambda key=key: loom.replayer.replay(key, actor="test"))


def in_hand(loom: Loom) -> list[StageKey]:
    """List the dead letters; on a connection that is closed before anything is forked."""
    database = Database(loom.database.url.render_as_string(hide_password=False), pooled=False)
    return letters.replayable(database, LetterFilter(), 1000)


def submit_one(loom: Loom, shape: str, key: str, given: int = 1) -> object:
    """Submit one goal, or a user's canvas, under a key."""
    if shape in shapes.RAW:
        return shapes.canvas(loom.app, shape, key, given).apply_async()
    return submit_goal(key, pipeline=shape, context={"n": given}, idempotency_key=key, loom=loom)


if __name__ == "__main__":
    home = Loom(Settings.load())
    home.app  # noqa: B018  (read the catalog once, before the forks; nothing is connected by that)
    if sys.argv[1] == "sweep":
        sweep(home)
    elif sys.argv[1] == "replay":
        replay(home)
    else:
        submit(home, Path(sys.argv[2]))
