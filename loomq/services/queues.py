"""Queues as people want to see them: what waits on each, since when, and who serves it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from loomq.errors import BrokerUnavailableError
from loomq.services import inspect
from loomq.store import limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loomq.loom import Loom
    from loomq.store.limits import Standing


@dataclass(frozen=True, slots=True)
class QueueView:
    """One queue.

    Args:
        waiting: Tasks that are due and wait: in the database, and on the broker.
        on_broker: How many messages of it the broker holds; ``None`` if it does not answer.
        later: Tasks that are not due yet: retries, pauses.
        running: Tasks in some process's hands.
        oldest_s: For how long what waits longest has waited.
        nodes: The live worker nodes that serve it.
        slots: Their slots.
        per_minute: How many tasks ended in the last minute.
    """

    name: str
    waiting: int
    on_broker: int | None
    later: int
    running: int
    oldest_s: float | None
    nodes: tuple[str, ...]
    slots: int
    per_minute: int

    @property
    def is_stuck(self) -> bool:
        """Whether something waits and no live node serves the queue."""
        return self.waiting > 0 and not self.nodes

    def to_json(self) -> dict[str, Any]:
        """Describe the queue."""
        oldest = None if self.oldest_s is None else round(self.oldest_s, 3)
        said = {name: getattr(self, name) for name in self.__slots__}
        return {**said, "oldest_s": oldest, "nodes": list(self.nodes), "served": bool(self.nodes)}


def queues(loom: Loom, *, with_broker: bool = True) -> list[QueueView]:
    """Look at every queue that the files use, that is served, or that something waits for.

    Args:
        with_broker: Ask the broker too, which starts an embedded one.

    Raises:
        ConfigError: The project's files have errors.
        EnvironmentNotReadyError: The database cannot be used.
    """
    found: dict[str, list[Standing]] = {name: [] for name in loom.router.queues_in_use}
    for each in limits.standings(loom.database):
        found.setdefault(loom.router.queue(each.worker, each.tier), []).append(each)
    serving: dict[str, list[str]] = {}
    slots: dict[str, int] = {}
    for node in inspect.live_nodes(loom):
        for queue in node.queues:
            serving.setdefault(queue, []).append(node.hostname)
            slots[queue] = slots.get(queue, 0) + node.slots
            found.setdefault(queue, [])
    lengths = _lengths(loom, sorted(found)) if with_broker else {}
    return [
        _view(name, found[name], tuple(serving.get(name, ())), slots.get(name, 0), lengths.get(name))
        for name in sorted(found)
    ]


def stuck(loom: Loom) -> list[QueueView]:
    """List the queues on which something waits and that no live node serves; errors as in ``queues``."""
    return [queue for queue in queues(loom, with_broker=False) if queue.is_stuck]


def _lengths(loom: Loom, names: Sequence[str]) -> dict[str, int]:
    try:
        return {name: sum(found.values()) for name, found in loom.app.broker.lengths(names).items()}
    except BrokerUnavailableError:
        return {}


def _view(
    name: str, standings: Sequence[Standing], nodes: tuple[str, ...], slots: int, on_broker: int | None
) -> QueueView:
    oldest = min((each.oldest for each in standings if each.oldest is not None), default=None)
    return QueueView(
        name=name,
        waiting=sum(each.waiting + each.sent for each in standings),
        on_broker=on_broker,
        later=sum(each.later for each in standings),
        running=sum(each.running for each in standings),
        oldest_s=None if oldest is None else max(0.0, (datetime.now(UTC) - oldest).total_seconds()),
        nodes=nodes,
        slots=slots,
        per_minute=sum(each.done_a_minute for each in standings),
    )
