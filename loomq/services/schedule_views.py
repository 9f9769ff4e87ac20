"""Schedules as a face sees them: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from loomq.redaction import redacted
from loomq.services.stage_views import iso
from loomq.services.sweep import leader_json

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from loomq.schedules.spec import ScheduleEntry
    from loomq.store.nodes import Leader
    from loomq.store.schedules import Run

_MOST_LATE = 5
_ENDS = ("failed", "cancelled", "open", "done")  # in the order in which they tell most
_STATUS = {"open": "running", "done": "completed"}


def _second(when: datetime | None) -> str:
    """Write a moment for people: on this machine's clock, to the second."""
    return when.astimezone().isoformat(sep=" ", timespec="seconds") if when else ""


@dataclass(frozen=True)
class RunView:
    """What became of one due time.

    Args:
        cause: ``due``, ``trigger`` or ``backfill``.
        state: ``queued``, ``firing``, ``fired``, ``skipped`` or ``failed``.
        goals: Those that were handed in.
        outcomes: How many of them are ``running``, ``completed``, ``failed`` and ``cancelled``; those that were pruned
            are not counted.
    """

    due_at: datetime
    cause: str
    state: str
    reason: str | None
    goals: tuple[UUID, ...]
    outcomes: dict[str, int]

    @classmethod
    def of(cls, run: Run, goals: dict[str, int]) -> Self:
        """Describe a run, with how many of its goals are in which state."""
        outcomes = {_STATUS.get(state, state): goals[state] for state in _ENDS if goals.get(state)}
        reason = redacted(run.reason) if run.reason else None
        return cls(run.due_at, run.cause, run.state, reason, tuple(one for one in run.goals if one), outcomes)

    @property
    def result(self) -> str:
        """What came of it, in a word or two."""
        if self.state != "fired" or not self.outcomes:
            return self.state
        if len(self.goals) == 1:
            return next(iter(self.outcomes))
        return ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.items())

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        return {
            "due_at": iso(self.due_at),
            "cause": self.cause,
            "state": self.state,
            "reason": self.reason,
            "goals": [str(goal_id) for goal_id in self.goals],
            "outcomes": self.outcomes,
        }


@dataclass(frozen=True)
class ScheduleView:
    """A schedule: when it is due, what it hands in, and how it goes.

    Args:
        key: ``<file>.<entry>``.
        state: ``on``, ``paused``, ``disabled``, or ``new`` as long as beat has not seen it.
        target: The pipeline, orchestrator or worker.
        next: The next due times, if it fires.
        late: The due time that should have fired by now, if there is one.
        runs: The last ones, newest first.
    """

    key: str
    state: str
    entry: ScheduleEntry
    timezone: str
    target: str
    next: tuple[datetime, ...]
    paused_at: datetime | None
    paused_by: str | None
    late: datetime | None
    runs: tuple[RunView, ...]

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        entry = self.entry
        return {
            "key": self.key,
            "state": self.state,
            "sentence": entry.sentence,
            "cron": entry.meaning.cron,
            "interval_seconds": entry.meaning.seconds,
            "timezone": self.timezone,
            "dispatch_type": entry.dispatch_type,
            "target": self.target,
            "expand_from": entry.expand_from,
            "catch_up": entry.catch_up,
            "overlap": entry.overlap,
            "jitter_seconds": entry.jitter_seconds,
            "next": [iso(at) for at in self.next],
            "paused_at": iso(self.paused_at),
            "paused_by": self.paused_by,
            "late": iso(self.late),
            "runs": [run.to_json() for run in self.runs],
        }


@dataclass(frozen=True)
class BeatView:
    """Who fires the schedules, and how they go.

    Args:
        leader: The beat that fires them, if there is one.
        schedules: All of them.
        stuck: Schedules and due times that were to be handed in long ago.
    """

    leader: Leader | None
    schedules: tuple[ScheduleView, ...]
    stuck: tuple[tuple[str, datetime], ...] = ()

    @property
    def firing(self) -> tuple[ScheduleView, ...]:
        """Those that fire by themselves."""
        return tuple(one for one in self.schedules if one.state in {"on", "new"})

    @property
    def late(self) -> tuple[ScheduleView, ...]:
        """Those that have not fired when they should."""
        return tuple(one for one in self.schedules if one.late is not None)

    @property
    def files_fault(self) -> str | None:
        """Why beat goes on with the files as they were before."""
        return str(self.leader.memory["files"]) if self.leader and self.leader.memory.get("files") else None

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong, a line each."""
        found = []
        count = len(self.firing)
        if self.leader is None and count:
            what = "the schedule" if count == 1 else f"the {count} schedules"
            found.append(f"no beat fires {what}: celery -A loomq beat, or loomq dev")
        if self.files_fault:
            found.append(f"beat goes on with the files as they were before: {self.files_fault}")
        if self.leader is not None or len(self.late) <= _MOST_LATE:
            told_late = [f"{one.key} was due at {_second(one.late)} and has not fired" for one in self.late]
            found += told_late[:_MOST_LATE]
        if len(self.late) > _MOST_LATE:
            found.append(f"{len(self.late)} schedules have not fired when they should")
        found += [f"{key}: the run due at {_second(due_at)} has not been handed in" for key, due_at in self.stuck]
        told = self.leader.memory.get("faults", {}) if self.leader else {}
        found += [f"{key} cannot be served: {fault}" for key, fault in told.items()]
        found += [
            f"{one.key}: the run due at {_second(one.runs[0].due_at)} failed: {one.runs[0].reason}"
            for one in self.schedules
            if one.runs and one.runs[0].state == "failed"
        ]
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        return {
            "leader": leader_json(self.leader),
            "schedules": len(self.schedules),
            "firing": len(self.firing),
            "late": [one.key for one in self.late],
            "faults": list(self.faults),
        }


@dataclass(frozen=True, slots=True)
class Backfill:
    """Due times of the past that were to fire.

    Args:
        due: Those that had not fired.
        passed_over: How many had.
        runs: What became of them.
    """

    key: str
    due: tuple[datetime, ...]
    passed_over: int
    runs: tuple[RunView, ...]

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        return {
            "schema_version": 1,
            "key": self.key,
            "due": [iso(at) for at in self.due],
            "passed_over": self.passed_over,
            "runs": [run.to_json() for run in self.runs],
        }
