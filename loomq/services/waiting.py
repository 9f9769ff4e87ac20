"""Why work that is due waits: a limit, or nobody who serves its queue."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from loomq.errors import ConfigError, EnvironmentNotReadyError
from loomq.services import limits
from loomq.store import nodes

if TYPE_CHECKING:
    from loomq.loom import Loom
    from loomq.services.limits import LimitView
    from loomq.services.views import StageView


class Waits:
    """Say for routes of one look why their work waits; what it takes to know is read once, when it is needed."""

    def __init__(self, loom: Loom) -> None:
        self._loom = loom

    def of(self, stage: StageView) -> str | None:
        """Say what keeps a stage from starting that waits: what it was told itself, or what holds for its route."""
        told = stage.reason if (stage.reason or "").startswith("waits for its concurrency key") else None
        return told or self.why(stage.worker, stage.tier)

    def why(self, worker: str, tier: str) -> str | None:
        """Say in one line what keeps a route's work from starting; ``None`` if it only waits for its turn."""
        try:
            queue, routed = self._loom.router.queue(worker, tier), self._loom.router.tier(worker, tier)
            catalog = self._loom.catalog
            if queue not in self._served and worker not in {*catalog.workers, *catalog.orchestrators}:
                return f"worker {worker} has no file any more: put it back and loomq reload, or cancel the goal"
            if queue not in self._served:
                return f"no live worker node serves {queue}: loomq worker -Q {queue}, or loomq reload if it is new"
            names = {f"worker:{worker}", f"tier:{routed}"}
            full = [limit for limit in self._limits if limit.name in names and limit.is_full]
        except (ConfigError, EnvironmentNotReadyError):
            return None  # told by `loomq status`
        return "; ".join(limit.told for limit in full) or None

    @cached_property
    def _served(self) -> set[str]:
        settings = self._loom.settings
        live = nodes.live(self._loom.database, nodes.silent_after_s(settings.heartbeat_seconds))
        return {queue for node, *_ in live for queue in node.queues}

    @cached_property
    def _limits(self) -> list[LimitView]:
        return limits.survey(self._loom)
