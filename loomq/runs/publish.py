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
from loomq.queues.names import HEADER, STAGE_GROUP, StageMessage, task_name
from loomq.runs.windows import Windows
from loomq.store import backlog
from loomq.store import limits as limited
from loomq.store.backlog import Fairness
from loomq.store.stages import StageKey

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from loomq.errors import LoomqError
    from loomq.queues.app import LoomCelery
    from loomq.runs.plan import Plan
    from loomq.runs.windows import Route
    from loomq.settings import Settings
    from loomq.store.backlog import Due
    from loomq.store.engine import Database

logger = logging.getLogger(__name__)

_FIRSTS_EVERY_S = 0.02
_TOP_UP_EVERY_S = 0.01
_SHARE_OF_THE_OLD = 1 / 8
_AGAIN_S = 1.0
_PLANS_KEPT = 256


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
        self._database = database
        self._app = app
        self.windows = Windows(settings, database, app)
        self.fairness = Fairness(settings.ageing_seconds, _SHARE_OF_THE_OLD)
        self._firsts_at: dict[str, float] = {}
        self._topped_at: dict[str, float] = {}
        self._lock = threading.Lock()
        self._topping: dict[str, bool] = {}  # with whether somebody else has asked meanwhile
        self._alone: dict[int, tuple[Plan, object, object, frozenset[str]]] = {}

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
            counts = self.windows.counts(queue, self._app.broker.lengths([queue])[queue], route)
        except BrokerUnavailableError:
            return 0
        free = self.windows.free(queue, counts)
        if light:
            return self._take([route], [free], min(max(free), self.windows.served(queue).slots - sum(counts)))
        if free[0] >= at_least or at_least == 1:
            return self._take([route], [free], max(free))
        return self._take_firsts(queue, route, free, sum(counts[1::2]))

    def _take_firsts(self, queue: str, route: Route, free: Sequence[int], waiting: int) -> int:
        """Let goals that have no first message on a full queue have one each, for what will soon be free.

        Args:
            waiting: How many first messages it holds.
        """
        now, slots = time.monotonic(), max(1, self.windows.served(queue).slots)
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
        known = {route: queue for route in named if self.windows.served(queue := self._app.router.queue(*route)).nodes}
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
        windows = self.windows
        free = [windows.free(queue, windows.counts(queue, lengths[queue], route)) for route, queue in known.items()]
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
        self.windows.sent(queue, sent_as)
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
