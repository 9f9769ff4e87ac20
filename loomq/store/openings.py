"""Stages that are more than one task: skipped, fanned out over a list, or done by a goal of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.store.stages import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from loomq.store.engine import Database
    from loomq.store.stages import StageKey


@dataclass(frozen=True, slots=True)
class Element:
    """One item of a list that a stage fans out over.

    Args:
        index: Its place in the list.
        skip: Why it is left out, or ``None``.
    """

    index: int
    element: Any
    skip: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Describe it for the store."""
        return {"index": self.index, "element": self.element, "skip": self.skip}


def inputs(database: Database, goal_id: UUID, reads: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read finished stages as mappings and conditions see them; one that is not done is absent."""
    rows = database.call("SELECT loomq_inputs(%(goal)s, %(reads)s)", {"goal": goal_id, "reads": list(reads)})
    found: dict[str, dict[str, Any]] = rows[0][0]
    return found


def skip(
    database: Database,
    key: StageKey,
    token: UUID | None,
    reason: str,
    *,
    room: Mapping[str, int] | None = None,
    carried: Sequence[str] = (),
) -> Outcome:
    """End a stage without running it; arguments as ``stages.complete``.

    Args:
        token: The claim's; ``None`` skips a stage that nobody has claimed.
        reason: What ``loomq explain`` says of it.
    """
    rows = database.call(
        "SELECT * FROM loomq_complete_2(%(goal)s, %(name)s, %(item)s, %(token)s, 'skipped', NULL, NULL, NULL, NULL,"
        " %(reason)s, %(room)s, %(carried)s, NULL, NULL)",
        {
            **key.parameters(),
            "token": token,
            "reason": reason,
            "room": json.dumps(dict(room or {})),
            "carried": list(carried),
        },
    )
    return Outcome.of(rows[0])


def expand(
    database: Database,
    key: StageKey,
    token: UUID,
    elements: Sequence[Element],
    *,
    reads: Sequence[str],
    max_parallel: int | None = None,
    tolerant: bool = False,
    fallback: dict[str, Any] | None = None,
    room: Mapping[str, int] | None = None,
) -> Outcome:
    """Write a row for each element of the list that a claimed stage fans out over; an empty list ends the stage.

    Args:
        reads: The stages whose results each item's mapping names.
        max_parallel: How many items may be under way; ``None`` is any number.
        tolerant: Whether the stage goes on when an item has failed.
        fallback: What stands in for an item that has failed for good; see ``NewStage``.
        room: As ``stages.complete``, for what follows an empty list.
    """
    rows = database.call(
        "SELECT * FROM loomq_expand(%(goal)s, %(name)s, %(token)s, %(elements)s, %(reads)s, %(parallel)s, %(tolerant)s,"
        " %(fallback)s, %(room)s)",
        {
            "goal": key.goal_id,
            "name": key.name,
            "token": token,
            "elements": json.dumps([element.to_json() for element in elements]),
            "reads": list(reads),
            "parallel": max_parallel,
            "tolerant": tolerant,
            "fallback": json.dumps(fallback) if fallback else None,
            "room": json.dumps(dict(room or {})),
        },
    )
    return Outcome.of(rows[0])


def delegate(database: Database, key: StageKey, token: UUID, child: UUID) -> str:
    """Leave a claimed stage to a goal of its own, which holds it from now on by its id.

    Returns:
        ``delegated``, ``fenced`` (the stage was taken back) or ``ended`` (its goal has ended, and so has this one).
    """
    rows = database.call(
        "SELECT loomq_delegate(%(goal)s, %(name)s, %(item)s, %(token)s, %(child)s)",
        {**key.parameters(), "token": token, "child": child},
    )
    return str(rows[0][0])


def newest_child(database: Database, key: StageKey) -> tuple[UUID, str, int] | None:
    """Find the last goal that was the work of a stage: its id, its state, and how many there have been."""
    rows = database.call(
        "SELECT id, state, count(*) OVER () FROM goals WHERE parent_goal = %(goal)s AND parent_stage = %(name)s"
        " AND parent_item = %(item)s ORDER BY id DESC LIMIT 1",
        key.parameters(),
    )
    return tuple(rows[0]) if rows else None


def unheard(database: Database, limit: int = 100) -> list[UUID]:
    """List goals that ended as the work of a stage which has not heard of it."""
    return [row[0] for row in database.call("SELECT loomq_unheard(%(limit)s)", {"limit": limit})]
