"""The sweeper: what was lost on the way is found in the rows and set going again. One is active at a time."""

from __future__ import annotations

import logging
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from loomq.errors import BrokerUnavailableError, DatabaseUnavailableError
from loomq.runs.swept import Swept
from loomq.store import backlog, goals, limits, nodes, openings, results, rounds, stages
from loomq.store.survey import survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from uuid import UUID

    from loomq.queues.app import LoomCelery
    from loomq.queues.broker import Look
    from loomq.runs.publish import Publisher
    from loomq.runs.sequel import Sequel
    from loomq.runs.silos import Silos
    from loomq.settings import Settings
    from loomq.store.engine import Database
    from loomq.store.survey import Survey

logger = logging.getLogger(__name__)

LEADERSHIP = "sweeper"
_EMPTY_FOR_S = 3.0  # a message that left its queue is claimed or gone after so long
_SENT_WITHIN_S = 1.0  # and it is on its queue so soon after its row says so
_IN_HAND_S = 60.0  # how long a node that reserves messages may sit on one while all its slots are busy
_OVERTAKEN_S = 5.0
_STALE_S = 5.0
_NODE_FORGOTTEN_S = 300.0
_TURNS_FORGOTTEN_S = 600.0
_FORGET_EVERY_S = 60.0
_AT_ONCE = 100  # rows a transaction: other work waits for its locks
_ROWS_SHARE = 0.5  # of a pass, for what may be thousands of rows: the queues must have their turn


_OUTCOMES = {"ready": "taken_back", "retried": "timed_out", "ended": "given_up"}


