"""Hand goals in while the broker is down: each is accepted at once, and all run when it is back."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from loomq.errors import LoomqError
from loomq.services.submit import submit_goal
from loomq.testing import wait_until
from tests.chaos.report import quantile, tell
from tests.chaos.storm import World

_SHAPE = "diamond"
_P99_MS = 500
_BACK_S = 10.0  # from the broker's return to the first completion


def broker_down(seconds: float, submits: int, *, keep: bool) -> bool:
    """Take the broker away, hand in goals meanwhile, print the figures, and say whether they hold."""
    world = World.make()
    sound = False
    try:
        world.start_nodes()
        figures = _run(world, seconds, submits)
        sound = (
            figures["accepted"] == figures["done"] == submits
            and figures["submit_p99_ms"] <= _P99_MS
            and (figures["first_completion_s"] or _BACK_S + 1) <= _BACK_S
        )
        tell(figures)
    finally:
        world.close(keep=keep or not sound)
    return sound


def _run(world: World, seconds: float, submits: int) -> dict[str, Any]:
    _hand_in(world, 1)  # what a process does once, it does before
    world.servers.redis.kill()
    began = time.monotonic()
    took_ms = [took for at in range(submits) if (took := _in_time(world, began + at * seconds / submits)) is not None]
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    world.servers.redis.start()
    wait_until(lambda: world.servers.redis.is_up, "Redis")
    back = time.monotonic()

    def is_over() -> bool:
        world.supervisor.look()
        return world.open_goals() == 0

    with suppress(AssertionError):  # told by the figures
        wait_until(is_over, "the goals", timeout_s=60 + submits)
    with world.servers.connect() as connection:
        (done,) = connection.execute("SELECT count(*) FROM goals WHERE state = 'done'").fetchone()
        (first,) = connection.execute(
            "SELECT min(at) FROM chaos_log WHERE state = 'done' AND at > %s", [time.time() - (time.monotonic() - back)]
        ).fetchone()
    return {
        "run": "broker-down",
        "down_s": round(back - began, 1),
        "submits": submits,
        "accepted": len(took_ms),
        "done": done - 1,
        "submit_p50_ms": round(quantile(took_ms, 0.5)),
        "submit_p99_ms": round(quantile(took_ms, 0.99)),
        "first_completion_s": None if first is None else round(first - time.time() + time.monotonic() - back, 2),
        "all_done_s": round(time.monotonic() - back, 1),
        "node_starts": sum(node.starts for node in world.supervisor.nodes),
    }


def _in_time(world: World, at: float) -> float | None:
    time.sleep(max(0.0, at - time.monotonic()))
    world.supervisor.look()
    return _hand_in(world, 0)


def _hand_in(world: World, n: int) -> float | None:
    """Hand one goal in and give the milliseconds that it took, or ``None`` if it was refused."""
    began = time.monotonic()
    try:
        submit_goal("go", pipeline=_SHAPE, context={"n": n}, loom=world.loom)
    except LoomqError:
        return None
    return (time.monotonic() - began) * 1000
