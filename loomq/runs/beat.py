"""Beat: each due time of each schedule has one run, however many beats there are. One is active at a time."""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from loomq.errors import ConfigError, EnvironmentNotReadyError
from loomq.schedules.due import Timing
from loomq.store import nodes, schedules

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from loomq.catalog import Catalog
    from loomq.configs import Configs
    from loomq.runs.dispatch import Dispatcher
    from loomq.schedules.spec import ScheduleEntry, ScheduleSpec
    from loomq.store.engine import Database
    from loomq.store.schedules import Schedule

logger = logging.getLogger(__name__)

LEADERSHIP = "beat"
_LEASE_S = 3.0  # a stopped leader is followed within it and one look of the next
_LOOK_S = 0.5
_LONGEST_WAIT_S = 1.0
_BUSY_S = 1.0  # of work at runs between two renewals of the leadership
_SLICE_S = 0.2  # of work at one run before others come
_FAILED_PASSES = 3
_STANDS_BACK_S = 10.0
_EXPANDS_S = 0.1  # between two looks at what a function gives
_AT_ONCE = 50  # due times of a schedule in one pass
_MOST_QUEUED = 100
_SET_BACK = timedelta(seconds=60)  # by more, the server's clock was set back
_JUST_BEFORE = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the files."""

    key: str
    spec: ScheduleSpec
    entry: ScheduleEntry
    dispatch: dict[str, Any]

    @property
    def timing(self) -> str:
        """What says when it is due, as a text to compare."""
        return f"{self.entry.timing} {self.spec.timezone}"

    @property
    def first_items(self) -> list[dict[str, Any]] | None:
        """What is dispatched, as far as it is known beforehand."""
        return None if self.entry.expand_from else [{}]

    def when(self, anchor: datetime, nowfun: Callable[[], datetime] | None = None) -> Timing:
        """Give what says when it is due."""
        entry = self.entry
        return Timing(
            self.key,
            entry.clock(self.spec.timezone, anchor),
            jitter_s=entry.jitter_seconds,
            grace_s=entry.grace_seconds,
            catch_up=entry.catch_up,
            nowfun=nowfun,
        )


def entries_of(catalog: Catalog) -> dict[str, Entry]:
    """List the entries of all schedules, by ``<file>.<entry>``."""
    default = next(iter(catalog.orchestrators)) if len(catalog.orchestrators) == 1 else None
    found = [
        Entry(f"{spec.name}.{entry.name}", spec, entry, entry.dispatch(default))
        for spec in catalog.schedules.values()
        for entry in spec.schedules
    ]
    return {one.key: one for one in found}


class Beat:
    """Fire what is due, one pass at a time.

    All times are the database server's. Two beats that both believe to lead, because one was held up for longer than
    its lease, do no harm: a due time is decided once, by its row, and its goal's idempotency key is that row's.

    Args:
        holder: Who leads.
        now: Gives the time in place of the server, for tests.
    """

    def __init__(
        self,
        database: Database,
        configs: Configs,
        dispatcher: Dispatcher,
        holder: UUID,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self._database = database
        self._configs = configs
        self._dispatcher = dispatcher
        self._holder = holder
        self._who = f"{os.getpid()}@{socket.gethostname()}"
        self._given_now = now
        self._now: datetime | None = None
        self._files: tuple[object, ...] | None = None  # not known: they may have changed since they were read
        self._files_seen: tuple[object, ...] | None = None
        self._files_fault: str | None = None
        self._catalog: Catalog | None = None
        self._entries: dict[str, Entry] = {}
        self._timings: dict[str, tuple[Schedule, Timing]] = {}
        self._faults: dict[str, str] = {}
        self._failed_passes = 0
        self._stands_back_until = 0.0
        self._from = 0
        self._busy_until = 0.0
        self._leads: bool | None = None  # not known yet
        self._is_out = False

    @property
    def timings(self) -> dict[str, Timing]:
        """When each schedule is due that it has seen."""
        return {key: timing for key, (_, timing) in self._timings.items()}

    def tick(self) -> float:
        """Fire what is due, if this one leads, through outages and whatever else goes wrong.

        Returns:
            In how many seconds to be called again.
        """
        try:
            left_s = self._tick()
        except EnvironmentNotReadyError as error:
            if not self._is_out:
                logger.warning("%s", error.message)
            self._is_out = True
            return _LOOK_S
        except Exception:
            logger.exception("beat met an error and goes on")
            self._failed_passes += 1
            if self._failed_passes >= _FAILED_PASSES:  # maybe another one fares better
                self.step_down()
                self._failed_passes, self._stands_back_until = 0, time.monotonic() + _STANDS_BACK_S
            return _LONGEST_WAIT_S
        self._failed_passes = 0
        if self._is_out:
            logger.warning("services answer again")
        self._is_out = False
        return left_s

    def step_down(self) -> None:
        """Let another lead at once."""
        try:
            nodes.step_down(self._database, [LEADERSHIP], self._holder)
        except EnvironmentNotReadyError as error:
            logger.warning("the leadership is left to run out: %s", error.message)

    def _tick(self) -> float:
        self._read_files()
        if time.monotonic() < self._stands_back_until:
            return _LOOK_S
        memory = nodes.lead(self._database, LEADERSHIP, self._holder, _LEASE_S, self._who)
        if memory is None:
            if self._leads is not False:
                logger.log(
                    logging.WARNING if self._leads else logging.INFO,
                    "another beat fires the schedules; this one stands by",
                )
            self._leads = False
            self._dispatcher.forget()
            return _LOOK_S
        if not self._leads:
            logger.info("this beat fires the schedules")
        self._leads = True
        left_s = self._pass()
        told: dict[str, Any] = {"files": schedules.storable(self._files_fault)} if self._files_fault else {}
        if self._faults:
            told["faults"] = self._faults
        if memory != told:
            nodes.remember(self._database, LEADERSHIP, self._holder, told)
        return left_s

    def _may_go_on(self) -> bool:
        return time.monotonic() < self._busy_until

    def _read_files(self) -> None:
        """Read the project's files again if they have changed; broken ones leave what was before."""
        found = self._configs.fingerprint()
        is_settled, self._files_seen = found == self._files_seen, found  # else somebody is just writing
        if found != self._files and (is_settled or self._files is None):
            is_news = self._files is not None
            self._files = found
            try:
                self._configs.reload()
            except ConfigError as error:
                self._files_fault = error.message
                logger.error("the files as they were before stay in force: %s", error.message)  # noqa: TRY400
            else:
                self._files_fault = None
            if is_news and self._files_fault is None:
                logger.info("the project's files have changed and were read again")
        catalog = self._configs.project.catalog
        if catalog is not self._catalog:
            self._catalog = catalog
            self._entries = entries_of(catalog)
            self._timings.clear()
            self._faults.clear()

    def _pass(self) -> float:
        server, seen = schedules.seen(self._database)
        now = self._now = self._given_now() if self._given_now else server
        if self._welcome(seen, now):
            _, seen = schedules.seen(self._database)
        next_at = self._decide_all(seen, now)
        longest_s = self._serve()
        return longest_s if next_at is None else min(max((next_at - now).total_seconds(), 0.0), longest_s)

    def _decide_all(self, seen: dict[str, Schedule], now: datetime) -> datetime | None:
        """Write down what becomes of all due times that have come, from where the last pass stopped for want of time.

        One schedule that cannot be told must not keep the others from being served.

        Returns:
            When to look again.
        """
        entries = list(self._entries.values())
        self._busy_until = time.monotonic() + _BUSY_S / 2
        next_at = None
        start, self._from = self._from % max(len(entries), 1), 0
        for number, entry in enumerate(entries[start:] + entries[:start]):
            if not self._may_go_on():
                self._from = start + number
                return now
            schedule = seen.get(entry.key)
            if schedule is None or not schedule.is_live or schedule.paused_at is not None:
                continue
            try:
                following = self._decide(entry, schedule, now)
            except EnvironmentNotReadyError:
                raise
            except Exception as error:
                if entry.key not in self._faults:
                    logger.exception("schedule %s cannot be served; the others are", entry.key)
                self._faults[entry.key] = schedules.storable(f"{type(error).__name__}: {error}") or ""
                continue
            self._faults.pop(entry.key, None)
            if following is not None and (next_at is None or following < next_at):
                next_at = following
        return next_at

    def _welcome(self, seen: dict[str, Schedule], now: datetime) -> bool:
        """Begin with schedules that are new, came back or changed their times, and take leave of others."""
        enabled = {key: entry for key, entry in self._entries.items() if entry.entry.enabled}
        gone = [key for key, one in seen.items() if one.is_live and key not in enabled]
        if gone:
            schedules.withdraw(self._database, gone, "the schedule is disabled, or no longer in the files")
        begun = False
        for key, entry in enabled.items():
            known = seen.get(key)
            if known is None or not known.is_live or known.timing != entry.timing:
                # An interval's first due time is now; a cron expression's is the next one.
                anchor = now.replace(microsecond=0)
                until = now if entry.entry.meaning.cron is not None else anchor - _JUST_BEFORE
                schedules.begin(self._database, key, entry.timing, anchor, until)
                logger.info("schedule %s: %s", key, entry.entry.sentence)
                begun = True
        return begun

    def _time(self) -> datetime:
        assert self._now is not None
        return self._now

    def _timing(self, entry: Entry, schedule: Schedule) -> Timing:
        known = self._timings.get(entry.key)
        if known is None or known[0].anchor != schedule.anchor:
            known = self._timings[entry.key] = (schedule, entry.when(schedule.anchor, self._time))
        return known[1]

    def _decide(self, entry: Entry, schedule: Schedule, now: datetime) -> datetime | None:
        """Write down what becomes of the due times that have come; gives when to look again."""
        handled = schedule.handled_until
        if handled > now + _SET_BACK:
            # What fired meanwhile has its run, and does not fire again.
            logger.warning("the database server's clock was set back; schedule %s goes on from now", entry.key)
            schedules.set_back(self._database, entry.key, now)
            return now
        timing = self._timing(entry, schedule)
        state = timing.is_due(handled)
        if not state.is_due:
            return now + timedelta(seconds=state.next)
        due = timing.due(handled, _AT_ONCE)
        if due.missed is not None and not (due.makes_up or (due.fires and entry.entry.catch_up == "once")):
            self._write(entry, due.missed[1], "skipped", f"beat was not there {_told(due.missed)}; catch_up: skip")
        for at in due.fires:
            told = f"stands for all that was due {_told(due.missed)}" if due.makes_up and due.missed else None
            state, reason = decided(self._database, entry.key, entry.entry.overlap, told)
            if state == "skipped" and entry.entry.overlap == "queue" and entry.entry.catch_up == "all":
                return now + timedelta(seconds=_LONGEST_WAIT_S)  # all of them shall run: when there is room
            self._write(entry, at, state, reason)
            if not self._may_go_on():
                return now
        return due.next_at

    def _write(self, entry: Entry, at: datetime, state: str, reason: str | None) -> None:
        is_new = schedules.decide(
            self._database,
            entry.key,
            at,
            state=state,
            dispatch=entry.dispatch,
            items=entry.first_items,
            reason=reason,
        )
        if is_new and state == "queued":
            logger.info("schedule %s, due %s: queued behind the run that goes on", entry.key, at.isoformat())
        if is_new and state == "skipped":
            logger.warning("schedule %s, due %s: skipped: %s", entry.key, at.isoformat(), reason)

    def _slice(self) -> Callable[[], bool]:
        """Give what says whether there is time left for one run."""
        until = min(self._busy_until, time.monotonic() + _SLICE_S)
        return lambda: time.monotonic() < until

    def _serve(self) -> float:
        """Work at the runs that are written down, at each for a while; gives in how many seconds to do so again."""
        self._busy_until = time.monotonic() + _BUSY_S
        again_s = _LONGEST_WAIT_S
        runs = schedules.unfinished(self._database)
        self._dispatcher.forget(but={(run.key, run.due_at) for run in runs})
        for run in runs:
            if not self._may_go_on():
                return 0.0
            if run.state == "queued" and (
                schedules.is_going_on(self._database, run.key) or not schedules.start_queued(self._database, run)
            ):
                continue
            if not self._dispatcher.go_on(run, self._slice()):
                again_s = _EXPANDS_S
        return again_s


def decided(database: Database, key: str, overlap: str, reason: str | None = None) -> tuple[str, str | None]:
    """Say what becomes of a run that is due, given those before it: its state, and why.

    Args:
        overlap: The schedule's policy.
        reason: What is told of it if it is not skipped.
    """
    if overlap not in {"skip", "queue"}:
        return "firing", reason
    waiting = schedules.count_queued(database, key)
    if not waiting and not schedules.is_going_on(database, key):
        return "firing", reason
    if overlap == "skip":
        return "skipped", "the last run was still going on; overlap: skip"
    if waiting >= _MOST_QUEUED:
        return "skipped", f"{waiting} runs wait already; overlap: queue"
    return "queued", reason


def _told(missed: tuple[datetime, datetime] | None) -> str:
    if missed is None:
        return ""
    first, last = (moment.isoformat(sep=" ", timespec="seconds") for moment in missed)
    return f"at {first}" if first == last else f"from {first} to {last}"