class Sweeper:
    """Repair, one pass at a time.

    Two that sweep at once, because a leader was held up for longer than its lease, do no harm: every repair is one
    statement that finds out for itself whether it is still due. At worst a message is sent twice.

    Args:
        holder: Who leads: the node's id.
        who: What people call it.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        app: LoomCelery,
        publisher: Publisher,
        sequel: Sequel,
        silos: Silos,
        holder: UUID,
        who: str | None = None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._app = app
        self._publisher = publisher
        self._sequel = sequel
        self._silos = silos
        self._holder = holder
        self._who = who or f"{os.getpid()}@{socket.gethostname()}"
        self._lease_s = max(5 * settings.sweep_seconds, 3.0)
        self._led_at = 0.0
        self._pass_ends = 0.0
        self._grace_until = 0.0
        self._forget_at = 0.0
        self._chords_at = 0.0
        self._stragglers_at = 0.0
        self._empty_at: dict[tuple[str, str, int], list[float]] = {}
        self._done = Swept()

    def sweep(self) -> Swept | None:
        """Make one pass, if this node leads.

        Each step stands alone: what cannot be done for one goal must not keep the others waiting. A pass ends early
        rather than hold up the beat that extends the node's leases; the next one goes on.

        Returns:
            What was done; ``None`` if somebody else leads.

        Raises:
            DatabaseUnavailableError: The database does not answer.
        """
        self._done = Swept()
        try:
            memory = self._lead()
            if memory is None:
                self._empty_at.clear()
                return None
            self._pass_ends = self._led_at + self._settings.lease_seconds / 3
            self._pass(memory)
        except DatabaseUnavailableError:
            self._grace_until = time.monotonic() + self._settings.lease_seconds
            raise
        return self._done

    def step_down(self) -> None:
        """Let another lead at once."""
        nodes.step_down(self._database, [LEADERSHIP], self._holder)

    def _lead(self) -> dict[str, object] | None:
        memory = nodes.lead(self._database, LEADERSHIP, self._holder, self._lease_s, self._who)
        self._led_at = time.monotonic()
        return memory

    def _may_go_on(self, share: float = 1.0) -> bool:
        """Say whether there is time left for more, and renew the leadership in a long pass.

        Args:
            share: How much of a pass may be over by then.
        """
        now = time.monotonic()
        if now >= self._pass_ends - (1 - share) * self._settings.lease_seconds / 3:
            return False
        return now - self._led_at < self._lease_s / 3 or self._lead() is not None

    def _pass(self, memory: dict[str, object]) -> None:
        found = survey(self._database, _STALE_S)
        if self._set_going(found):
            found = survey(self._database, _STALE_S)
        if found.overdue:
            self._alone(self._end_overdue)
        self._alone(lambda: self._mind_queues(found, memory))
        if found.chords and time.monotonic() >= self._chords_at:
            self._chords_at = time.monotonic() + _STALE_S
            self._alone(self._finish_chords)
        if found.calls:
            self._alone(self._follow_calls)
        if time.monotonic() >= self._stragglers_at:
            self._stragglers_at = time.monotonic() + _STALE_S
            self._alone(self._settle_silos)
            self._alone(self._move_windows)
        if time.monotonic() >= self._forget_at:
            self._forget_at = time.monotonic() + _FORGET_EVERY_S
            self._alone(lambda: nodes.forget(self._database, _NODE_FORGOTTEN_S))
            self._alone(lambda: limits.prune_turns(self._database, _TURNS_FORGOTTEN_S))

    def _alone(self, step: Callable[[], object]) -> bool:
        """Take a step that must not keep the next from being taken; False if there is no time or it failed."""
        try:
            if self._may_go_on():
                step()
                return True
        except DatabaseUnavailableError:
            raise
        except BrokerUnavailableError as error:
            logger.debug("%s", error.message)
            self._done.faults.append(error.message)
        except Exception as error:
            logger.exception("a step of the sweeper failed; the others go on")
            self._done.faults.append(f"{type(error).__name__}: {error}")
        return False

    def _set_going(self, found: Survey) -> bool:
        """Do what makes stages ready; False if there was nothing."""
        is_done = found.expired and self._take_back(found.uptime_s)
        if found.keys:
            woken: list[int] = []
            self._alone(lambda: woken.append(limits.wake(self._database)))
            is_done |= sum(woken) > 0
        if found.unheard:
            is_done |= self._alone(self._tell_unheard)
        for pipeline in found.waiting:
            self._alone(partial(self._admit, pipeline))
        return is_done or self._done.admitted > 0

    def _tell_unheard(self) -> None:
        """End the stages of goals whose process died before it could."""
        for goal_id in openings.unheard(self._database, _AT_ONCE):
            self._done.told += self._alone(partial(self._sequel.close, goal_id))

    def _admit(self, pipeline: str) -> None:
        self._done.admitted += len(goals.admit(self._database, pipeline))

    def _take_back(self, uptime_s: float) -> bool:
        """Take expired leases back; not within a lease of an outage, for nobody could extend theirs in it."""
        if time.monotonic() < self._grace_until or uptime_s < self._settings.lease_seconds:
            return False
        return self._alone(self._take_all_back)

    def _take_all_back(self) -> None:
        taken: list[object] = [None] * _AT_ONCE
        while len(taken) >= _AT_ONCE and self._may_go_on(_ROWS_SHARE):
            taken = []
            for key, outcome in stages.take_back(
                self._database,
                lease_s=self._settings.lease_seconds,
                max_deliveries=self._settings.max_deliveries,
                limit=_AT_ONCE,
            ):
                logger.warning("the lease of stage %s of goal %s ran out: %s", key.name, key.goal_id, outcome)
                taken.append(key)
                counter = _OUTCOMES[outcome]
                setattr(self._done, counter, getattr(self._done, counter) + 1)

    def _end_overdue(self) -> None:
        ended: list[UUID] | None = None
        while (ended is None or len(ended) >= _AT_ONCE) and self._may_go_on(_ROWS_SHARE):
            ended = goals.end_overdue(self._database, _AT_ONCE)
            for goal_id in ended:
                logger.warning("goal %s passed its deadline", goal_id)
            self._done.overdue += len(ended)

    def _finish_chords(self) -> None:
        """Send the bodies of full chords whose last part died before it could."""
        for group_id, body in results.full_chords(self._database, _STALE_S):
            self._done.chords += self._alone(partial(self._app.backend.send_chord_body, group_id, body))

    def _follow_calls(self) -> None:
        """Send what follows raw calls whose process died before it could."""
        for goal_id in goals.unfollowed(self._database, _STALE_S):
            self._done.calls += self._alone(partial(self._app.backend.follow, goal_id))

    def _settle_silos(self) -> None:
        """Make the changes of silos whose process died before it could."""
        self._done.silo_updates += self._silos.settle_waiting()

    def _move_windows(self) -> None:
        """Let tasks of rounds go of which more could be under way."""
        for round_id in rounds.stuck(self._database, _AT_ONCE):
            self._done.windows += self._alone(partial(self._sequel.move_window, round_id))

    def _mind_queues(self, found: Survey, memory: Mapping[str, object]) -> None:
        """Make ready again what was lost on the way, and fill the queues' windows."""
        routes = found.ready | {(worker, tier) for worker, tier, _ in found.published}
        queues = {route: self._app.router.queue(*route) for route in routes}
        try:
            look = self._app.broker.look(sorted(set(queues.values())))
        except BrokerUnavailableError:
            self._empty_at.clear()
            raise
        lost = self._find_lost(found.published, queues, look, memory)
        lost |= self._raise_old(found)
        windows = self._publisher.windows
        room = {
            route: windows.free(queue, windows.counts(queue, look.lengths[queue], route))
            for route, queue in queues.items()
        }
        # The emptiest first: if the time does not suffice for all, the next pass goes on with the rest.
        for route in sorted(found.ready | lost, key=lambda route: -room[route][0]):
            if room[route][-1] > 0:
                self._alone(partial(self._top_up, route))

    def _raise_old(self, found: Survey) -> set[tuple[str, str]]:
        """Take messages off their queue that more urgent ones have kept there for long: they get a better place.

        Returns:
            Their routes.
        """
        raised = set()
        for (worker, tier, urgency), age_s in found.published.items():
            more_urgent = any(route[:2] == (worker, tier) and route[2] > urgency + 1 for route in found.published)
            if age_s > self._settings.ageing_seconds and more_urgent:
                backlog.unpublish_all(
                    self._database,
                    route=(worker, tier, urgency),
                    older_s=self._settings.ageing_seconds,
                    reason="waited",
                )
                raised.add((worker, tier))
        return raised

    def _top_up(self, route: tuple[str, str]) -> None:
        self._done.topped_up += self._publisher.top_up(*route)

    def _find_lost(
        self,
        published: Mapping[tuple[str, str, int], float],
        queues: Mapping[tuple[str, str], str],
        look: Look,
        memory: Mapping[str, object],
    ) -> set[tuple[str, str]]:
        """Make ready again what is published and provably not on the broker.

        Provably: the broker's mark is gone or changed, so it lost its data; or the queue was seen empty after the
        message was sent, and still nobody has claimed its stage; or a later message of the queue has been claimed.

        Returns:
            The routes of what was found.
        """
        if memory.get("epoch") != look.mark:
            return self._after_data_loss(published, queues, look, memory)
        lost: set[tuple[str, str]] = set()
        if any(age_s > _OVERTAKEN_S for age_s in published.values()):
            count = backlog.unpublish_overtaken(self._database, _OVERTAKEN_S)
            if count:
                logger.warning("%d published stages were overtaken: their messages are lost", count)
                self._done.lost += count
                lost |= queues.keys()
        for route, older_s in self._seen_empty(published, queues, look).items():
            if self._unpublish(route, older_s):
                lost.add(route[:2])
        return lost

    def _after_data_loss(
        self,
        published: Mapping[tuple[str, str, int], float],
        queues: Mapping[tuple[str, str], str],
        look: Look,
        memory: Mapping[str, object],
    ) -> set[tuple[str, str]]:
        """Make everything ready again that was published before the broker lost its data.

        If no sweeper has ever seen the mark, no node has run yet, and what is not on its queue is lost.
        """
        self._empty_at.clear()
        lost: Iterable[tuple[str, str, int] | None] = [None]
        if "epoch" not in memory:
            lost = [route for route in published if look.is_empty(queues[route[:2]], self._priority(route))]
        for route in lost:
            self._unpublish(route, 0 if route is None else _SENT_WITHIN_S)
        # Last: if we die before, everything is found once more.
        nodes.remember(self._database, LEADERSHIP, self._holder, {**memory, "epoch": look.mark})
        return set(queues)

    def _seen_empty(
        self,
        published: Mapping[tuple[str, str, int], float],
        queues: Mapping[tuple[str, str], str],
        look: Look,
    ) -> dict[tuple[str, str, int], float]:
        """Say from which age on a published stage must have left its queue by now, for the routes that have such."""
        now = time.monotonic()
        before, self._empty_at = self._empty_at, {}
        found = {}
        for route, age_s in published.items():
            times = before.get(route, [])
            settled = [at for at in times if now - at >= _EMPTY_FOR_S][-1:]
            if settled and age_s > now - settled[0] + _SENT_WITHIN_S:
                found[route] = now - settled[0] + _SENT_WITHIN_S
            times = settled + [at for at in times if now - at < _EMPTY_FOR_S]
            self._empty_at[route] = times + [now] * look.is_empty(queues[route[:2]], self._priority(route))
        if found and not self._app.is_redis:
            # RabbitMQ hands a node more than it can run.
            full = nodes.full_queues(self._database, within_s=4 * self._settings.lease_seconds)
            found = {
                route: max(older_s, _IN_HAND_S) if queues[route[:2]] in full else older_s
                for route, older_s in found.items()
            }
        return {route: older_s for route, older_s in found.items() if published[route] > older_s}

    def _unpublish(self, route: tuple[str, str, int] | None, older_s: float) -> int:
        begun, count, step = time.monotonic(), 0, backlog.UNPUBLISHED_AT_ONCE
        while step >= backlog.UNPUBLISHED_AT_ONCE:
            # What is published meanwhile is not meant.
            age_s = older_s + time.monotonic() - begun
            step = backlog.unpublish_all(self._database, route=route, older_s=age_s)
            count += step
        if count:
            which = (
                "the broker lost its data" if route is None else f"they are not on the queue of {'.'.join(route[:2])}"
            )
            logger.warning("%d messages are sent again: %s", count, which)
        self._done.lost += count
        return count

    def _priority(self, route: tuple[str, str, int]) -> int:
        return self._app.broker_priority(route[2])
