"""Limits as the database knows them: rates that were set by hand, who waits, and what may start now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.store.backlog import due_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from loomq.store.backlog import Due, Fairness
    from loomq.store.engine import Database
    from loomq.store.stages import StageKey

_WITHIN_S = 2.0  # whoever sets a rate is a worker's parent process, which must not hang
_COUNTED = 10_000


@dataclass(frozen=True, slots=True)
class Override:
    """A rate that somebody set by hand.

    Args:
        name: The limit's, ``worker:summarizer`` or ``tier:frontier``.
        rate: As Celery writes it, ``10/m``; ``0`` takes the limit off.
    """

    name: str
    rate: str
    set_by: str
    set_at: datetime


@dataclass(frozen=True, slots=True)
class Share:
    """What of some routes may start now.

    Args:
        routes: Workers and tiers.
        free: By route, how many messages its queue takes, as for ``backlog.take_ready``.
        grants: By route, how often the worker's rate lets it start now; ``None`` is no limit.
        slots: By route, the worker's ``max_concurrent``.
        tier: The tier that they share, if it has limits of its own.
        tier_grants, tier_slots: The same for the tier.
        moved: Workers that the router's rules send to another tier than was asked, as JSON.
    """

    name: str
    routes: Sequence[tuple[str, str]]
    free: Sequence[Sequence[int]]
    grants: Sequence[int | None]
    slots: Sequence[int | None]
    tier: str | None
    tier_grants: int | None
    tier_slots: int | None
    moved: str


def hold(database: Database, key: StageKey, token: UUID, reason: str, wait_s: float = 0.0) -> bool:
    """Put a claimed stage back that a limit keeps waiting: uncounted, and in its place in the order.

    Args:
        reason: What ``loomq explain`` says of it.
        wait_s: Not before so long; 0 leaves it to whoever fills the queue.

    Returns:
        False if it was no longer this token's.
    """
    rows = database.call(
        "SELECT loomq_hold(%(goal)s, %(name)s, %(item)s, %(token)s, %(reason)s, %(wait)s)",
        {**key.parameters(), "token": token, "reason": reason, "wait": wait_s},
    )
    return bool(rows[0][0])


def enter(database: Database, key: StageKey, token: UUID, semaphore: str, slots: int) -> str:
    """Take one of the slots of a semaphore for a claimed stage, or put the stage back until one is free.

    Returns:
        ``entered``, ``held`` or ``fenced`` (the stage was taken back).
    """
    rows = database.call(
        "SELECT loomq_enter(%(goal)s, %(name)s, %(item)s, %(token)s, %(semaphore)s, %(slots)s)",
        {**key.parameters(), "token": token, "semaphore": semaphore, "slots": slots},
    )
    return str(rows[0][0])


def wake(database: Database, semaphore: str | None = None) -> int:
    """Let those go that wait for a semaphore, or for any, as far as it has free slots; gives how many."""
    if semaphore is None:
        return int(database.call("SELECT loomq_wake_all()", {})[0][0])
    return int(database.call("SELECT loomq_wake(%(semaphore)s)", {"semaphore": semaphore})[0][0])


def feed(database: Database, share: Share, limit: int, fairness: Fairness) -> list[Due]:
    """Take waiting stages for publishing, as many as may start now; nothing while somebody else does so."""
    rows = database.call(
        "SELECT * FROM loomq_feed(%(name)s, %(workers)s, %(tiers)s, %(free)s, %(grants)s::integer[],"
        " %(slots)s::integer[], %(tier_grants)s, %(tier)s, %(tier_slots)s, %(moved)s, %(limit)s, %(age)s, %(share)s)",
        {
            "name": share.name,
            **_named(share.routes),
            "free": [number for numbers in share.free for number in numbers],
            "grants": list(share.grants),
            "slots": list(share.slots),
            "tier_grants": share.tier_grants,
            "tier": share.tier,
            "tier_slots": share.tier_slots,
            "moved": share.moved,
            "limit": limit,
            "age": fairness.age_s,
            "share": fairness.share,
        },
    )
    return [due_of(row) for row in rows]


def hungry(database: Database, routes: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Name those of some routes that have work which waits and is due."""
    rows = database.call("SELECT * FROM loomq_hungry(%(workers)s, %(tiers)s)", _named(routes))
    return {(worker, tier) for worker, tier in rows}


