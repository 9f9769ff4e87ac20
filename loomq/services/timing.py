"""Where a goal's time went: each stage's, from ready to end, in parts; and the critical path through them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

#: What a moment of a goal can go into. ``work`` is the run that counts, ``retry`` one that failed and was repeated,
#: ``lost`` one whose process died, ``queue`` waiting for a worker, ``delay`` waiting for a time or for somebody
#: (back-off, limit, pause), ``idle`` neither of them.
KINDS = ("work", "retry", "lost", "queue", "delay", "idle")


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of time that went into one thing.

    Args:
        kind: One of ``KINDS``.
        why: Of a delay what it was for, of a run which attempt it was.
    """

    kind: str
    start: datetime
    end: datetime
    why: str = ""

    @property
    def ms(self) -> float:
        """How long it took."""
        return (self.end - self.start) / timedelta(milliseconds=1)

    def within(self, start: datetime, end: datetime) -> Part | None:
        """Give what of it lies in a window, or ``None``."""
        begin, until = max(self.start, start), min(self.end, end)
        return Part(self.kind, begin, until, self.why) if begin < until else None

    def to_json(self) -> dict[str, Any]:
        """Describe the part."""
        found = {"kind": self.kind, "start": _iso(self.start), "end": _iso(self.end), "ms": round(self.ms, 3)}
        return {**found, "why": self.why} if self.why else found


@dataclass(frozen=True, slots=True)
class Track:
    """What is known of a stage's times.

    Args:
        parents: The stages that it waited for.
        end: When it ended; of one that has not, now.
        runs: Parts in which a process had it, in order.
        delays: Times in which it was not to start; the first named holds where they overlap.
    """

    name: str
    parents: tuple[str, ...]
    end: datetime
    runs: tuple[Part, ...] = ()
    delays: tuple[Part, ...] = ()


@dataclass(frozen=True)
class StageTiming:
    """A stage's time.

    Args:
        parts: They lie end to end from ``ready`` to ``end``.
    """

    name: str
    ready: datetime
    end: datetime
    parts: tuple[Part, ...]

    @cached_property
    def totals_ms(self) -> dict[str, float]:
        """Milliseconds by kind; kinds without any are left out."""
        return totals_of(self.parts)

    def to_json(self) -> dict[str, Any]:
        """Describe the stage's time."""
        return {
            "ready_at": _iso(self.ready),
            "ended_at": _iso(self.end),
            "totals_ms": _rounded(self.totals_ms),
            "parts": [part.to_json() for part in self.parts],
        }


@dataclass(frozen=True)
class GoalTiming:
    """A goal's time.

    Args:
        stages: Those that took time in this goal, in the order in which they became ready.
        path: The critical path: the stages that its end waited for, first to last.
        parts: Where the time along it went, end to end from ``start`` to ``end``.
    """

    start: datetime
    end: datetime
    stages: Mapping[str, StageTiming]
    path: tuple[str, ...]
    parts: tuple[Part, ...]

    @property
    def makespan_ms(self) -> float:
        """From submission to end."""
        return (self.end - self.start) / timedelta(milliseconds=1)

    @cached_property
    def path_ms(self) -> dict[str, float]:
        """Milliseconds along the critical path by kind; their sum is the makespan."""
        return totals_of(self.parts)

    @cached_property
    def totals_ms(self) -> dict[str, float]:
        """Milliseconds of all stages by kind."""
        return totals_of(part for stage in self.stages.values() for part in stage.parts)

    def to_json(self) -> dict[str, Any]:
        """Describe the goal's time."""
        return {
            "makespan_ms": round(self.makespan_ms, 3),
            "critical_path": list(self.path),
            "critical_path_ms": _rounded(self.path_ms),
            "totals_ms": _rounded(self.totals_ms),
            "stages": {name: stage.to_json() for name, stage in self.stages.items()},
        }


def timing_of(start: datetime, end: datetime, tracks: Sequence[Track], last: str | None = None) -> GoalTiming:
    """Say where the time went between a goal's submission and its end.

    Args:
        end: When it ended; of one that has not, now.
        tracks: Its stages that could begin, in any order; parents that are not among them took no time.
        last: The stage whose end was the goal's; ``None`` is the one that ended last within the window.
    """
    known = {track.name: track for track in tracks}
    stages = {name: _stage_timing(track, known, start) for name, track in known.items()}
    ordered = dict(sorted(stages.items(), key=lambda pair: (pair[1].ready, pair[1].end, pair[0])))
    final = last or max(known, key=lambda name: (min(known[name].end, end), bool(known[name].runs), name), default=None)
    path = critical_path(known, final) if final else ()
    parts = [part for name in path for part in stages[name].parts]
    return GoalTiming(start, end, ordered, path, tuple(_tiled(parts, start, end)))


def critical_path(tracks: Mapping[str, Track], last: str) -> tuple[str, ...]:
    """Give the way to a stage from a root, at each step by the parent that ended last."""
    way = [last]
    while above := [parent for parent in tracks[way[-1]].parents if parent in tracks]:
        way.append(max(above, key=lambda name: (tracks[name].end, name)))
    return tuple(reversed(way))


def totals_of(parts: Iterable[Part]) -> dict[str, float]:
    """Add up milliseconds by kind, in the order of ``KINDS``; kinds without any are left out."""
    found = dict.fromkeys(KINDS, 0.0)
    for part in parts:
        found[part.kind] += part.ms
    return {kind: ms for kind, ms in found.items() if ms > 0}


def _stage_timing(track: Track, known: Mapping[str, Track], start: datetime) -> StageTiming:
    ready = max((known[parent].end for parent in track.parents if parent in known), default=start)
    end = max(ready, track.end)
    return StageTiming(track.name, ready, end, tuple(_parts(track, ready, end)))


def _parts(track: Track, ready: datetime, end: datetime) -> Iterator[Part]:
    at = ready
    for run in sorted(track.runs, key=lambda run: run.start):
        clipped = run.within(at, end)
        if clipped is not None:
            yield from _waiting(at, clipped.start, track.delays)
            yield clipped
            at = clipped.end
    yield from _waiting(at, end, track.delays)


def _waiting(start: datetime, end: datetime, delays: Iterable[Part]) -> Iterator[Part]:
    """Divide a wait into delays and what is left of it: queueing."""
    at = start
    for delay in sorted(delays, key=lambda delay: delay.start):
        clipped = delay.within(at, end)
        if clipped is None:
            continue
        if at < clipped.start:
            yield Part("queue", at, clipped.start)
        yield clipped
        at = clipped.end
    if at < end:
        yield Part("queue", at, end)


def _tiled(parts: Sequence[Part], start: datetime, end: datetime) -> Iterator[Part]:
    """Clip parts to a window, and fill what they leave of it."""
    at = start
    for part in parts:
        clipped = part.within(at, end)
        if clipped is None:
            continue
        if at < clipped.start:
            yield Part("idle", at, clipped.start)
        yield clipped
        at = clipped.end
    if at < end:
        yield Part("idle", at, end)


def _rounded(totals: Mapping[str, float]) -> dict[str, float]:
    return {kind: round(ms, 3) for kind, ms in totals.items()}


def _iso(when: datetime) -> str:
    return when.astimezone(UTC).isoformat()
