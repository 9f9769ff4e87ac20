"""A slot's turn: with one message in hand it goes straight on with what is ready, without Celery's hop.

The hop costs several times what a small stage takes. So a process that has ended a stage claims the next one in the
same call, if its own node serves that queue and no limit is asked: a child that has become ready, or what waits for the
same worker. Workers that take next to nothing are taken several at a time. After a moment, or where there is nothing to
go on with, the slot fetches what is next in turn on the node's queues.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.ids import uuid7
from loomq.queues.fetch import NOTHING, Fetched
from loomq.queues.names import HEADER, urgency
from loomq.runs.turns import TURN_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loomq.runs.plan import Plan, StagePlan
    from loomq.runs.turns import Turns
    from loomq.store.stages import Claim, Outcome, Place
    from loomq.store.turns import Backlog, End, Turned
    from loomq.workers.runtime import Done

logger = logging.getLogger(__name__)

_LONGEST_BATCH_S = 1.0


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
        self._ends_at = time.monotonic() + turns.longest_s
        self._is_over = alone
        self._is_dry = False  # nothing was on the queues a moment ago
        self._fetched = NOTHING
        self._wanted: tuple[str, str] | None = None
        self._freed: dict[tuple[str, str], tuple[StagePlan, bool]] = {}

    def begin(self) -> list[Claim]:
        """Give what there is to do."""
        self._in_hand, self.todo = self.todo, []
        return self._in_hand

    def record(self, ends: Sequence[End], backlog: Backlog | None) -> Turned:
        """End stages, and claim what this turn goes on with: what was fetched, and what waits."""
        pulled = [(key, uuid7()) for key in self._fetched.keys]
        try:
            found = self._turns.call(ends, self.place, backlog, pulled)
        except Exception:
            if not ends or not (backlog or pulled):
                raise
            # What others wait for has nothing to do with what has ended here.
            logger.exception("what was fetched cannot be claimed; the end of stages is recorded without it")
            self.put_back()
            found = self._turns.call(ends, self.place)
        if found.is_leaving:
            self.put_back()
        return found

    def in_time(self, request: Any, claims: Sequence[Claim]) -> Iterator[Claim]:
        """Give claims one by one, while there is time: what waits behind others has its deadline, too.

        They were taken together since each takes next to nothing. If one takes long, others get the rest.
        """
        until = time.monotonic() + _LONGEST_BATCH_S
        for number, claim in enumerate(claims):
            if number and time.monotonic() > until:
                for one in claims[number:]:
                    self.drop(request, one)
                self._turns.hand_back(claims[number:])
                return
            yield claim

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
            self._fetch(self.own.worker, self.own.tier, 0)
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
            self._fetch(worker, tier, max(map(self._urgency_below, ended), default=0))
            self._until = now + TURN_S
        elif self._turns.fetches and not self.takes and not any(map(self._children, ended)):
            self._fetch(worker, tier, 0)
        if self._fetched.keys:  # what the message in hand would have sent when it is done with is sent now
            self._cut_chain(request)

    def _urgency_below(self, one: Ended) -> int:
        """Say how urgent the most urgent child of a stage is that this slot could go on with; 0 if there is none."""
        levels = (one.claim.priority if child.priority is None else child.priority for child in self._children(one))
        return max((urgency(level) for level in levels), default=0)

    def _fetch(self, worker: str, tier: str, least: int) -> None:
        try:
            self._fetched = self._turns.fetch(worker, tier, least)
        except Exception:
            logger.exception("nothing can be fetched; what has ended is recorded all the same")
            self._fetched = Fetched(is_stopped=True)
        self._is_over |= self._fetched.is_stopped
        self._is_dry = not self._fetched.keys

    def put_back(self) -> None:
        """Let others have what was fetched, since it is not claimed; the turn is over."""
        fetched, self._fetched = self._fetched, NOTHING
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
        self._fetched = NOTHING
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
            self._cut_chain(request)

    def _cut_chain(self, request: Any) -> None:
        """Let the message in hand send nothing when it is done with."""
        request.chain = request.chord = None
        self.carrier = None


def carried_by(request: Any) -> tuple[str, ...]:
    """Name the stages that a message publishes by itself: the next of its chain, and the body of its chord."""
    following = [*(request.chain or ())[-1:], *([request.chord] if request.chord else ())]
    return tuple(
        signature["args"][1] for signature in following if HEADER in (signature["options"].get("headers") or {})
    )
