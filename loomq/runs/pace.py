"""The pacemaker of limited work: it is sent when it may start, by every node that serves its queue."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from loomq.store import limits

if TYPE_CHECKING:
    from collections.abc import Collection

    from loomq.queues.app import LoomCelery
    from loomq.runs.publish import Publisher
    from loomq.store.engine import Database

_LOOK_EVERY_S = 1.0
_SHARE_OF_TIME = 4  # after a feed that took long it pauses for so many times as long
_PERIOD_S = 0.05  # over all nodes that serve a queue, so that the work does not grow with their number


class Pacemaker:
    """Feed what waits for a rate or a slot, as often as may be worth it.

    Whoever completes a stage feeds its successor at once; this is for starts that only time allows, and for slots whose
    holder died.

    Args:
        queues: The queues that the node serves.
    """

    def __init__(self, database: Database, app: LoomCelery, publisher: Publisher, queues: Collection[str]) -> None:
        self._database = database
        self._app = app
        self._publisher = publisher
        self._queues = frozenset(queues)
        self._look_at = 0.0
        self._due_at: dict[str, float] = {}

    def serve(self, queues: Collection[str]) -> None:
        """Hear that the node serves other queues by now."""
        self._queues = frozenset(queues)
        self._look_at = 0.0

    def beat(self) -> float:
        """Feed what is due.

        Returns:
            The seconds until there may be more to do.

        Raises:
            DatabaseUnavailableError: The database does not answer.
        """
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_EVERY_S
            self._look()
        for share, due_at in list(self._due_at.items()):
            begun = time.monotonic()
            if begun >= due_at:
                self._due_at[share] = begun + _LOOK_EVERY_S  # also if this fails
                fed = self._publisher.feed(share)
                now = time.monotonic()
                # No longer than until the next look: the rate may be another one by then.
                pause_s = min(fed.wait_s, _LOOK_EVERY_S) or max(self._period_s(share), _SHARE_OF_TIME * (now - begun))
                self._due_at[share] = now + pause_s
        return max(0.0, min([self._look_at, *self._due_at.values()]) - time.monotonic())

    def _look(self) -> None:
        """Find out who waits, and which rates are set by hand."""
        limiter = self._app.limiter
        limiter.learn({each.name: each.rate for each in limits.overrides(self._database)})
        shares: dict[tuple[str, str], str] = {}
        for route in self._app.router.routes_in_use:
            share = limiter.shared_by(*route)
            if share is not None and self._app.router.queue(*route) in self._queues:
                shares[route] = share
        hungry = {shares[route] for route in limits.hungry(self._database, sorted(shares))} if shares else set()
        now = time.monotonic()
        self._due_at = {share: self._due_at.get(share, now) for share in hungry}

    def _period_s(self, share: str) -> float:
        """Say how often this node looks: at random, so that several do not look at the same time."""
        limiter = self._app.limiter
        queues = {self._app.router.queue(*route) for route in limiter.limits.routes_of(share, limiter.rates)}
        count = max((self._publisher.windows.served(queue).nodes for queue in queues), default=1)
        return _PERIOD_S * max(1, count) * random.uniform(0.5, 1.5)  # noqa: S311
