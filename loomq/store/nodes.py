"""Nodes: which worker nodes live, what they serve, and who leads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from loomq.store.engine import Database


_ADVICE_WITHIN_S = 0.5  # what a submit only likes to know must not make it wait


@dataclass(frozen=True, slots=True)
class Node:
    """One worker node: a Celery worker process with its pool."""

    id: UUID
    hostname: str
    pid: int
    pool: str
    slots: int
    queues: tuple[str, ...]
    version: str


@dataclass(frozen=True, slots=True)
class Served:
    """How many nodes serve a queue, and with how many slots."""

    nodes: int
    slots: int


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads.

    Args:
        who: The name of the node that leads, or of whoever else does.
        renewed_at: When the leader last said so.
        memory: What the leader has noted for the next one.
    """

    holder: UUID
    who: str | None
    since: datetime | None
    renewed_at: datetime | None
    memory: dict[str, Any]


def beat(database: Database, node: Node) -> None:
    """Say that a node lives."""
    database.call(
        "INSERT INTO nodes (id, hostname, pid, pool, slots, queues, version)"
        " VALUES (%(id)s, %(hostname)s, %(pid)s, %(pool)s, %(slots)s, %(queues)s, %(version)s)"
        " ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp(), slots = excluded.slots, queues = excluded.queues",
        {
            "id": node.id,
            "hostname": node.hostname,
            "pid": node.pid,
            "pool": node.pool,
            "slots": node.slots,
            "queues": list(node.queues),
            "version": node.version,
        },
    )


def leave(database: Database, node_id: UUID) -> None:
    """Say that a node has gone in good order."""
    database.call("DELETE FROM nodes WHERE id = %(id)s", {"id": node_id})


def forget(database: Database, older_s: float) -> None:
    """Drop the nodes that have not been heard of for so long."""
    database.call(
        "DELETE FROM nodes WHERE seen_at < clock_timestamp() - make_interval(secs => %(older)s)", {"older": older_s}
    )


def silent_after_s(heartbeat_s: float) -> float:
    """Say after how long without a sign of life a node counts as gone."""
    return 4 * heartbeat_s + 5


def live(database: Database, within_s: float) -> list[tuple[Node, datetime, datetime]]:
    """List the nodes heard of lately, with when they started and were last seen."""
    rows = database.call(
        "SELECT id, hostname, pid, pool, slots, queues, version, started_at, seen_at FROM nodes"
        " WHERE seen_at > clock_timestamp() - make_interval(secs => %(within)s) ORDER BY started_at",
        {"within": within_s},
    )
    return [(_node(*row[:7]), row[7], row[8]) for row in rows]


def served(database: Database, within_s: float) -> dict[str, Served]:
    """Count the live nodes and slots that serve each queue."""
    rows = database.call(
        "SELECT q, count(*)::integer, sum(slots)::integer FROM nodes, unnest(queues) AS q"
        " WHERE seen_at > clock_timestamp() - make_interval(secs => %(within)s) GROUP BY q",
        {"within": within_s},
        within_s=_ADVICE_WITHIN_S,
    )
    return {queue: Served(count, slots) for queue, count, slots in rows}


def full_queues(database: Database, within_s: float) -> set[str]:
    """List the queues of live nodes whose slots are all in use: such a node may hold unclaimed messages."""
    rows = database.call(
        "SELECT DISTINCT unnest(n.queues) FROM nodes n"
        " WHERE n.seen_at > clock_timestamp() - make_interval(secs => %(within)s) AND n.slots <="
        " (SELECT count(*) FROM stages s WHERE s.state = 'claimed' AND s.node = n.id)",
        {"within": within_s},
    )
    return {queue for (queue,) in rows}


def lead(database: Database, name: str, holder: UUID, lease_s: float, who: str | None = None) -> dict[str, Any] | None:
    """Take or keep a leadership, on the server's clock.

    Args:
        who: What people call the holder.

    Returns:
        What the leaders before remembered, or ``None`` if somebody else leads.
    """
    rows = database.call(
        "SELECT loomq_lead(%(name)s, %(holder)s, %(lease)s, %(who)s)",
        {"name": name, "holder": holder, "lease": lease_s, "who": who},
    )
    return None if rows[0][0] is None else dict(rows[0][0])


def leader(database: Database, name: str) -> Leader | None:
    """Say who leads, if anybody does."""
    rows = database.call(
        "SELECT l.holder, coalesce(n.hostname, l.who), l.since, l.renewed_at, l.memory FROM leases l"
        " LEFT JOIN nodes n ON n.id = l.holder WHERE l.name = %(name)s AND l.until >= clock_timestamp()",
        {"name": name},
    )
    return Leader(*rows[0]) if rows else None


def remember(database: Database, name: str, holder: UUID, memory: dict[str, Any]) -> None:
    """Keep a note for the next leader, while leading."""
    database.call(
        "UPDATE leases SET memory = %(memory)s WHERE name = %(name)s AND holder = %(holder)s",
        {"name": name, "holder": holder, "memory": json.dumps(memory)},
    )


def step_down(database: Database, names: Sequence[str], holder: UUID) -> None:
    """Give leaderships up at once instead of letting them run out."""
    database.call(
        "UPDATE leases SET until = clock_timestamp() WHERE name = ANY (%(names)s) AND holder = %(holder)s",
        {"names": list(names), "holder": holder},
    )


def _node(id_: UUID, hostname: str, pid: int, pool: str, slots: int, queues: list[str], version: str) -> Node:
    return Node(id_, hostname, pid, pool, slots, tuple(queues), version)
