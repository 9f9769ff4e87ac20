"""A slot's turn: with one message in hand it goes straight on with what is ready, without Celery's hop.

The hop costs several times what a small stage takes. So a process that has ended a stage claims the next one in the
same call, if its own node serves that queue and no limit is asked: a child that has become ready, or what waits for the
same worker. Workers that take next to nothing are taken several at a time. After a moment, or where there is nothing to
go on with, the slot fetches what is next in turn on the node's queues.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from loomq.errors import BrokerUnavailableError
from loomq.ids import uuid7
from loomq.queues.fetch import NOTHING, Fetched, Fetcher
from loomq.queues.names import HEADER
from loomq.store.backlog import URGENCIES
from loomq.store.turns import Backlog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from loomq.configs import Configs
    from loomq.queues.app import LoomCelery
    from loomq.runs.plan import Plan, StagePlan
    from loomq.runs.publish import Publisher
    from loomq.store.stages import Claim, Outcome, Place, StageKey
    from loomq.workers.runtime import Done

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


class Turns:
    """What a process knows of its workers and of its node, for its turns.

    Args:
        served: Gives the queues that the node consumed when this process began.
    """

    def __init__(
        self, app: LoomCelery, publisher: Publisher, configs: Configs, served: Callable[[], frozenset[str]]
    ) -> None:
        self._app = app
        self._publisher = publisher
        self._configs = configs
        self._began_with = served
        self._queues: frozenset[str] | None = None
        self._fetcher = Fetcher(app.broker) if app.is_redis else None
        self._lanes: tuple[tuple[frozenset[str], object, object] | None, dict[str, str | None]] = (None, {})
        self._known: dict[str, _Known] = {}

    def learn_queues(self, queues: frozenset[str] | None) -> None:
        """Hear which queues the node serves by now: a pool's child is told nothing when its parent is."""
        if queues != self._queues:
            self._queues = queues

    def _served(self) -> frozenset[str]:
        return self._began_with() if self._queues is None else self._queues

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
        spec = self._configs.project.catalog.workers.get(worker)
        return (
            self._app.router.queue(worker, tier) in self._served()
            and self._publisher.share_of(worker, tier) is None
            and self._configs.limits.slots(worker) is None
            and (spec is None or spec.concurrency_key is None)
        )

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
    def fetches(self) -> bool:
        """Whether slots can take from the queues by themselves."""
        return self._fetcher is not None

    def fetch(self, worker: str, tier: str) -> Fetched:
        """Take what is next in turn on the node's queues; on RabbitMQ only say whether anything waits for a route."""
        if self._fetcher is not None:
            lanes = self._open_lanes()
            return self._fetcher.fetch({name: self.at_once(worker) if worker else 0 for name, worker in lanes.items()})
        queue = self._app.router.queue(worker, tier)
        try:
            return Fetched(is_stopped=any(self._app.broker.lengths([queue])[queue].values()))
        except BrokerUnavailableError:
            return NOTHING

    def _open_lanes(self) -> dict[str, str | None]:
        """Name the worker of each of the node's queues; ``None`` where only Celery may take."""
        limiter = self._app.limiter
        seen = (self._served(), self._configs.project, limiter.rates)
        known = self._lanes[0]
        if known is None or known[0] != seen[0] or known[1] is not seen[1] or known[2] is not seen[2]:
            found: dict[str, str | None] = dict.fromkeys(sorted(seen[0]))
            for worker, tier in self._app.router.routes_in_use:
                queue = self._app.router.queue(worker, tier)
                if queue in found and self.may_take(worker, tier):
                    found[queue] = worker
            self._lanes = (seen, found)
        return self._lanes[1]

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
            counts = self._publisher.counts(queue, self._app.broker.lengths([queue])[queue], (worker, tier))
        except BrokerUnavailableError:
            counts = [0]
        free = tuple(0 if sum(counts[urgency + 1 :]) else limit for urgency in range(URGENCIES))
        if not any(free):
            return None
        return Backlog([(worker, tier)], [free], [uuid7() for _ in range(limit)], self._publisher.fairness)


@dataclass(frozen=True, slots=True)
class Ended:
    """A stage that has given a result.

    Args:
        text: The output as it is kept.
    """

    plan: Plan
    stage: StagePlan
    claim: Claim
    done: Done
    text: str


