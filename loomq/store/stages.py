"""The life of a stage's row: claim, complete, fail, release, take back, extend, publish.

Each call is one statement and one transaction; the rules are in the migrations' SQL. A call whose connection broke
may be made again with the same token: a claim and a completion are answered as the first time, a failure or a release
as ``fenced``, which changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from loomq.store.engine import Database


@dataclass(frozen=True, slots=True)
class StageKey:
    """Which stage: its goal, its name, and its item of a ``for_each`` (-1 is the stage itself)."""

    goal_id: UUID
    name: str
    item: int = -1

    def parameters(self) -> dict[str, Any]:
        """Give the key as SQL parameters."""
        return {"goal": self.goal_id, "name": self.name, "item": self.item}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a claim is made from: the node, the process in it, and the message in hand."""

    node: UUID
    pid: int
    message_id: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A stage in hand, with what it needs to run.

    Args:
        worker: Who runs it, which is a fallback's if the first choice has failed.
        payload: An input that somebody has put in place of the mapped one, or ``None``.
        element: What an item of a ``for_each`` stands for.
        parent: The stage that the goal is the work of.
        rates: What somebody has set by hand, by the limit's name; it wins over the files.
    """

    key: StageKey
    token: UUID
    snapshot: str
    instruction: str
    context: dict[str, Any]
    canvas: dict[str, Any] | None
    task_id: str | None
    priority: int
    attempt: int
    deliveries: int
    timeout_s: float
    max_retries: int
    inputs: dict[str, dict[str, Any]]
    worker: str
    tier: str
    payload: dict[str, Any] | None
    element: Any
    parent: StageKey | None
    rates: dict[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the end of a stage, or of an attempt at it, led to.

    Args:
        verdict: ``accepted``, ``repeated`` (the same call had been committed) or ``fenced`` (the stage was taken back);
            of a failure ``retried``, ``fallback``, ``continued``, ``ended`` or ``fenced``.
        published: Stages that became ready and that the caller must now publish, or that its message carries.
        held: Stages that became ready and wait in the database for room on their queue.
        bulk: Those of ``published`` that stand behind another one of the goal on the same queue.
        backlog: Whether more work waits for the same route as this stage's.
        chord_full: Whether this was the last part of a user's chord.
    """

    verdict: str
    published: tuple[str, ...]
    held: tuple[str, ...]
    goal_ended: bool
    backlog: bool = False
    chord_full: bool = False
    bulk: frozenset[str] = frozenset()

    @classmethod
    def of(cls, row: Any) -> Outcome:
        """Read the row that a function of the store answers with."""
        verdict, ready, goal_ended, *rest = row
        backlog, chord_full = rest or (False, False)
        published = tuple(child["name"] for child in ready if child["state"] == "published")
        held = tuple(child["name"] for child in ready if child["state"] == "ready")
        bulk = frozenset(child["name"] for child in ready if child.get("bulk"))
        return cls(verdict, published, held, goal_ended, backlog, chord_full, bulk)


@dataclass(frozen=True, slots=True)
class Part:
    """A stage's place in a user's chord."""

    group_id: str
    position: int


@dataclass(frozen=True, slots=True)
class Held:
    """A claimed stage and the process that holds it.

    Args:
        is_wanted: Whether its goal is still open, and for an item whether its stage is.
    """

    pid: int
    token: UUID
    key: StageKey
    is_wanted: bool


def claim(
    database: Database, key: StageKey, token: UUID, place: Place, lease_s: float, limits: str | None = None
) -> Claim | None:
    """Take a stage that is due; ``None`` if it is not, or no longer, there to take, or no slot is free for it.

    Args:
        limits: The limits on concurrency that it must keep, as ``Limits.slots`` writes them.
    """
    rows = database.call(
        "SELECT * FROM loomq_claim_5("
        "%(goal)s, %(name)s, %(item)s, %(token)s, %(node)s, %(pid)s, %(message)s, %(lease)s, %(limits)s)",
        {
            **key.parameters(),
            "token": token,
            "node": place.node,
            "pid": place.pid,
            "message": place.message_id,
            "lease": lease_s,
            "limits": limits,
        },
    )
    if not rows:
        return None
    *found, goal_id, name, item, rates = rows[0]
    parent = StageKey(goal_id, name, item) if goal_id else None
    return Claim(*(key, token, *found, parent, rates))


