"""Two beats, of which one is killed or stopped again and again: each due time has exactly one goal."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from loomq.runs.beat import LEADERSHIP
from loomq.store import nodes
from loomq.testing import wait_until
from tests.chaos.report import tell
from tests.chaos.storm import World
from tests.chaos.supervisor import Member

MOST_TAKEOVER_S = 5.0
_LOOK_S = 0.05
_STOPPED_S = 8.0
_CHOICES = ("kill_leader", "kill_other", "stop_leader")
_SCHEDULE = """\
name: ticks
schedules:
  - name: fast
    dispatch_type: goal
    interval_seconds: {interval}
    goal: {{instruction: tick, pipeline: chain, context: {{n: 0}}}}
"""


@dataclass
class Run:
    """One run.

    Args:
        interval_s: Between two due times.
        every_s: Between two strikes.
    """

    world: World
    ticks: int
    interval_s: float
    every_s: float
    takeovers: list[float] = field(default_factory=list)
    struck: int = 0

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "celery", "-A", "loomq", "beat", "-l", "INFO"]
        self.beats = [Member(name, command, self.world.folder, self.world.environment) for name in ("beat1", "beat2")]
        self._lost_at: tuple[float, Any] | None = None
        self._wake: list[tuple[float, int]] = []

    def run(self) -> dict[str, Any]:
        """Tick to the end and count."""
        file = self.world.folder / "project" / "schedules" / "ticks.yaml"
        file.parent.mkdir()
        file.write_text(_SCHEDULE.format(interval=self.interval_s))
        for beat in self.beats:
            beat.start()
        wait_until(lambda: self._handled() > 0, "the first due time", timeout_s=60)
        next_at = time.monotonic() + self.every_s
        choices = itertools.cycle(_CHOICES)
        until = time.monotonic() + 2 * self.ticks * self.interval_s + 60
        while self._handled() < self.ticks and time.monotonic() < until:
            for beat in self.beats:
                beat.look()
            self._watch()
            self._wake_up()
            if time.monotonic() >= next_at:
                next_at = time.monotonic() + self.every_s
                self._strike(next(choices))
            time.sleep(_LOOK_S)
        wait_until(
            lambda: self._ask("SELECT count(*) FROM schedule_runs WHERE state = 'firing'") == 0, "the last goals"
        )
        return self._count()

    def stop(self) -> None:
        """End the beats."""
        for beat in self.beats:
            beat.stop()

    def _ask(self, query: str) -> Any:
        with self.world.servers.connect() as connection:
            row = connection.execute(query).fetchone()
            return None if row is None else row[0]

    def _handled(self) -> int:
        """Count the due times that are handled."""
        passed = self._ask("SELECT extract(epoch FROM handled_until - anchor) FROM schedules")
        return 0 if passed is None or passed < 0 else int(passed / type(passed)(str(self.interval_s))) + 1

    def _leader(self) -> nodes.Leader | None:
        return nodes.leader(self.world.loom.database, LEADERSHIP)

    def _strike(self, choice: str) -> None:
        leader = self._leader()
        if leader is None or self._wake or not all(beat.pid for beat in self.beats):
            return
        pid = int(str(leader.who).partition("@")[0])
        others = [beat.pid for beat in self.beats if beat.pid != pid]
        self.struck += 1
        if choice == "kill_other":
            os.kill(others[0], signal.SIGKILL)
            return
        stops = choice == "stop_leader"
        os.kill(pid, signal.SIGSTOP if stops else signal.SIGKILL)
        self._lost_at = (time.monotonic(), leader.holder)
        if stops:
            self._wake.append((time.monotonic() + _STOPPED_S, pid))

    def _watch(self) -> None:
        """See whether somebody has taken over."""
        if self._lost_at is None:
            return
        leader = self._leader()
        if leader is not None and leader.holder != self._lost_at[1]:
            self.takeovers.append(time.monotonic() - self._lost_at[0])
            self._lost_at = None

    def _wake_up(self) -> None:
        for at, pid in list(self._wake):
            if time.monotonic() >= at:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                self._wake.remove((at, pid))

    def _count(self) -> dict[str, Any]:
        with self.world.servers.connect() as connection:
            rows = connection.execute(
                "SELECT r.due_at, count(g.id), max(extract(epoch FROM g.created_at - r.due_at))::float"
                " FROM (SELECT s.anchor + n * make_interval(secs => %s) AS due_at FROM schedules s,"
                " generate_series(0, %s - 1) AS n) AS r LEFT JOIN goals g ON g.request_id ="
                " 'schedule ticks.fast, due ' || to_char(r.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS')"
                " || CASE WHEN extract(microsecond FROM r.due_at)::bigint %% 1000000 = 0 THEN ''"
                " ELSE to_char(r.due_at, '.US') END || '+00:00' GROUP BY 1",
                [self.interval_s, self.ticks],
            ).fetchall()
        found = [count for _, count, _ in rows]
        return {
            "run": "schedules",
            "ticks": len(found),
            "goals": sum(found),
            "doubled": sum(max(count - 1, 0) for count in found),
            "missed": sum(count == 0 for count in found),
            "struck": self.struck,
            "takeovers": len(self.takeovers),
            "takeover_max_s": round(max(self.takeovers, default=0.0), 2),
            "latest_s": round(max((late for _, _, late in rows if late is not None), default=0.0), 2),
        }


def two_beats(ticks: int, interval_s: float, every_s: float, *, keep: bool = False) -> dict[str, Any]:
    """Let two beats fire while either is killed or stopped every so often; gives the figures."""
    world = World.make(nodes=0)
    found: dict[str, Any] = {}
    run = Run(world, ticks, interval_s, every_s)
    try:
        found = run.run()
    finally:
        run.stop()
        world.close(keep=keep or not is_sound(found))
    return found


def is_sound(found: dict[str, Any]) -> bool:
    """Say whether each due time had one goal, and a beat that was lost was followed in time."""
    return (
        bool(found)
        and found["goals"] == found["ticks"]
        and found["doubled"] == found["missed"] == 0
        and found["takeovers"] > 0
        and found["takeover_max_s"] <= MOST_TAKEOVER_S
    )


def schedules(ticks: int, interval_s: float, every_s: float, *, keep: bool) -> bool:
    """Print the figures, and say whether they hold."""
    found = two_beats(ticks, interval_s, every_s, keep=keep)
    tell(found)
    return is_sound(found)