def overrides(database: Database) -> list[Override]:
    """List the rates that were set by hand."""
    rows = database.call("SELECT name, rate, set_by, set_at FROM limit_overrides ORDER BY name", {})
    return [Override(*row) for row in rows]


def override(database: Database, name: str, rate: str, by: str) -> None:
    """Set a rate by hand, for all nodes and until it is reset."""
    database.call(
        "INSERT INTO limit_overrides (name, rate, set_by) VALUES (%(name)s, %(rate)s, %(by)s)"
        " ON CONFLICT (name) DO UPDATE SET rate = excluded.rate, set_by = excluded.set_by, set_at = clock_timestamp()",
        {"name": name, "rate": rate, "by": by},
        within_s=_WITHIN_S,
    )


def reset(database: Database, name: str) -> bool:
    """Let a limit be what the files say again; False if nobody had set it."""
    rows = database.call(
        "DELETE FROM limit_overrides WHERE name = %(name)s RETURNING 1", {"name": name}, within_s=_WITHIN_S
    )
    return bool(rows)


@dataclass(frozen=True, slots=True)
class Standing:
    """How the work of one worker's tier stands.

    Args:
        waiting: Due and not on a queue.
        later: Not due yet: retries, pauses, turns that have not come.
        sent: On a queue, or on its way from there.
        running: In some process's hands.
        done_a_minute: How many ended in the last minute.
        oldest: Since when what waits longest has waited.
    """

    worker: str
    tier: str
    waiting: int
    later: int
    sent: int
    running: int
    done_a_minute: int
    oldest: datetime | None


def standings(database: Database) -> list[Standing]:
    """Count the open work of every worker's tier, and what ended in the last minute."""
    rows = database.call(
        "SELECT worker, tier, count(*) FILTER (WHERE kind = 'waiting'), count(*) FILTER (WHERE kind = 'later'),"
        " count(*) FILTER (WHERE kind = 'sent'), count(*) FILTER (WHERE kind = 'running'),"
        " count(*) FILTER (WHERE kind = 'ended'), min(at) FILTER (WHERE kind IN ('waiting', 'sent')) FROM ("
        "SELECT worker, tier, 'waiting' AS kind, ready_at AS at FROM stages"
        " WHERE state = 'ready' AND not_before IS NULL"
        " UNION ALL SELECT worker, tier, CASE WHEN wants_key OR not_before <= now() THEN 'waiting' ELSE 'later' END,"
        " ready_at FROM stages WHERE state = 'ready' AND not_before IS NOT NULL"
        " UNION ALL SELECT worker, tier, 'sent', ready_at FROM stages WHERE state = 'published'"
        " UNION ALL SELECT worker, tier, 'running', NULL FROM stages WHERE state = 'claimed' AND node IS NOT NULL"
        " UNION ALL SELECT worker, tier, 'ended', NULL FROM stages"
        " WHERE state IN ('done', 'failed', 'dead') AND ended_at > now() - interval '1 minute'"
        ") AS x GROUP BY worker, tier ORDER BY worker, tier",
        {},
    )
    return [Standing(*row) for row in rows]


def keys(database: Database) -> list[tuple[str, int, int, int]]:
    """List the semaphores of concurrency keys that are in use: name, slots, held, waited for."""
    rows = database.call(
        "SELECT limit_key, max(limit_max), count(*) FILTER (WHERE state = 'claimed'),"
        " count(*) FILTER (WHERE state <> 'claimed') FROM stages WHERE limit_key IS NOT NULL AND (state = 'claimed'"
        " OR state = 'ready' AND wants_key) GROUP BY 1 ORDER BY 1 LIMIT %(most)s",
        {"most": _COUNTED},
    )
    return [tuple(row) for row in rows]


def prune_turns(database: Database, older_s: float) -> None:
    """Forget the turns of goals that have had none for so long and have nothing left to do there."""
    database.call(
        "DELETE FROM turns t WHERE t.at < clock_timestamp() - make_interval(secs => %(older)s) AND NOT EXISTS ("
        "SELECT 1 FROM stages s WHERE s.state = 'ready' AND s.not_before IS NULL AND s.worker = t.worker"
        " AND s.tier = t.tier AND s.priority = ANY ('{0,1,2,3}') AND s.goal_id = t.goal_id)",
        {"older": older_s},
    )


def _named(routes: Sequence[tuple[str, str]]) -> Mapping[str, Any]:
    return {"workers": [worker for worker, _ in routes], "tiers": [tier for _, tier in routes]}
