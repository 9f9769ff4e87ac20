"""What a goal's rows say of times, read as tracks: when processes had each stage, and when it was not to start."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from loomq.services.timing import GoalTiming, Part, StageTiming, Track, timing_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from loomq.services.views import GoalView, StageView

FINAL = frozenset({"done", "failed", "dead", "skipped", "cancelled"})
_BY_RUN = frozenset({"done", "failed", "dead"})
_RAN = _BY_RUN | {"claimed", "cancelled"}
# One transaction writes the end of a stage and that the next is ready; what lies between is no delay.
_ONE_TRANSACTION = timedelta(milliseconds=100)
_OF_THE_GOAL = {"paused", "max_concurrent_goals"}  # delays that are known more exactly than from the stage


def goal_timing(
    view: GoalView,
    parents: Mapping[str, Sequence[str]],
    now: datetime,
    *,
    pauses: Sequence[tuple[datetime, datetime | None]] = (),
    last_items: Mapping[str, StageView] | None = None,
) -> GoalTiming:
    """Say where a goal's time went.

    Args:
        parents: The stages that each waited for.
        now: The end of what has not ended, by Postgres' clock.
        pauses: When the goal was paused, and resumed.
        last_items: Of each stage that fanned out the item that ended last: its time was the stage's.
    """
    end = view.ended_at or now
    held = [*_admission(view, now), *(Part("delay", start, until or now, "paused") for start, until in pauses)]
    ends = {stage.name: _end(stage, now) for stage in view.stages if took_time(stage)}
    tracks = []
    for stage in view.stages:
        if stage.name not in ends:
            continue
        above = tuple(parents[stage.name])
        ready = max((ends[parent] for parent in above if parent in ends), default=view.created_at)
        item = (last_items or {}).get(stage.name) if stage.state in FINAL else None
        runs, delays = _of_items(stage, item, now) if item else (runs_of(stage, now), [])
        delays = [*held, *_delays(stage, ready, now), *delays]
        tracks.append(Track(stage.name, above, ends[stage.name], runs, tuple(delays)))
    return timing_of(view.created_at, end, tracks, _last(view, end))


def took_time(stage: StageView) -> bool:
    """Say whether a stage could begin in this goal: a result that was taken over took its time in another."""
    return stage.queued_at is not None and stage.reason != "reused"


def runs_of(stage: StageView, now: datetime) -> tuple[Part, ...]:
    """List the times in which a process had a stage; ``why`` is the attempt."""
    runs = [
        Part(
            "lost" if (entry.get("error") or {}).get("type") == "WorkerLostError" else "retry",
            time_of(entry["started_at"]),
            time_of(entry["ended_at"]),
            f"attempt {entry.get('attempt', '?')}",
        )
        for entry in stage.history
        if entry.get("started_at")
    ]
    if stage.started_at is None or stage.state == "waiting":
        return tuple(runs)
    is_told = bool(runs) and runs[-1].start == stage.started_at
    attempt = f"attempt {stage.attempt}"
    if is_told and stage.state in _BY_RUN and runs[-1].kind == "retry":
        runs[-1] = Part("work", runs[-1].start, stage.ended_at or runs[-1].end, runs[-1].why)
    elif not is_told and stage.queued_at and stage.started_at < stage.queued_at:  # interrupted, and handed back
        kind = "work" if stage.state == "cancelled" else "lost"
        runs.append(Part(kind, stage.started_at, stage.queued_at, attempt))
    elif not is_told and stage.state in _RAN:
        runs.append(Part("work", stage.started_at, stage.ended_at or now, attempt))
    return tuple(runs)


def item_timing(
    stage: StageView, item: StageView, now: datetime, pauses: Sequence[tuple[datetime, datetime | None]] = ()
) -> StageTiming | None:
    """Say where the time of one item of a stage went, from the moment when the stage fanned out."""
    if stage.started_at is None or item.queued_at is None or not took_time(stage):
        return None
    _, delays = _of_items(stage, item, now)
    held = [Part("delay", start, until or now, "paused") for start, until in pauses]
    end = _end(item, now)
    track = Track(item.name, (), end, runs_of(item, now), (*held, *delays))
    return timing_of(stage.started_at, end, [track]).stages[item.name]


def time_of(text: Any) -> datetime:
    """Read a time that Postgres wrote into JSON."""
    return datetime.fromisoformat(str(text))


def _of_items(stage: StageView, item: StageView, now: datetime) -> tuple[tuple[Part, ...], list[Part]]:
    """Give the runs and delays of a stage that fanned out: it only began its items, of its time the last one tells."""
    runs = runs_of(stage, now)
    if stage.started_at is None:
        return runs, []
    delays = list(_delays(item, stage.started_at, now))
    if stage.max_parallel is not None and item.queued_at is not None:
        delays.insert(0, Part("delay", stage.started_at, item.queued_at, "max_parallel"))
    return (*runs[:-1], *runs_of(item, now)), delays


def _end(stage: StageView, now: datetime) -> datetime:
    if stage.state not in FINAL:
        return now
    return stage.ended_at or stage.queued_at or now


def _delays(stage: StageView, ready: datetime, now: datetime) -> Iterator[Part]:
    """List the times in which a stage was not to start, by what its row tells."""
    before = ready
    for entry in stage.history:
        if "replayed_at" in entry:
            yield Part("delay", before, time_of(entry["replayed_at"]), "until its replay")
        elif entry.get("ended_at"):
            before = time_of(entry["ended_at"])
            if entry.get("due_at"):
                yield Part("delay", before, time_of(entry["due_at"]), "back-off")
    if stage.queued_at is not None:
        if stage.due_at is not None and stage.reason not in _OF_THE_GOAL:
            yield Part("delay", stage.queued_at, min(stage.due_at, now), stage.reason or "not due")
        is_interrupted = stage.started_at is not None and before <= stage.started_at < stage.queued_at
        if stage.queued_at - before > _ONE_TRANSACTION and not is_interrupted:
            yield Part("delay", before, stage.queued_at, "put back")


def _admission(view: GoalView, now: datetime) -> Iterator[Part]:
    if view.links.max_concurrent is not None:
        yield Part("delay", view.created_at, view.links.admitted_at or now, "max_concurrent_goals")


def _last(view: GoalView, end: datetime) -> str | None:
    """Name the stage whose failure ended the goal; ``None`` where it is simply the one that ended last."""
    if view.status != "failed":
        return None
    failed = [
        (stage.ended_at, stage.name)
        for stage in view.stages
        if stage.state in {"failed", "dead"} and stage.ended_at and stage.ended_at <= end and took_time(stage)
    ]
    return max(failed)[1] if failed else None