def complete(
    database: Database,
    key: StageKey,
    token: UUID,
    *,
    output: str,
    model_used: str | None = None,
    token_usage: dict[str, int] | None = None,
    processing_time_ms: int = 0,
    room: Mapping[str, int] | None = None,
    carried: Sequence[str] = (),
    part: Part | None = None,
    notes: dict[str, Any] | None = None,
    updates: str | None = None,
) -> Outcome:
    """Store a result and count down what waited for it.

    Args:
        output: The result as JSON text.
        notes: What is to be told of it besides.
        updates: The changes of silos that come with it, as JSON: ``[{folder, silo, asked, reason}]``; one with a reason
            is refused already.
        room: How many messages the queue of each route (``worker.tier``) still takes; so many ready stages are the
            caller's to publish.
        carried: Stages that the message in hand publishes by itself.
        part: The stage's place in a user's chord, if it is in one.
    """
    rows = database.call(
        "SELECT * FROM loomq_complete_3(%(goal)s, %(name)s, %(item)s, %(token)s, 'done', %(output)s, %(model)s,"
        " %(tokens)s, %(ms)s, NULL, %(room)s, %(carried)s, %(chord)s, %(position)s, %(notes)s, %(updates)s)",
        {
            **key.parameters(),
            "token": token,
            "output": output,
            "model": model_used,
            "tokens": json.dumps(token_usage) if token_usage else None,
            "ms": processing_time_ms,
            "room": json.dumps(dict(room or {})),
            "carried": list(carried),
            "chord": part.group_id if part else None,
            "position": part.position if part else None,
            "notes": json.dumps(notes) if notes else None,
            "updates": updates,
        },
    )
    return Outcome.of(rows[0])


def fail(
    database: Database,
    key: StageKey,
    token: UUID,
    *,
    error: dict[str, Any],
    retryable: bool,
    delay_s: float = 0.0,
) -> Outcome:
    """Record a failure: another attempt, the stage's fallback, or the goal's way with failures."""
    rows = database.call(
        "SELECT * FROM loomq_fail_2(%(goal)s, %(name)s, %(item)s, %(token)s, %(error)s, %(retryable)s, %(delay)s,"
        " false)",
        {**key.parameters(), "token": token, "error": json.dumps(error), "retryable": retryable, "delay": delay_s},
    )
    return Outcome.of(rows[0])


def release(database: Database, key: StageKey, token: UUID, reason: str) -> bool:
    """Hand a claimed stage back uncounted; False if it was no longer this token's."""
    rows = database.call(
        "SELECT loomq_release(%(goal)s, %(name)s, %(item)s, %(token)s, %(reason)s)",
        {**key.parameters(), "token": token, "reason": reason},
    )
    return bool(rows[0][0])


def extend(database: Database, node: UUID, pids: Sequence[int], lease_s: float, grace_s: float) -> int:
    """Extend the leases of a node's live processes, but no stage's beyond its deadline and grace.

    Returns:
        How many leases were extended.
    """
    rows = database.call(
        "UPDATE stages SET lease_until = clock_timestamp() + make_interval(secs => %(lease)s)"
        " WHERE state = 'claimed' AND node = %(node)s AND pid = ANY (%(pids)s)"
        " AND clock_timestamp() < started_at + make_interval(secs => timeout_s + %(grace)s) RETURNING 1",
        {"node": node, "pids": list(pids), "lease": lease_s, "grace": grace_s},
    )
    return len(rows)


def held_by(database: Database, node: UUID) -> list[Held]:
    """List a node's claimed stages."""
    rows = database.call(
        "SELECT s.pid, s.token, s.goal_id, s.name, s.item, g.state = 'open' AND (s.item < 0 OR EXISTS ("
        "SELECT 1 FROM stages w WHERE w.goal_id = s.goal_id AND w.name = s.name AND w.item = -1"
        " AND w.state IN ('ready', 'published', 'claimed')))"
        " FROM stages s JOIN goals g ON g.id = s.goal_id WHERE s.state = 'claimed' AND s.node = %(node)s",
        {"node": node},
    )
    return [Held(pid, token, StageKey(*key), is_wanted) for pid, token, *key, is_wanted in rows]


def take_back(
    database: Database,
    *,
    lease_s: float,
    max_deliveries: int,
    node: UUID | None = None,
    gone: Sequence[int] = (),
    limit: int = 500,
) -> list[tuple[StageKey, str]]:
    """Take stages back from a node's processes that are gone, or (without a node) whose lease ran out.

    Returns:
        Each stage with ``ready``, ``retried`` or ``ended``.
    """
    rows = database.call(
        "SELECT * FROM loomq_take_back(%(node)s, %(gone)s, %(lease)s, %(max)s, %(limit)s)",
        {"node": node, "gone": list(gone), "lease": lease_s, "max": max_deliveries, "limit": limit},
    )
    return [(StageKey(goal_id, name, item), outcome) for goal_id, name, item, outcome in rows]
