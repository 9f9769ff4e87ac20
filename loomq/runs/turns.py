"""What a process knows of its workers and of its node, for the turns of its slots."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from loomq.errors import BrokerUnavailableError, EnvironmentNotReadyError
from loomq.ids import uuid7
from loomq.queues.fetch import NOTHING, Fetched, Fetcher
from loomq.runs.persist import persist
from loomq.store import stages, turns
from loomq.store.backlog import URGENCIES
from loomq.store.turns import Backlog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from loomq.configs import Configs
    from loomq.queues.app import LoomCelery
    from loomq.runs.plan import Plan, StagePlan
    from loomq.runs.publish import Publisher
    from loomq.store.stages import Claim, Place, StageKey
    from loomq.store.turns import End, Turned

logger = logging.getLogger(__name__)

TURN_S = 0.05
_LONGEST_S = 5.0  # then Celery sees that its task has ended
_LIGHT_S = 0.003  # what takes longer is run one at a time
_BATCH_S = 0.01  # of work between two calls to the database
_MOST = 64
_SEEN = 2  # runs before anything is known of a worker
_FADES = 0.97
_SHARE = 0.1  # of the last run in the mean


class _Known(NamedTuple):
    """What is known of a worker: how often it has run here, and how long it took."""

    runs: int
    slowest_s: float
    mean_s: float


_NOTHING = _Known(0, 0.0, 0.0)


@dataclass
class _Seen:
    """What follows from the files, the queues served and the rates set by hand, as long as they stay.

    Args:
        takes: Whether the node serves a route (worker, tier), and nothing limits it.
        lanes: The worker of each of the node's queues; ``None`` where only Celery may take.
    """

    served: frozenset[str]
    project: object
    rates: object
    takes: dict[tuple[str, str], bool] = field(default_factory=dict)
    lanes: dict[str, str | None] | None = None


class Turns:
    """What a process knows of its workers and of its node, for its turns.

    Args:
        served: Gives the queues that the node consumes.
    """

    def __init__(
        self, app: LoomCelery, publisher: Publisher, configs: Configs, served: Callable[[], frozenset[str]]
    ) -> None:
        self._app = app
        self._publisher = publisher
        self._configs = configs
        self._served = served
        self._fetcher = Fetcher(app.broker) if app.is_redis else None
        self._seen: _Seen | None = None
        self._known: dict[str, _Known] = {}

    def call(
        self,
        ends: Sequence[End],
        place: Place,
        backlog: Backlog | None = None,
        pulled: Sequence[tuple[StageKey, UUID]] = (),
    ) -> Turned:
        """End stages and claim others in one call to the store; see ``store.turns.turn``."""
        database, lease_s = self._app.database, self._app.loom_settings.lease_seconds
        found = persist(lambda: turns.turn(database, ends, place, lease_s, backlog, pulled))
        if found.claims:
            self._app.limiter.learn(found.claims[0].rates)
        return found

    def hand_back(self, claims: Sequence[Claim]) -> None:
        """Let others have what was claimed and not run."""
        for claim in claims:
            logger.info("stage %s of goal %s is handed back", claim.key.name, claim.key.goal_id)
            persist(partial(stages.release, self._app.database, claim.key, claim.token, "interrupted"))
        for worker, tier in {(claim.worker, claim.tier) for claim in claims}:
            with suppress(EnvironmentNotReadyError):  # else the sweeper sends them
                self._publisher.top_up(worker, tier)

    def learn(self, worker: str, took_s: float) -> None:
        """Note how long a worker's task took; what was slow once counts for a while."""
        before = self._known.get(worker, _NOTHING)
        mean = took_s if before.runs == 0 else before.mean_s + _SHARE * (took_s - before.mean_s)
        self._known[worker] = _Known(before.runs + 1, max(took_s, before.slowest_s * _FADES), mean)

    def at_once(self, worker: str) -> int:
        """Say how many tasks of a worker a process takes at a time: one, unless they take next to nothing."""
        known = self._known.get(worker, _NOTHING)
        if known.runs < _SEEN or known.slowest_s > _LIGHT_S:
            return 1
        return max(1, min(_MOST, int(_BATCH_S / max(known.mean_s, 1e-6))))

    def may_take(self, worker: str, tier: str) -> bool:
        """Say whether this node serves a route, and nothing limits it."""
        seen = self._now()
        found = seen.takes.get((worker, tier))
        if found is None:
            spec = self._configs.project.catalog.workers.get(worker)
            found = seen.takes[worker, tier] = (
                self._app.router.queue(worker, tier) in seen.served
                and self._publisher.share_of(worker, tier) is None
                and self._configs.limits.slots(worker) is None
                and (spec is None or spec.concurrency_key is None)
            )
        return found

    def _now(self) -> _Seen:
        served, project, rates = self._served(), self._configs.project, self._app.limiter.rates
        seen = self._seen
        if seen is None or seen.served != served or seen.project is not project or seen.rates is not rates:
            seen = self._seen = _Seen(served, project, rates)
        return seen

    def children(self, plan: Plan, stage: StagePlan) -> list[StagePlan]:
        """List the children of a stage that its process may go on with."""
        if plan.kind != "pipeline":
            return []
        below = (plan.stages[name] for name in plan.graph.children[stage.name] if name not in plan.unsure)
        return [
            child
            for child in below
            if child.pipeline is None
            and child.worker.concurrency_key is None
            and self.may_take(child.worker.name, child.tier)
        ]

    @property
    def longest_s(self) -> float:
        """How long a turn may take; of a node with the solo pool everything else waits for it."""
        return TURN_S if self._app.is_solo else _LONGEST_S

    @property
    def fetches(self) -> bool:
        """Whether slots can take from the queues by themselves."""
        return self._fetcher is not None

    def fetch(self, worker: str, tier: str, least: int) -> Fetched:
        """Take what is next in turn on the node's queues; on RabbitMQ only say whether anything waits for a route.

        Args:
            least: Nothing that is less urgent than this.
        """
        if self._fetcher is not None:
            lanes = self._open_lanes()
            most = {name: self.at_once(worker) if worker else 0 for name, worker in lanes.items()}
            return self._fetcher.fetch(most, least)
        queue = self._app.router.queue(worker, tier)
        try:
            return Fetched(is_stopped=any(self._app.broker.lengths([queue])[queue].values()))
        except BrokerUnavailableError:
            return NOTHING

    def _open_lanes(self) -> dict[str, str | None]:
        """Name the worker of each of the node's queues; ``None`` where only Celery may take."""
        seen = self._now()
        if seen.lanes is None:
            found: dict[str, str | None] = dict.fromkeys(sorted(seen.served))
            for worker, tier in self._app.router.routes_in_use:
                queue = self._app.router.queue(worker, tier)
                if queue in found and self.may_take(worker, tier):
                    found[queue] = worker
            seen.lanes = found
        return seen.lanes

    def put_back(self, fetched: Fetched) -> None:
        """Let others have what was taken and not claimed."""
        try:
            if self._fetcher is not None:
                self._fetcher.put_back(fetched)
        except BrokerUnavailableError as error:
            self._publisher.not_sent(list(fetched.keys), error)

    def backlog(self, worker: str, tier: str, limit: int) -> Backlog | None:
        """Ask for what waits for a route; not for what is less urgent than what the broker holds for it.

        Returns:
            ``None`` if it may not be asked for.
        """
        if not self.may_take(worker, tier):
            return None
        queue = self._app.router.queue(worker, tier)
        try:
            counts = self._publisher.windows.counts(queue, self._app.broker.lengths([queue])[queue], (worker, tier))
        except BrokerUnavailableError:
            counts = [0]
        free = tuple(0 if sum(counts[urgency + 1 :]) else limit for urgency in range(URGENCIES))
        if not any(free):
            return None
        return Backlog([(worker, tier)], [free], [uuid7() for _ in range(limit)], self._publisher.fairness)
