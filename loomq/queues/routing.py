"""Which queue a task goes to: override, then the asked tier, then the worker's default. No model decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from loomq.errors import UnknownNameError
from loomq.problems import suggest
from loomq.queues.names import queue_name, worker_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


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

    def tier(self, worker: str, asked: str | None = None) -> str:
        """Give the tier that a worker's task has today: the override's, else the asked one, else the worker's own.

        Raises:
            UnknownNameError: No tier was asked for, and there is no such worker.
        """
        found = self.overrides.get(worker, asked) or self.defaults.get(worker)
        if found is None:
            raise unknown_name("worker", worker, self.defaults)
        return found

    def queue(self, worker: str, tier: str | None = None) -> str:
        """Name the queue that serves a worker's tier today; errors as in ``tier``."""
        return queue_name(worker, self.tier(worker, tier))

    @cached_property
    def routes_in_use(self) -> frozenset[tuple[str, str]]:
        """The (worker, tier) pairs that the configurations use: each worker's default and what stages ask for."""
        return frozenset({*self.defaults.items(), *self.asked})

    @cached_property
    def queues_in_use(self) -> tuple[str, ...]:
        """The queues that serve those."""
        return tuple(sorted({self.queue(worker, tier) for worker, tier in self.routes_in_use}))

    def celery_route(
        self, name: str, args: Any = None, kwargs: Any = None, options: Any = None, **_: Any
    ) -> dict[str, str] | None:
        """Route a task that was sent without a queue, as Celery's ``task_routes`` asks.

        Raises:
            UnknownNameError: The task is one of ours, and there is no such worker.
        """
        del args, kwargs
        worker = worker_of(name)
        if worker is None or (options or {}).get("queue"):
            return None
        if worker not in self.defaults:
            raise unknown_name("worker", worker, self.defaults)
        return {"queue": self.queue(worker)}


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Make the error for a worker or a pipeline that no file describes, with the nearest names."""
    hint = suggest(name, known) or f"known {kind}s: {', '.join(sorted(known)) or 'none'}"
    return UnknownNameError(f'no {kind} is called "{name}"', hint=hint)
