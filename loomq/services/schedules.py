"""Look at schedules and steer them: pause, resume, trigger, backfill."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from loomq.errors import LoomqError, UnknownNameError
from loomq.problems import listed, suggest
from loomq.runs.beat import LEADERSHIP, decided, entries_of
from loomq.services.dead_letters import actor_named
from loomq.services.schedule_views import Backfill, BeatView, RunView, ScheduleView
from loomq.store import nodes, schedules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loomq.loom import Loom
    from loomq.runs.beat import Entry
    from loomq.schedules.clock import Clock
    from loomq.store.schedules import Run, Schedule

_LATE = timedelta(seconds=30)  # by more, a due time should have fired
_MOST_FILLED = 1_000
_JUST_BEFORE = timedelta(microseconds=1)
_QUEUES = {"skip", "queue", "cancel_previous"}


def find(loom: Loom, text: str, *, known: bool = False) -> str:
    """Find a schedule by its key ``<file>.<entry>``, or by either half of it if that says which.

    Args:
        known: Also among those that beat has seen, whatever the files say now.

    Raises:
        UnknownNameError: There is none, or more than one.
    """
    entries = keys(loom)
    if known:  # beat may go on with files that are broken by now
        entries = sorted({*entries, *schedules.seen(loom.database)[1]})
    if text in entries:
        return text
    near = [key for key in entries if text in key.split(".")]
    if len(near) == 1:
        return near[0]
    if near:
        raise UnknownNameError(f'"{text}" may be {listed(near)}', hint="give the whole name")
    hint = suggest(text, entries) or "list them: loomq schedule list"
    raise UnknownNameError(f'no schedule is called "{text}"', hint=hint)


def keys(loom: Loom) -> list[str]:
    """List the keys of all schedules of the files."""
    return sorted(entries_of(loom.catalog))


@dataclass(frozen=True)
class _Seen:
    """What there is to know, read at one moment."""

    now: datetime
    rows: dict[str, Schedule]
    entries: dict[str, Entry]

    @classmethod
    def read(cls, loom: Loom) -> _Seen:
        now, rows = schedules.seen(loom.database)
        return cls(now, rows, entries_of(loom.catalog))

    def by_beat(self, key: str) -> bool:
        """Whether beat goes by what the files say of this schedule."""
        row = self.rows.get(key)
        return row is not None and row.is_live and row.timing == self.entries[key].timing


def survey(loom: Loom, *, runs: int = 1, times: int = 1) -> list[ScheduleView]:
    """List all schedules of the files.

    Args:
        runs, times: How many of the last runs, and of the next due times, to tell of each.

    Raises:
        EnvironmentNotReadyError: The database cannot be used.
    """
    seen = _Seen.read(loom)
    last = schedules.last_runs(loom.database, list(seen.entries), runs)
    return [_view(seen, key, [pair for pair in last if pair[0].key == key], times) for key in sorted(seen.entries)]


def show(loom: Loom, key: str, *, runs: int = 10, times: int = 5) -> ScheduleView:
    """Show one schedule; arguments and errors as ``survey``."""
    return _view(_Seen.read(loom), key, schedules.last_runs(loom.database, [key], runs), times)


def upcoming(loom: Loom, count: int, key: str | None = None) -> list[tuple[datetime, str]]:
    """List the next due times of all schedules, or of one, that will fire: when, and whose."""
    seen = _Seen.read(loom)
    chosen = [one for one in seen.entries if key in (None, one)]
    return list(islice(merge(*(_keyed(seen, one) for one in chosen if _fires(seen, one))), count))


def _keyed(seen: _Seen, key: str) -> Iterator[tuple[datetime, str]]:
    return ((at, key) for at in _after_now(seen, key))


def beat(loom: Loom) -> BeatView:
    """Say who fires the schedules, how many there are, and which have not fired when they should.

    Raises:
        EnvironmentNotReadyError: The database cannot be used.
    """
    leader = nodes.leader(loom.database, LEADERSHIP)
    views = survey(loom)
    return BeatView(leader, tuple(views), tuple(schedules.stuck(loom.database)))


def pause(loom: Loom, key: str, actor: str | None = None) -> bool:
    """Let a schedule fire no more until it is resumed; False if it was paused already."""
    seen = _Seen.read(loom)
    if key not in seen.rows:
        schedules.begin(loom.database, key, seen.entries[key].timing, seen.now, seen.now)
    return schedules.pause(loom.database, key, actor_named(actor))


def resume(loom: Loom, key: str) -> bool:
    """Let a paused schedule go on from now; what was due meanwhile is passed over. False if it was not paused."""
    return schedules.resume(loom.database, key)


def trigger(loom: Loom, key: str, *, overlap: str | None = None) -> RunView:
    """Fire a schedule now, also one that is paused or disabled.

    Args:
        overlap: What happens if the last run still goes on; the schedule's own policy if not given.

    Raises:
        EnvironmentNotReadyError: A service is away. If the run was written down before, beat goes on with it.
    """
    seen = _Seen.read(loom)
    entry = seen.entries[key]
    dispatch = {**entry.dispatch, "overlap": overlap or entry.dispatch["overlap"]}
    state, reason = decided(loom.database, key, dispatch["overlap"])
    _bring_about(loom, entry, seen.now, "trigger", state, dispatch, reason)
    return RunView.of(*schedules.runs_at(loom.database, key, [seen.now])[0])


def backfill(
    loom: Loom,
    key: str,
    start: datetime,
    end: datetime | None = None,
    *,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Backfill:
    """Fire the due times of the past that have not fired: from ``start`` on, and before ``end``.

    With a policy of overlap other than ``allow`` they are queued, and beat lets them go one after another.

    Args:
        start, end: If they have no time zone, in the schedule's; ``end`` is now if not given, and never later.
        dry_run: Only say which.
        on_progress: Called with how many are done, and of how many.

    Raises:
        LoomqError: ``end`` is not after ``start``, or there are too many due times between them.
        EnvironmentNotReadyError: A service is away; ask again for the rest.
    """
    seen = _Seen.read(loom)
    entry = seen.entries[key]
    zone = UTC if entry.spec.timezone == "UTC" else ZoneInfo(entry.spec.timezone)
    first, last = (
        None if moment is None else (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
        for moment in (start, end)
    )
    assert first is not None
    last = min(last or seen.now, seen.now)
    if first >= last:
        raise LoomqError(
            f"nothing is before {last.isoformat()} and after {first.isoformat()}",
            hint="--from is the earlier one; due times to come fire by themselves",
        )
    due = list(islice(_between(_clock(seen, key), first, last), _MOST_FILLED + 1))
    if len(due) > _MOST_FILLED:
        raise LoomqError(
            f"more than {_MOST_FILLED:,} times were due between {first.isoformat()} and {last.isoformat()}",
            hint=f"take a shorter while; the last of the first {_MOST_FILLED:,} is {due[-2].isoformat()}",
        )
    fired = {run.due_at for run in _fired(loom, key, due)}
    todo = [at for at in due if at not in fired]
    if dry_run:
        return Backfill(key, tuple(todo), len(due) - len(todo), ())
    runs = []
    for number, at in enumerate(todo):
        state, overlap = ("queued", "queue") if entry.entry.overlap in _QUEUES else ("firing", "allow")
        if _bring_about(loom, entry, at, "backfill", state, {**entry.dispatch, "overlap": overlap}):
            runs.append(at)
        on_progress(number + 1, len(todo))
    views = [RunView.of(*pair) for pair in schedules.runs_at(loom.database, key, runs)]
    return Backfill(key, tuple(todo), len(due) - len(runs), tuple(views))


def _bring_about(
    loom: Loom,
    entry: Entry,
    at: datetime,
    cause: str,
    state: str,
    dispatch: dict[str, Any],
    reason: str | None = None,
) -> bool:
    """Write a run down and bring it about; False if that due time has one already."""
    run = schedules.order(
        loom.database,
        entry.key,
        at,
        cause=cause,
        state=state,
        dispatch=dispatch,
        items=entry.first_items,
        reason=reason,
    )
    if run is None:  # or it is ours: a call whose answer got lost is made again
        found = [one for one, _ in schedules.runs_at(loom.database, entry.key, [at]) if one.cause == cause]
        run = found[0] if found and found[0].state == "firing" and not found[0].goals else None
    if run is not None and run.state == "firing":
        loom.dispatcher.bring_about(run)
    return run is not None


def _fired(loom: Loom, key: str, due: list[datetime]) -> Iterator[Run]:
    for run, _ in schedules.runs_at(loom.database, key, due):
        if run.state not in {"skipped", "failed"}:
            yield run


def _between(clock: Clock, first: datetime, last: datetime) -> Iterator[datetime]:
    at = clock.after(first - _JUST_BEFORE)
    while at is not None and at < last:
        yield at
        at = clock.after(at)


def _clock(seen: _Seen, key: str) -> Clock:
    entry, row = seen.entries[key], seen.rows.get(key)
    anchor = row.anchor if row is not None and row.timing == entry.timing else seen.now
    return entry.entry.clock(entry.spec.timezone, anchor)


def _fires(seen: _Seen, key: str) -> bool:
    row = seen.rows.get(key)
    entry = seen.entries[key].entry
    if not seen.by_beat(key) and entry.meaning.cron is None:
        return False  # it begins when beat sees it
    return entry.enabled and (row is None or row.paused_at is None)


def _after_now(seen: _Seen, key: str) -> Iterator[datetime]:
    clock = _clock(seen, key)
    at = clock.after(seen.now)
    while at is not None:
        yield at
        at = clock.after(at)


def _view(seen: _Seen, key: str, last: list[tuple[Run, dict[str, int]]], times: int) -> ScheduleView:
    entry, row = seen.entries[key], seen.rows.get(key)
    if not entry.entry.enabled:
        state = "disabled"
    elif row is not None and row.paused_at is not None:
        state = "paused"
    else:
        state = "on" if seen.by_beat(key) else "new"
    late = None
    if row is not None and state == "on":
        timing = entry.when(row.anchor, lambda: seen.now - _LATE)
        if timing.is_due(row.handled_until).is_due:
            late = timing.clock.after(row.handled_until)
    return ScheduleView(
        key=key,
        state=state,
        entry=entry.entry,
        timezone=entry.spec.timezone,
        target=str(entry.dispatch.get("pipeline") or entry.dispatch.get("worker")),
        next=tuple(islice(_after_now(seen, key), times)) if _fires(seen, key) else (),
        paused_at=row.paused_at if row else None,
        paused_by=row.paused_by if row else None,
        late=late,
        runs=tuple(RunView.of(*pair) for pair in last),
    )
