"""From ready rows to messages: the one way that stages reach the broker, whoever made them ready."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import chain, chord

from loomq.errors import BrokerUnavailableError, EnvironmentNotReadyError
from loomq.pipelines.canvas import Segment, segments
from loomq.queues.names import HEADER, STAGE_GROUP, StageMessage, task_name, urgency
from loomq.store import backlog, nodes
from loomq.store import limits as limited
from loomq.store.backlog import Fairness
from loomq.store.stages import StageKey

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from uuid import UUID

    from loomq.errors import LoomqError
    from loomq.queues.app import LoomCelery
    from loomq.queues.broker import Lengths
    from loomq.runs.plan import Plan
    from loomq.settings import Settings
    from loomq.store.backlog import Due
    from loomq.store.engine import Database

logger = logging.getLogger(__name__)

_SERVED_KNOWN_FOR_S = 2.0
_FIRSTS_EVERY_S = 0.02
_LENGTHS_KNOWN_FOR_S = 0.02
_TOP_UP_EVERY_S = 0.01
_SHARE_OF_THE_OLD = 1 / 8
_AGAIN_S = 1.0
_PLANS_KEPT = 256
_UNSERVED = nodes.Served(0, 0)

Route = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Fed:
    """What feeding a share of limited work led to.

    Args:
        sent: How many messages.
        wait_s: How long nothing more may start, as far as is known; 0 if it is not a rate that is waited for.
    """

    sent: int = 0
    wait_s: float = 0.0


class Publisher:
    """Keep each queue's window filled.

    The broker holds a window of a few messages a live slot; the rest stays ready in Postgres and is topped up. So a
    broker that loses its data loses little, and no backlog is ever sent twice. Work under a limit is sent when it may
    start, and not before.
    """

    def __init__(self, settings: Settings, database: Database, app: LoomCelery) -> None:
        self._settings = settings
        self._database = database
        self._app = app
        self.fairness = Fairness(settings.ageing_seconds, _SHARE_OF_THE_OLD)
        self._served: dict[str, nodes.Served] = {}
        self._served_read_at = float("-inf")
        self._firsts_at: dict[str, float] = {}
        self._topped_at: dict[str, float] = {}
        self._lock = threading.Lock()
        self._topping: dict[str, bool] = {}  # with whether somebody else has asked meanwhile
        self._lengths_at: dict[str, tuple[float, dict[int | None, int]]] = {}
        self._alone: dict[int, tuple[Plan, object, object, frozenset[str]]] = {}

    def room(self, places: Iterable[tuple[str, str, int]]) -> dict[tuple[str, str, int], int]:
        """Say how many more messages of a level each (worker, tier, level) takes on its queue.

        What is urgent is taken though less urgent messages fill the window. Nothing is said of work under a limit,
        which is fed, nor of any if the broker is out of reach.
        """
        asked = {place: self._app.router.queue(*place[:2]) for place in places if not self.share_of(*place[:2])}
        try:
            lengths = self._lengths(sorted(set(asked.values())))
        except BrokerUnavailableError:
            return {}
        found = {}
        for (worker, tier, level), queue in asked.items():
            free = self.free(queue, self.counts(queue, lengths[queue], (worker, tier)))
            found[worker, tier, level] = max(free[urgency(level, first=False)], min(1, free[urgency(level)]))
        return {place: number for place, number in found.items() if number > 0}

    def _lengths(self, queues: Sequence[str]) -> Lengths:
        """Say how long queues are, or were a moment ago: what this process has sent since is counted in."""
        now = time.monotonic()
        old = [queue for queue in queues if now - self._lengths_at.get(queue, (0.0, {}))[0] > _LENGTHS_KNOWN_FOR_S]
        if old:
            for queue, lengths in self._app.broker.lengths(old).items():
                self._lengths_at[queue] = (now, dict(lengths))
        return {queue: self._lengths_at[queue][1] for queue in queues}

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
        return tuple(max(0, window - sum(counts[each:])) for each in range(backlog.URGENCIES))

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

    def share_of(self, worker: str, tier: str) -> str | None:
        """Name what a route's work shares its limits with; ``None`` if it has none."""
        return self._app.limiter.shared_by(worker, tier)

    def _limited(self, plan: Plan) -> frozenset[str]:
        """Name the stages of a plan that are under a limit: no chain or chord may carry them past it."""
        limiter = self._app.limiter
        limits, rates = limiter.limits, limiter.rates
        if not limits.limits_anything and not rates:
            return frozenset()
        known = self._alone.get(id(plan))
        if known is None or known[:3] != (plan, limits, rates):
            if len(self._alone) >= _PLANS_KEPT:
                self._alone.clear()
            found = frozenset(
                name for name, stage in plan.stages.items() if self.share_of(stage.worker.name, stage.tier)
            )
            known = self._alone[id(plan)] = (plan, limits, rates, found)
        return known[3]

    def publish(
        self, goal_id: UUID, plan: Plan, names: Sequence[str], priority: int, bulk: Collection[str] = ()
    ) -> None:
        """Send stages that are marked as published: compile the segments that start at them and apply those.

        What cannot be sent is marked as ready again.

        Args:
            priority: The goal's level, for stages that have none of their own.
            bulk: Those that stand behind another one of the goal on the same queue.
        """
        for segment in segments(plan.graph, names, alone=plan.alone | self._limited(plan)):
            starts = [StageKey(goal_id, run[0]) for run in segment.runs]
            canvas = self._canvas(goal_id, plan, segment, priority, bulk)
            self._send(starts, lambda producer, canvas=canvas: canvas.apply_async(producer=producer, retry=False))

    def top_up(self, worker: str, tier: str, at_least: int = 1, *, light: bool = False) -> int:
        """Move waiting stages of one route into its queue's window, or as many as may start if it is under a limit.

        Args:
            at_least: If the queue takes fewer than this, only goals that have nothing on it get their turn.
            light: Whether slots take much of it at a time by themselves: then a message for each is enough.

        Returns:
            How many were sent.
        """
        share = self.share_of(worker, tier)
        if share is not None:
            return self.feed(share, (worker, tier)).sent
        queue = self._app.router.queue(worker, tier)
        if at_least == 1:
            return self._top_up(queue, (worker, tier), at_least, light=light)
        # Asked for at each end of a stage: of a hundred threads that end at once one does it for all.
        with self._lock:
            if queue in self._topping:
                self._topping[queue] = True
                return 0
            if time.monotonic() - self._topped_at.get(queue, 0.0) < _TOP_UP_EVERY_S:
                return 0
            self._topping[queue] = False
        try:
            sent = self._top_up(queue, (worker, tier), at_least, light=light)
            if self._topping[queue]:  # it may have counted before others were done with theirs
                sent += self._top_up(queue, (worker, tier), at_least, light=light)
            return sent
        finally:
            with self._lock:
                del self._topping[queue]
                self._topped_at[queue] = time.monotonic()

    def _top_up(self, queue: str, route: Route, at_least: int, *, light: bool) -> int:
        try:
            counts = self.counts(queue, self._app.broker.lengths([queue])[queue], route)
        except BrokerUnavailableError:
            return 0
        free = self.free(queue, counts)
        if light:
            return self._take([route], [free], min(max(free), self.served(queue).slots - sum(counts)))
        if free[0] >= at_least or at_least == 1:
            return self._take([route], [free], max(free))
        return self._take_firsts(queue, route, free, sum(counts[1::2]))

    def _take_firsts(self, queue: str, route: Route, free: Sequence[int], waiting: int) -> int:
        """Let goals that have no first message on a full queue have one each, for what will soon be free.

        Args:
            waiting: How many first messages it holds.
        """
        now, slots = time.monotonic(), max(1, self.served(queue).slots)
        if waiting >= slots or now - self._firsts_at.get(queue, 0.0) < _FIRSTS_EVERY_S:
            return 0
        self._firsts_at[queue] = now
        return self._take([route], [tuple(number * (each % 2) for each, number in enumerate(free))], slots - waiting)

    def _take(self, routes: Sequence[Route], free: Sequence[Sequence[int]], limit: int) -> int:
        if limit <= 0:
            return 0
        due = backlog.take_ready(self._database, routes, free, limit, self.fairness)
        for stage in due:
            self.send_due(stage)
        return len(due)

    def feed(self, share: str, *routes: Route) -> Fed:
        """Send as much of the work that shares some limits as may start now: the most urgent, and in turn over goals.

        Whatever is sent takes from its buckets when it is claimed; so this only looks, and what was sent before counts.

        Args:
            routes: Routes that belong to it, besides those in use.
        """
        limits, rates = self._app.limiter.limits, self._app.limiter.rates
        # A queue that nobody serves must not use up what others may start.
        named = dict.fromkeys([*limits.routes_of(share, rates), *routes])
        known = {route: queue for route in named if self.served(queue := self._app.router.queue(*route)).nodes}
        tier = share.removeprefix("tier:") if share.startswith("tier:") else None
        shared = limits.of_tier(tier, rates)
        own = {route: bucket for route in known if (bucket := limits.of_worker(route[0], rates)) is not None}
        if not known:
            return Fed(wait_s=_AGAIN_S)
        try:
            buckets = list({bucket.name: bucket for bucket in (*shared, *own.values())}.values())
            levels = dict(zip(buckets, self._app.limiter.look(buckets), strict=True))
            wait_s = max((levels[bucket].wait_s for bucket in shared), default=0.0)
            if own.keys() == known.keys():
                wait_s = max(wait_s, min(levels[bucket].wait_s for bucket in own.values()))
            if wait_s > 0:
                return Fed(wait_s=wait_s)
            lengths = self._app.broker.lengths(sorted(set(known.values())))
        except BrokerUnavailableError as error:
            logger.debug("nothing of %s is sent: %s", share, error.message)
            return Fed(wait_s=_AGAIN_S)
        free = [self.free(queue, self.counts(queue, lengths[queue], route)) for route, queue in known.items()]
        found = limited.Share(
            name=share,
            routes=list(known),
            free=free,
            grants=[levels[own[route]].free if route in own else None for route in known],
            slots=[limits.slots_of(worker) for worker, _ in known],
            tier=tier,
            tier_grants=min((levels[bucket].free for bucket in shared), default=None),
            tier_slots=limits.slots_by_tier.get(tier) if tier else None,
            moved=json.dumps(limits.router.overrides),
        )
        due = limited.feed(self._database, found, max(map(max, free)), self.fairness)
        for stage in due:
            self.send_due(stage)
        return Fed(len(due))

    def send_due(self, due: Due) -> None:
        """Send one stage as a message of its own, with what Celery attached to it if it was a raw call."""
        key, worker, tier = due.key, due.worker, due.tier
        if due.task_id is None:
            signature = self._signature(key, worker, tier, due.priority, bulk=due.bulk)
        else:
            message = StageMessage(key.goal_id, key.name, key.item)
            canvas = due.canvas or {}
            options = {
                **canvas,
                **self.call_options(worker, tier, due.priority, due.task_id, canvas.get("headers"), bulk=due.bulk),
            }
            signature = self._app.signature(task_name(worker), args=message.args, immutable=True, options=options)
        self._send([key], lambda producer: signature.apply_async(producer=producer, retry=False))

    def call_options(
        self,
        worker: str,
        tier: str,
        priority: int,
        task_id: str,
        headers: dict[str, Any] | None = None,
        *,
        bulk: bool = False,
    ) -> dict[str, Any]:
        """Give the sending options of a raw call's message; ``headers`` are the caller's own."""
        header = {**_header(priority, bulk=bulk), "call": True}
        return {
            "queue": self._app.router.queue(worker, tier),
            "task_id": task_id,
            "priority": self._app.priority_of(header),
            "headers": {**(headers or {}), HEADER: header},
            "retry": False,
        }

    def not_sent(self, keys: list[StageKey], error: LoomqError) -> None:
        """Make stages ready again that did not reach the broker; what cannot even be said, the sweeper finds."""
        logger.warning("%s; %d stages wait in the database", error.message, len(keys))
        try:
            backlog.unpublish(self._database, keys)
        except EnvironmentNotReadyError:
            logger.warning("and the database is out of reach: the sweeper will find them")

    def _send(self, keys: list[StageKey], work: Any) -> None:
        try:
            self._app.broker.run(work)
        except BrokerUnavailableError as error:
            self.not_sent(keys, error)

    def _canvas(self, goal_id: UUID, plan: Plan, segment: Segment, priority: int, bulk: Collection[str] = ()) -> Any:
        def signature(name: str) -> Any:
            stage = plan.stages[name]
            own = priority if stage.priority is None else stage.priority
            return self._signature(StageKey(goal_id, name), stage.worker.name, stage.tier, own, bulk=name in bulk)

        runs = [chain(*map(signature, run)) if len(run) > 1 else signature(run[0]) for run in segment.runs]
        if segment.join is None:
            return runs[0]
        joined = chord(runs, signature(segment.join), app=self._app)
        joined.options["task_id"] = f"{STAGE_GROUP}{goal_id}-{segment.join}"  # the header's: Celery makes it anew
        return joined

    def _signature(self, key: StageKey, worker: str, tier: str, priority: int, *, bulk: bool) -> Any:
        message, header = StageMessage(key.goal_id, key.name, key.item), _header(priority, bulk=bulk)
        queue, sent_as = self._app.router.queue(worker, tier), self._app.priority_of(header)
        if queue in self._lengths_at:
            lengths = self._lengths_at[queue][1]
            place = None if None in lengths else sent_as
            lengths[place] = lengths.get(place, 0) + 1
        return self._app.signature(
            task_name(worker),
            args=message.args,
            immutable=True,
            options={
                "queue": queue,
                "task_id": message.id,
                "priority": sent_as,
                "headers": {HEADER: header},
                "retry": False,
            },
        )


def _header(priority: int, *, bulk: bool) -> dict[str, Any]:
    """Say in a message how urgent it is; what is not bulk does not say so, as before there was such a thing."""
    return {"priority": priority, "bulk": True} if bulk else {"priority": priority}