class Turn:
    """What is done with one message.

    Args:
        own: What the message was for.
        alone: Whether nothing else may be done with it: a raw call, whose caller waits.
    """

    def __init__(self, turns: Turns, own: Claim, place: Place, *, alone: bool) -> None:
        self.own = own
        self.place = place
        self.todo: list[Claim] = [own]
        #: The claim that the rest of the message's chain follows.
        self.carrier: Claim | None = own
        self._in_hand: list[Claim] = []
        self._turns = turns
        self._until = time.monotonic() + TURN_S
        self._ends_at = time.monotonic() + _LONGEST_S
        self._is_over = alone
        self._is_dry = False  # nothing was on the queues a moment ago
        self._fetched = NOTHING
        #: What was fetched and has to be claimed, with tokens.
        self.pulled: list[tuple[StageKey, UUID]] = []
        self._wanted: tuple[str, str] | None = None
        self._freed: dict[tuple[str, str], tuple[StagePlan, bool]] = {}

    def begin(self) -> list[Claim]:
        """Give what there is to do."""
        self._in_hand, self.todo = self.todo, []
        return self._in_hand

    def leave(self, claim: Claim) -> None:
        """Hear that a claim is done with: what comes of it is not this turn's business."""
        self._in_hand = [one for one in self._in_hand if one is not claim]

    @property
    def left(self) -> list[Claim]:
        """What is claimed besides the message's own stage and neither ended nor failed."""
        return [claim for claim in (*self._in_hand, *self.todo) if claim is not self.own]

    def more(self) -> bool:
        """Say whether there is anything to do; if nothing is in hand, after a look at the queues."""
        is_idle = not self.todo and not self.takes
        if is_idle and self._turns.fetches and not self._is_over and not self._is_dry and not self._is_late:
            self._fetch(self.own.worker, self.own.tier)
        return bool(self.todo or self.takes or self._fetched.keys)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() >= self._ends_at

    def look(self, request: Any, ended: Sequence[Ended]) -> None:
        """Fetch what is next before stages are ended: if it is others' turn, or these leave nothing to go on with."""
        if self._is_over or self._fetched.keys:
            return
        now, (worker, tier) = time.monotonic(), self._wanted or (self.own.worker, self.own.tier)
        if self._is_late:
            self._is_over = True
        elif now >= self._until:
            self._fetch(worker, tier)
            self._until = now + TURN_S
        elif self._turns.fetches and not self.takes and not any(map(self._children, ended)):
            self._fetch(worker, tier)
        if self._fetched.keys:  # what the message in hand would have sent when it is done with is sent now
            request.chain = request.chord = None
            self.carrier = None

    def _fetch(self, worker: str, tier: str) -> None:
        self._fetched = self._turns.fetch(worker, tier)
        self.pulled = [(key, uuid7()) for key in self._fetched.keys]
        self._is_over |= self._fetched.is_stopped
        self._is_dry = not self._fetched.keys

    def put_back(self) -> None:
        """Let others have what was fetched, since it is not claimed; the turn is over."""
        fetched, self._fetched, self.pulled = self._fetched, NOTHING, []
        self._is_over = True
        if fetched.keys:
            self._turns.put_back(fetched)

    def carried(self, request: Any, claim: Claim) -> tuple[str, ...]:
        """Name the children of a stage that the message in hand publishes by itself."""
        return carried_by(request) if claim is self.carrier else ()

    def children(self, one: Ended) -> list[StagePlan]:
        """List the children of a stage to go on with."""
        return [] if self._is_over or self._fetched.keys else self._children(one)

    def _children(self, one: Ended) -> list[StagePlan]:
        return self._turns.children(one.plan, one.stage) if one.plan.graph.children[one.claim.key.name] else []

    def most(self, stages: Sequence[StagePlan]) -> int:
        """Say how many of some stages to go on with: one, and all if they take next to nothing; others run the rest."""
        return len(stages) if all(self._turns.at_once(one.worker.name) > 1 for one in stages) else 1

    def note(self, stage: StagePlan, outcome: Outcome, carried: Sequence[str]) -> None:
        """Hear what the end of a stage led to."""
        route = (stage.worker.name, stage.tier)
        has_backlog = outcome.backlog or self._freed.get(route, (stage, False))[1]
        self._freed[route] = (stage, has_backlog)
        if any(name in outcome.published for name in carried):
            self._is_over = True  # Celery sends it when this message is done with
        if outcome.backlog and self._turns.at_once(stage.worker.name) > 1:
            self._wanted = route

    def freed(self) -> list[tuple[StagePlan, bool]]:
        """List the stages whose place others may have, with whether more of their own work waits; each once."""
        found, self._freed = list(self._freed.values()), {}
        return found

    @property
    def takes(self) -> bool:
        """Whether to take what waits for a route."""
        return self._wanted is not None and not self._is_over and not self._fetched.keys

    def backlog(self) -> Backlog | None:
        """Ask for what waits, if there is time for it."""
        if not self.takes or self._wanted is None:
            return None
        (worker, tier), self._wanted = self._wanted, None
        return self._turns.backlog(worker, tier, self._turns.at_once(worker))

    def take(self, request: Any, claims: Sequence[Claim]) -> None:
        """Go on with claims; one that the message would have published is taken out of it."""
        self.todo += claims
        self._in_hand = []
        self._fetched, self.pulled = NOTHING, []
        self._is_dry &= not claims
        if self.carrier is None:
            return
        for name in carried_by(request):
            for claim in claims:
                if (claim.key.goal_id, claim.key.name) == (self.carrier.key.goal_id, name):
                    self._move_carrier(request, claim)
                    return

    def _move_carrier(self, request: Any, claim: Claim) -> None:
        if request.chain:
            request.chain.pop()
        else:
            request.chord = None
        self.carrier = claim

    def drop(self, request: Any, claim: Claim) -> None:
        """Hear that a claim has led to no result: if the rest of the message followed it, nothing does now."""
        self.leave(claim)
        if claim is self.carrier:
            request.chain = request.chord = None
            self.carrier = None


def carried_by(request: Any) -> tuple[str, ...]:
    """Name the stages that a message publishes by itself: the next of its chain, and the body of its chord."""
    following = [*(request.chain or ())[-1:], *([request.chord] if request.chord else ())]
    return tuple(
        signature["args"][1] for signature in following if HEADER in (signature["options"].get("headers") or {})
    )
