"""The sweeper: what was lost on the way is found in the rows and set going again. One is active at a time."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from loomq.errors import BrokerUnavailableError, DatabaseUnavailableError
from loomq.store import goals, nodes, results, stages

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from loomq.queues.app import LoomCelery
    from loomq.runs.publish import Publisher
    from loomq.settings import Settings
    from loomq.store.engine import Database

logger = logging.getLogger(__name__)

LEADERSHIP = "sweeper"
_EMPTY_FOR_S = 3.0
_NODE_FORGOTTEN_S = 300.0
_STALE_S = 5.0
_OVERTAKEN_S = 5.0


class Sweeper:
    """Repair, one pass at a time.

    Args:
        holder: Who leads: the node's id.
    """

    def __init__(
        self, settings: Settings, database: Database, app: LoomCelery, publisher: Publisher, holder: UUID
    ) -> None:
        self._settings = settings
        self._database = database
        self._app = app
        self._publisher = publisher
        self._holder = holder
        self._lease_s = max(5 * settings.sweep_seconds, 3.0)
        self._empty_since: dict[tuple[str, str], float] = {}
        self._grace_until = 0.0

    def sweep(self) -> bool:
        """Make one pass, if this node leads.

        Each step stands alone: what cannot be done for one goal must not keep the others waiting.

        Returns:
            Whether it led.

        Raises:
            DatabaseUnavailableError: The database does not answer.
        """
        try:
            memory = nodes.lead(self._database, LEADERSHIP, self._holder, self._lease_s)
            if memory is None:
                self._empty_since.clear()
                return False
            for step in (
                self._take_back,
                self._end_overdue,
                lambda: self._find_lost(memory),
                self._top_up,
                self._finish_chords,
                self._follow_calls,
                lambda: nodes.forget(self._database, _NODE_FORGOTTEN_S),
            ):
                self._alone(step)
        except DatabaseUnavailableError:
            self._grace_until = time.monotonic() + self._settings.lease_seconds
            raise
        return True

    def _alone(self, step: Callable[[], object]) -> None:
        try:
            step()
        except DatabaseUnavailableError:
            raise
        except BrokerUnavailableError as error:
            logger.debug("%s", error.message)
        except Exception:
            logger.exception("a step of the sweeper failed; the others go on")

    def _take_back(self) -> None:
        """Take expired leases back; not within a lease of an outage, for nobody could extend theirs in it."""
        if time.monotonic() < self._grace_until or nodes.uptime_s(self._database) < self._settings.lease_seconds:
            return
        for key, outcome in stages.take_back(
            self._database, lease_s=self._settings.lease_seconds, max_deliveries=self._settings.max_deliveries
        ):
            logger.warning("the lease of stage %s of goal %s ran out: %s", key.name, key.goal_id, outcome)

    def _end_overdue(self) -> None:
        for goal_id in goals.end_overdue(self._database):
            logger.warning("goal %s passed its deadline", goal_id)

    def _top_up(self) -> None:
        for worker, tier in stages.routes(self._database, "ready"):
            self._alone(partial(self._publisher.top_up, worker, tier))

    def _finish_chords(self) -> None:
        """Send the bodies of full chords whose last part died before it could."""
        for group_id, body in results.full_chords(self._database, _STALE_S):
            self._alone(partial(self._app.backend.send_chord_body, group_id, body))

    def _follow_calls(self) -> None:
        """Send what follows raw calls whose process died before it could."""
        for goal_id in goals.unfollowed(self._database, _STALE_S):
            self._alone(partial(self._app.backend.follow, goal_id))

    def _find_lost(self, memory: dict[str, object]) -> None:
        """Make ready again what is published and provably not on the broker.

        Provably: the broker's mark is gone or changed, so it lost its data; or the queue has been empty for a while; or
        a later message of the same queue has been taken already.
        """
        overtaken = stages.unpublish_overtaken(self._database, _OVERTAKEN_S)
        if overtaken:
            logger.warning("%d published stages were overtaken: their messages are lost", overtaken)
        try:
            epoch, _ = self._app.broker.epoch()
            if memory.get("epoch") != epoch:
                lost = stages.unpublish_all(self._database)
                nodes.remember(self._database, LEADERSHIP, self._holder, {**memory, "epoch": epoch})
                if lost:
                    logger.warning("the broker lost its data: %d messages are sent again", lost)
                return
            published = stages.routes(self._database, "published")
            queues = {route: self._app.router.queue(*route) for route in published}
            lengths = self._app.broker.lengths(sorted(set(queues.values())))
        except BrokerUnavailableError:
            self._empty_since.clear()
            return
        now = time.monotonic()
        self._empty_since = {
            route: self._empty_since.get(route, now) for route, queue in queues.items() if not lengths[queue]
        }
        for (worker, tier), since in self._empty_since.items():
            if now - since >= _EMPTY_FOR_S:
                lost = stages.unpublish_all(self._database, worker=worker, tier=tier, older_s=_EMPTY_FOR_S)
                if lost:
                    logger.warning("%s.%s: %d published stages are not on the empty queue", worker, tier, lost)
