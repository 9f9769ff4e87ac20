"""A process's turn: it ends stages and claims the next ones in one call, one transaction."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from loomq.store.backlog import Due
from loomq.store.stages import Claim, Outcome, Part, StageKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loomq.store.backlog import Fairness
    from loomq.store.engine import Database
    from loomq.store.stages import Place

_CLAIM = (
    "snapshot",
    "instruction",
    "context",
    "canvas",
    "task_id",
    "priority",
    "attempt",
    "deliveries",
    "timeout_s",
    "max_retries",
    "inputs",
    "worker",
    "tier",
    "payload",
    "element",
)


@dataclass(frozen=True, slots=True)
class End:
    """A stage that has a result.

    Args:
        output: The result as JSON text.
        notes: What is to be told of it besides.
        updates: The changes of silos that come with it: ``[{folder, silo, asked, reason}]``; one with a reason is
            refused already.
        room: How many messages the queue of each route (``worker.tier.level``) still takes; so many ready stages are
            the caller's to publish.
        carried: Stages that the message in hand publishes by itself.
        part: The stage's place in a user's chord, if it is in one.
        next: Children to go on with if they have become ready, with the tokens to claim them by.
        most: How many of those.
    """

    key: StageKey
    token: UUID
    output: str
    model_used: str | None = None
    token_usage: dict[str, int] | None = None
    processing_time_ms: int = 0
    room: Mapping[str, int] | None = None
    carried: Sequence[str] = ()
    part: Part | None = None
    notes: dict[str, Any] | None = None
    updates: Sequence[Mapping[str, Any]] | None = None
    next: Sequence[tuple[str, UUID]] = ()
    most: int = 0

    def to_json(self) -> str:
        """Describe it for the store; the output's text goes in as it is."""
        found: dict[str, Any] = {
            "goal": str(self.key.goal_id),
            "name": self.key.name,
            "item": self.key.item,
            "token": str(self.token),
            "model": self.model_used,
            "ms": self.processing_time_ms,
            "room": dict(self.room or {}),
            "carried": list(self.carried),
        }
        if self.part:
            found |= {"chord": self.part.group_id, "position": self.part.position}
        if self.token_usage:
            found["tokens"] = self.token_usage
        if self.notes:
            found["notes"] = self.notes
        if self.updates:
            found["updates"] = self.updates
        if self.next:
            found |= {"next": {name: str(token) for name, token in self.next}, "most": self.most}
        return f'{json.dumps(found)[:-1]}, "output": {self.output}}}'


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for some routes and is taken without a message.

    Args:
        routes: Workers and tiers.
        free: For each, how many may be taken of each urgency and more, as of ``backlog.take_ready``.
        tokens: As many as may be taken in all.
    """

    routes: Sequence[tuple[str, str]]
    free: Sequence[Sequence[int]]
    tokens: Sequence[UUID]
    fairness: Fairness

    def to_json(self) -> str:
        """Describe it for the store."""
        return json.dumps(
            {
                "workers": [worker for worker, _ in self.routes],
                "tiers": [tier for _, tier in self.routes],
                "free": [number for numbers in self.free for number in numbers],
                "limit": len(self.tokens),
                "age": self.fairness.age_s,
                "share": self.fairness.share,
                "tokens": [str(token) for token in self.tokens],
            }
        )


@dataclass(frozen=True, slots=True)
class Turned:
    """What a call led to.

    Args:
        outcomes: One an end, in order; stages that were claimed are not among their ``published`` and ``held``.
        claims: What the process goes on with.
        due: Raw calls that were taken and must be sent: only Celery's own message can bring them.
        is_leaving: Whether the node takes nothing more, so that nothing was claimed.
    """

    outcomes: tuple[Outcome, ...]
    claims: tuple[Claim, ...]
    due: tuple[Due, ...]
    is_leaving: bool


def turn(
    database: Database,
    ends: Sequence[End],
    place: Place,
    lease_s: float,
    backlog: Backlog | None = None,
    pulled: Sequence[tuple[StageKey, UUID]] = (),
) -> Turned:
    """End stages, and claim what the process goes on with; may be made again with the same tokens.

    A node that is leaving is given nothing.

    Args:
        pulled: Stages whose messages the process has taken from its queues, with the tokens to claim them by.
    """
    rows = database.call(
        "SELECT loomq_turn_2(%(done)s, %(pulled)s, %(backlog)s, %(node)s, %(pid)s, %(message)s, %(lease)s)",
        {
            "done": f"[{', '.join(end.to_json() for end in ends)}]",
            "pulled": json.dumps(
                [
                    {"goal": str(key.goal_id), "name": key.name, "item": key.item, "token": str(token)}
                    for key, token in pulled
                ]
            ),
            "backlog": backlog.to_json() if backlog else None,
            "node": place.node,
            "pid": place.pid,
            "message": place.message_id,
            "lease": lease_s,
        },
    )
    found = rows[0][0]
    due = [Due(StageKey(UUID(goal), name, item), *rest) for goal, name, item, *rest in found["due"]]
    outcomes, claims = map(Outcome.of, found["done"]), map(_claim, found["claims"])
    return Turned(tuple(outcomes), tuple(claims), tuple(due), not found["lives"])


def _claim(row: dict[str, Any]) -> Claim:
    key = StageKey(UUID(row["goal"]), row["name"], row["item"])
    parent = StageKey(UUID(row["parent_goal"]), row["parent_stage"], row["parent_item"]) if row["parent_goal"] else None
    found = [key, UUID(row["token"]), *(row[name] for name in _CLAIM), parent, row["rates"]]
    return Claim(*found)
