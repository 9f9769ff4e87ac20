"""How much more each queue takes: the broker holds a window of messages, and the rest stays in Postgres."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from itertools import accumulate
from typing import TYPE_CHECKING

from loomq.errors import BrokerUnavailableError, EnvironmentNotReadyError
from loomq.queues.names import urgency
from loomq.store import backlog, nodes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from loomq.queues.app import LoomCelery
    from loomq.queues.broker import Lengths
    from loomq.settings import Settings
    from loomq.store.engine import Database

logger = logging.getLogger(__name__)

_SERVED_KNOWN_FOR_S = 2.0
_LENGTHS_KNOWN_FOR_S = 0.02
_UNSERVED = nodes.Served(0, 0)

Route = tuple[str, str]
Place = tuple[str, str, int]  # worker, tier, level
_Look = tuple[float, dict[int | None, int]]  # when, and how much there was


class Windows:
    """What a process knows of the queues: who serves them, and how much they hold."""

    def __init__(self, settings: Settings, database: Database, app: LoomCelery) -> None:
        self._settings = settings
        self._database = database
        self._app = app
        self._served: dict[str, nodes.Served] = {}
        self._served_read_at = float("-inf")
        self._seen: dict[str, _Look] = {}
        self._trusted: set[str] = set()  # queues of which somebody goes by an old look
        self._lock = threading.Lock()

    def room(self, places: Iterable[Place], *, as_seen: bool = False) -> dict[Place, int]:
        """Say how many more messages of a level each (worker, tier, level) takes on its queue.

        What is urgent is taken though less urgent messages fill the window. Nothing is said of work under a limit,
        which is fed, nor of any if the broker is out of reach.

        Args:
            as_seen: Whether an old look of this process is good enough if there was room. One caller a look is told so:
                if it sends one message and looks again, that is at most one too many.
        """
        shared_by = self._app.limiter.shared_by
        asked = {place: self._app.router.queue(*place[:2]) for place in places if not shared_by(*place[:2])}
        queues = sorted(set(asked.values()))
        found = self._room_as_seen(asked, queues) if as_seen else None
        if found is not None:
            return found
        try:
            return self._room(asked, self._lengths(queues))
        except BrokerUnavailableError:
            return {}

    def _room_as_seen(self, asked: Mapping[Place, str], queues: Sequence[str]) -> dict[Place, int] | None:
        """Give the room by the last look, if there was some for all, and nobody else goes by the same look."""
        seen = self._seen
        if not all(queue in seen for queue in queues) or not self._old(queues, seen):
            return None
        lengths = {queue: seen[queue][1] for queue in queues}
        if any(held.get(None, 0) >= self.window(queue) for queue, held in lengths.items()):
            return None
        found = self._room(asked, lengths)
        with self._lock:
            if len(found) < len(asked) or not self._trusted.isdisjoint(queues):
                return None
            self._trusted.update(queues)
        return found

    def _room(self, asked: Mapping[Place, str], lengths: Lengths) -> dict[Place, int]:
        found = {}
        for (worker, tier, level), queue in asked.items():
            free = self.free(queue, self.counts(queue, lengths[queue], (worker, tier)))
            found[worker, tier, level] = max(free[urgency(level, first=False)], min(1, free[urgency(level)]))
        return {place: number for place, number in found.items() if number > 0}

    def look(self, places: Iterable[Place]) -> None:
        """See how long the queues of places are, for whoever asks for room next."""
        with suppress(BrokerUnavailableError):
            self._lengths(sorted({self._app.router.queue(*place[:2]) for place in places}))

    def _lengths(self, queues: Sequence[str]) -> Lengths:
        """Say how long queues are, or were a moment ago: what this process has sent since is counted in."""
        now, seen = time.monotonic(), self._seen
        old = self._old(queues, seen)
        if old:
            try:
                for queue, lengths in self._app.broker.lengths(old).items():
                    seen[queue] = (now, dict(lengths))
            except BrokerUnavailableError:
                self._seen = {}  # of its queues it may be so no more
                raise
            with self._lock:
                self._trusted.difference_update(old)
        return {queue: seen[queue][1] for queue in queues}

    def _old(self, queues: Sequence[str], seen: Mapping[str, _Look]) -> list[str]:
        """Name the queues that were not seen a moment ago."""
        since = time.monotonic() - _LENGTHS_KNOWN_FOR_S
        return [queue for queue in queues if queue not in seen or seen[queue][0] < since]

    def sent(self, queue: str, priority: int) -> None:
        """Hear that this process sends a message; ``priority`` is the broker's."""
        seen = self._seen.get(queue)
        if seen is not None:
            lengths = seen[1]
            place = None if None in lengths else priority
            lengths[place] = lengths.get(place, 0) + 1

    def counts(self, queue: str, lengths: Mapping[int | None, int], *routes: Route) -> Sequence[int]:
        """Say how many messages of each urgency a queue holds.

        Args:
            lengths: What the broker says of it.
            routes: Those that it serves, as far as they matter: RabbitMQ does not tell how urgent is what it holds.
                Unless the window is full it counts as least urgent.
        """
        if None not in lengths:
            return [lengths.get(self._app.broker_priority(each), 0) for each in range(backlog.URGENCIES)]
        if lengths[None] >= self.window(queue):
            return backlog.published_by_urgency(self._database, routes)
        return [lengths[None], *[0] * (backlog.URGENCIES - 1)]

    def free(self, queue: str, counts: Sequence[int]) -> tuple[int, ...]:
        """Say how many messages a queue takes of each urgency and more; never less than none."""
        window = self.window(queue)
        return tuple(max(0, window - held) for held in accumulate(reversed(counts)))[::-1]

    def window(self, queue: str) -> int:
        """Say how many messages a queue should hold."""
        return max(self._settings.window_min, self.served(queue).slots * self._settings.window_per_slot)

    def served(self, queue: str) -> nodes.Served:
        """Say how many live nodes and slots serve a queue, as it was a moment ago."""
        if time.monotonic() - self._served_read_at > _SERVED_KNOWN_FOR_S:
            self._served_read_at = time.monotonic()
            try:
                within_s = nodes.silent_after_s(self._settings.heartbeat_seconds)
                self._served = nodes.served(self._database, within_s=within_s)
            except EnvironmentNotReadyError:
                # Only advice: what is known already serves, and a finished stage must not fail for it.
                logger.debug("the nodes' slots could not be read")
        return self._served.get(queue, _UNSERVED)
