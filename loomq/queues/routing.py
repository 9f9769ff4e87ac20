"""Which queue a task goes to: override, then the asked tier, then the worker's default. No model decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from loomq.queues.names import queue_name, worker_of

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Router:
    """The routing rules of one project: a pure function of worker and tier.

    Args:
        defaults: Each known worker's default tier.
        overrides: Tiers that win over whatever was asked, by worker.
        asked: The (worker, tier) pairs that pipelines' stages name.
    """

    defaults: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    asked: frozenset[tuple[str, str]] = frozenset()

    def tier(self, worker: str, asked: str) -> str:
        """Give the tier that a worker's task has today when this one was asked for."""
        return self.overrides.get(worker, asked)

    def queue(self, worker: str, tier: str) -> str:
        """Name the queue that serves a worker's tier today."""
        return queue_name(worker, self.tier(worker, tier))

    @cached_property
    def queues_in_use(self) -> tuple[str, ...]:
        """The queues that the configurations use: each worker's default tier's and those that stages ask for."""
        routes = {*self.defaults.items(), *self.asked}
        return tuple(sorted({self.queue(worker, tier) for worker, tier in routes}))

    def celery_route(self, name: str, *_: Any, **__: Any) -> dict[str, str] | None:
        """Route a task that was sent without a queue, as Celery's ``task_routes`` asks."""
        worker = worker_of(name)
        if worker is None or worker not in self.defaults:
            return None
        return {"queue": self.queue(worker, self.defaults[worker])}
