"""From ready rows to messages: the one way that stages reach the broker, whoever made them ready."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from celery import chain, chord

from loomq.errors import BrokerUnavailableError, EnvironmentNotReadyError
from loomq.pipelines.canvas import Segment, segments
from loomq.queues.names import HEADER, STAGE_GROUP, StageMessage, task_name
from loomq.store import nodes, stages
from loomq.store.stages import StageKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from loomq.errors import LoomqError
    from loomq.queues.app import LoomCelery
    from loomq.runs.plan import Plan
    from loomq.settings import Settings
    from loomq.store.engine import Database
    from loomq.store.stages import Due

logger = logging.getLogger(__name__)

_SLOTS_KNOWN_FOR_S = 5.0


class Publisher:
    """Keep each queue's window filled.

    The broker holds a window of a few messages a live slot; the rest stays ready in Postgres and is topped up. So a
    broker that loses its data loses little, and no backlog is ever sent twice.
    """

    def __init__(self, settings: Settings, database: Database, app: LoomCelery) -> None:
        self._settings = settings
        self._database = database
        self._app = app
        self._slots: dict[str, int] = {}
        self._slots_read_at = float("-inf")

    def room(self, routes: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Say how many more messages each (worker, tier) route's queue takes; nothing if the broker is out of reach."""
        asked = list(dict.fromkeys(routes))
        queues = {route: self._app.router.queue(*route) for route in asked}
        try:
            lengths = self._app.broker.lengths(sorted(set(queues.values())))
        except BrokerUnavailableError:
            return {}
        windows = {route: self.window(queue) - lengths[queue] for route, queue in queues.items()}
        return {route: free for route, free in windows.items() if free > 0}

    def window(self, queue: str) -> int:
        """Say how many messages a queue should hold."""
        if time.monotonic() - self._slots_read_at > _SLOTS_KNOWN_FOR_S:
            self._slots_read_at = time.monotonic()
            try:
                self._slots = nodes.slots_by_queue(self._database, within_s=4 * self._settings.lease_seconds)
            except EnvironmentNotReadyError:
                # Only advice: what is known already serves, and a finished stage must not fail for it.
                logger.debug("the nodes' slots could not be read")
        return max(self._settings.window_min, self._slots.get(queue, 0) * self._settings.window_per_slot)

    def publish(self, goal_id: UUID, plan: Plan, names: Sequence[str], priority: int) -> None:
        """Send stages that are marked as published: compile the segments that start at them and apply those.

        What cannot be sent is marked as ready again.

        Args:
            priority: The goal's level, for stages that have none of their own.
        """
        for segment in segments(plan.graph, names, alone=plan.alone):
            starts = [StageKey(goal_id, run[0]) for run in segment.runs]
            canvas = self._canvas(goal_id, plan, segment, priority)
            self._send(starts, lambda producer, canvas=canvas: canvas.apply_async(producer=producer, retry=False))

    def top_up(self, worker: str, tier: str, at_least: int = 1) -> int:
        """Move waiting stages of one route into its queue's window.

        Args:
            at_least: Do nothing if the queue takes fewer than this.

        Returns:
            How many were sent.
        """
        free = self.room([(worker, tier)]).get((worker, tier), 0)
        if free < at_least:
            return 0
        due = stages.take_ready(self._database, worker, tier, free)
        for stage in due:
            self.send_due(worker, tier, stage)
        return len(due)

    def send_due(self, worker: str, tier: str, due: Due) -> None:
        """Send one stage as a message of its own, with what Celery attached to it if it was a raw call."""
        key = due.key
        if due.task_id is None:
            signature = self._signature(key, worker, tier, due.priority)
        else:
            message = StageMessage(key.goal_id, key.name, key.item)
            canvas = due.canvas or {}
            options = {
                **canvas,
                **self.call_options(worker, tier, due.priority, due.task_id, canvas.get("headers")),
            }
            signature = self._app.signature(task_name(worker), args=message.args, immutable=True, options=options)
        self._send([key], lambda producer: signature.apply_async(producer=producer, retry=False))

    def call_options(
        self, worker: str, tier: str, priority: int, task_id: str, headers: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Give the sending options of a raw call's message; ``headers`` are the caller's own."""
        return {
            "queue": self._app.router.queue(worker, tier),
            "task_id": task_id,
            "priority": self._app.broker_priority(priority),
            "headers": {**(headers or {}), HEADER: {"priority": priority, "call": True}},
            "retry": False,
        }

    def not_sent(self, keys: list[StageKey], error: LoomqError) -> None:
        """Make stages ready again that did not reach the broker; what cannot even be said, the sweeper finds."""
        logger.warning("%s; %d stages wait in the database", error.message, len(keys))
        try:
            stages.unpublish(self._database, keys)
        except EnvironmentNotReadyError:
            logger.warning("and the database is out of reach: the sweeper will find them")

    def _send(self, keys: list[StageKey], work: Any) -> None:
        try:
            self._app.broker.run(work)
        except BrokerUnavailableError as error:
            self.not_sent(keys, error)

    def _canvas(self, goal_id: UUID, plan: Plan, segment: Segment, priority: int) -> Any:
        def signature(name: str) -> Any:
            stage = plan.stages[name]
            own = priority if stage.priority is None else stage.priority
            return self._signature(StageKey(goal_id, name), stage.worker.name, stage.tier, own)

        runs = [chain(*map(signature, run)) if len(run) > 1 else signature(run[0]) for run in segment.runs]
        if segment.join is None:
            return runs[0]
        joined = chord(runs, signature(segment.join), app=self._app)
        joined.options["task_id"] = f"{STAGE_GROUP}{goal_id}-{segment.join}"  # the header's: Celery makes it anew
        return joined

    def _signature(self, key: StageKey, worker: str, tier: str, priority: int) -> Any:
        message = StageMessage(key.goal_id, key.name, key.item)
        return self._app.signature(
            task_name(worker),
            args=message.args,
            immutable=True,
            options={
                "queue": self._app.router.queue(worker, tier),
                "task_id": message.id,
                "priority": self._app.broker_priority(priority),
                "headers": {HEADER: {"priority": priority}},
                "retry": False,
            },
        )
