"""The journal of a stage's calls to language models and tools: what was answered, so that nobody pays for it twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uuid import UUID

    from loomq.store.engine import Database
    from loomq.store.stages import StageKey

_OF_STAGE = "%(goal)s, %(name)s, %(item)s"
_HELD = f"{_OF_STAGE}, %(token)s"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a stage has been answered so far.

    Args:
        calls: ``{round, request, reply}`` of each, the oldest first.
        results: ``{round, call, message}`` of each tool's.
        has_budget: Whether its goal, or one that it is the work of, has a budget.
    """

    calls: list[dict[str, Any]]
    results: list[dict[str, Any]]
    has_budget: bool


def read(database: Database, key: StageKey) -> Recorded:
    """Read a stage's journal."""
    return Recorded(*database.call(f"SELECT * FROM loomq_journal({_OF_STAGE})", key.parameters())[0])  # noqa: S608


def reserve(database: Database, key: StageKey, token: UUID, call_id: UUID, call: str) -> dict[str, Any]:
    """Put aside what a call may cost at most.

    Args:
        call: JSON: ``round worker tier provider model request prompt_tokens completion_tokens cost``.

    Returns:
        ``verdict`` is ``granted``, ``fenced`` or ``refused``; the last with ``limit spent most needs goal``.
    """
    found: dict[str, Any] = database.call(
        f"SELECT loomq_reserve({_HELD}, %(id)s, %(call)s)",
        {**key.parameters(), "token": token, "id": call_id, "call": call},
    )[0][0]
    return found


def unreserve(database: Database, key: StageKey, call_id: UUID) -> None:
    """Give back what was put aside for a call that was not answered, and is not charged."""
    database.call(
        "DELETE FROM llm_calls WHERE goal_id = %(goal)s AND id = %(id)s AND state = 'open'",
        {"goal": key.goal_id, "id": call_id},
    )


def keep_call(database: Database, key: StageKey, token: UUID, call_id: UUID, call: str) -> bool:
    """Write down a call; False if the stage is no longer this token's.

    Args:
        call: JSON: as for ``reserve``, and ``state cached_tokens took_ms reply``.
    """
    rows = database.call(
        f"SELECT loomq_keep_call({_HELD}, %(id)s, %(call)s)",
        {**key.parameters(), "token": token, "id": call_id, "call": call},
    )
    return bool(rows[0][0])


def keep_result(
    database: Database, key: StageKey, token: UUID, at_round: int, call: str, message: str, took_ms: int
) -> bool:
    """Write down a tool's result, as JSON; False if the stage is no longer this token's.

    Args:
        call: What makes the call this one and no other.
    """
    rows = database.call(
        f"SELECT loomq_keep_result({_HELD}, %(round)s, %(call)s, %(message)s, %(ms)s)",
        {**key.parameters(), "token": token, "round": at_round, "call": call, "message": message, "ms": took_ms},
    )
    return bool(rows[0][0])


def drop(database: Database, key: StageKey, token: UUID, from_round: int) -> None:
    """Forget the replies from a round on; what they cost stays."""
    database.call(
        f"SELECT loomq_drop_round({_HELD}, %(round)s)", {**key.parameters(), "token": token, "round": from_round}
    )


def rounds(database: Database, key: StageKey) -> list[tuple[Any, ...]]:
    """List all calls of a stage and its tools' results in their order, for people to read.

    Returns:
        ``round, at, kind`` (``call`` or ``tool``), ``state, provider, model, prompt_tokens, completion_tokens, cost,
        took_ms, body``.
    """
    rows = database.call(
        "SELECT round, at, 'call', state, provider, model, prompt_tokens, completion_tokens, cost, took_ms, reply"
        " FROM llm_calls WHERE goal_id = %(goal)s AND stage = %(name)s AND item = %(item)s"
        " UNION ALL SELECT round, at, 'tool', 'done', NULL, NULL, NULL, NULL, NULL, took_ms, message"
        " FROM tool_results WHERE goal_id = %(goal)s AND stage = %(name)s AND item = %(item)s ORDER BY 2",
        key.parameters(),
    )
    return [tuple(row) for row in rows]


def cached(database: Database, key: str) -> dict[str, Any] | None:
    """Give the reply that is kept under a key, if it has not expired."""
    rows = database.call(
        "SELECT reply FROM llm_cache WHERE key = %(key)s AND expires_at > clock_timestamp()", {"key": key}
    )
    found: dict[str, Any] | None = rows[0][0] if rows else None
    return found


def cache(database: Database, key: str, worker: str, reply: str, ttl_s: float) -> None:
    """Keep a reply, as JSON, for others."""
    database.call(
        "INSERT INTO llm_cache (key, worker, reply, expires_at)"
        " VALUES (%(key)s, %(worker)s, %(reply)s, clock_timestamp() + make_interval(secs => %(ttl)s))"
        " ON CONFLICT (key) DO UPDATE SET reply = excluded.reply, worker = excluded.worker,"
        " created_at = clock_timestamp(), expires_at = excluded.expires_at",
        {"key": key, "worker": worker, "reply": reply, "ttl": ttl_s},
    )


def uncache(database: Database, key: str) -> None:
    """Forget a reply."""
    database.call("DELETE FROM llm_cache WHERE key = %(key)s", {"key": key})
