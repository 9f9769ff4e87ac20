"""Where a goal's time went: parts that add up, the critical path, and what rows tell of waits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomq.messages import TaskStatus
from loomq.services.timing import KINDS, Part, Track, critical_path, timing_of
from loomq.services.tracks import goal_timing, item_timing
from loomq.services.views import GoalView, Links, StageView
from tests.strategies import dags

START = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
STATUS = {"done": "completed", "dead": "failed", "claimed": "processing", "ready": "pending", "published": "pending"}


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def entry(begin: float, end: float, *, kind: str = "PipelineWorkerError", due: float | None = None, attempt: int = 1):
    found = {
        "attempt": attempt,
        "error": {"type": kind},
        "started_at": at(begin).isoformat(),
        "ended_at": at(end).isoformat(),
    }
    return found if due is None else {**found, "due_at": at(due).isoformat()}


def stage(name: str, ready: float | None, start: float | None, end: float | None, *, state="done", **more) -> StageView:
    times = [None if each is None else at(each) for each in (ready, start, end)]
    values = {
        "worker": "echo",
        "tier": "local",
        "attempt": 1,
        "deliveries": 1,
        "queue_time_ms": None,
        "wall_time_ms": None,
        "processing_time_ms": None,
        "model_used": None,
        "token_usage": None,
        "pid": 7,
        "node": None,
        "reason": None,
        "error": None,
        "history": [],
        "output": None,
        **more,
    }
    status = TaskStatus(STATUS.get(state, state))
    return StageView(
        name=name, status=status, state=state, queued_at=times[0], started_at=times[1], ended_at=times[2], **values
    )


def view(*stages: StageView, ended: float | None, status: str = "completed", **links) -> GoalView:
    return GoalView(
        goal_id=UUID(int=7),
        name="line",
        kind="pipeline",
        instruction="",
        context={},
        priority="normal",
        status=TaskStatus(status),
        created_at=START,
        ended_at=None if ended is None else at(ended),
        error=None,
        stages=stages,
        result={},
        links=Links(**links),
    )


def line(*names: str) -> dict[str, tuple[str, ...]]:
    """Parents of a chain."""
    return {name: names[max(place - 1, 0) : place] for place, name in enumerate(names)}


def seconds(totals: dict[str, float]) -> dict[str, float]:
    return {kind: round(ms / 1000, 3) for kind, ms in totals.items()}


def told(parts) -> list[tuple[str, float]]:
    return [(part.kind, round(part.ms / 1000, 3)) for part in parts]


def test_the_critical_path_goes_by_the_parent_that_ended_last():
    tracks = {
        "top": Track("top", (), at(1)),
        "short": Track("short", ("top",), at(2)),
        "long": Track("long", ("top",), at(5)),
        "last": Track("last", ("short", "long"), at(6)),
    }
    assert critical_path(tracks, "last") == ("top", "long", "last")


def test_a_retried_stage_is_queue_failed_attempt_back_off_and_work():
    again = stage("a", 2, 4, 7, attempt=2, history=[entry(1, 2, due=3.5)])
    found = goal_timing(view(again, ended=7.5), line("a"), at(9))
    expected = [("queue", 1), ("retry", 1), ("delay", 1.5), ("queue", 0.5), ("work", 3)]
    assert told(found.stages["a"].parts) == expected
    assert told(found.parts) == [*expected, ("idle", 0.5)]
    assert found.makespan_ms == 7500


def test_a_delivery_that_died_is_lost_time():
    back = stage("a", 3, 5, 6, deliveries=2, history=[entry(1, 3, kind="WorkerLostError")])
    found = goal_timing(view(back, ended=6), line("a"), at(9))
    assert told(found.parts) == [("queue", 1), ("lost", 2), ("queue", 2), ("work", 1)]
    dead = stage(
        "a", 3, 5, 6, state="dead", history=[entry(1, 3, kind="WorkerLostError"), entry(5, 6, kind="WorkerLostError")]
    )
    found = goal_timing(view(dead, ended=6, status="failed"), line("a"), at(9))
    assert seconds(found.path_ms) == {"lost": 3, "queue": 3}


def test_the_run_that_ended_a_stage_is_its_work_also_if_it_failed():
    failed = stage("a", 2, 4, 5, state="failed", history=[entry(1, 2, due=4), entry(4, 5, attempt=2)])
    found = goal_timing(view(failed, ended=5, status="failed"), line("a"), at(9))
    assert told(found.parts) == [("queue", 1), ("retry", 1), ("delay", 2), ("work", 1)]


def test_pauses_and_waiting_for_a_turn_are_delays_and_no_queue():
    stages = (stage("a", 1.5, 2, 3), stage("b", 3, 8, 9))
    goal = view(*stages, ended=9, max_concurrent=1, admitted_at=at(1.5))
    found = goal_timing(goal, line("a", "b"), at(20), pauses=[(at(2.5), at(7))])
    assert told(found.stages["a"].parts) == [("delay", 1.5), ("queue", 0.5), ("work", 1)]
    assert told(found.stages["b"].parts) == [("delay", 4), ("queue", 1), ("work", 1)]
    assert {part.why for part in found.parts if part.kind == "delay"} == {"max_concurrent_goals", "paused"}
    assert found.path == ("a", "b")


def test_a_replay_waits_for_somebody():
    again = stage("a", 60, 61, 62, history=[entry(1, 2), {"replayed_at": at(60).isoformat(), "by": "me"}])
    found = goal_timing(view(again, ended=62), line("a"), at(99))
    assert told(found.parts) == [("queue", 1), ("retry", 1), ("delay", 58), ("queue", 1), ("work", 1)]
    sibling = goal_timing(view(stage("a", 60, 61, 62), ended=62), line("a"), at(99))
    assert told(sibling.parts) == [("delay", 60), ("queue", 1), ("work", 1)]


def test_a_failed_goal_ends_with_the_stage_that_failed_and_not_with_one_that_outlived_it():
    stages = (
        stage("bad", 0, 1, 2, state="failed", history=[entry(1, 2)]),
        stage("slow", 0, 1, 9),
        stage("never", None, None, 2.01, state="cancelled"),
    )
    goal = view(*stages, ended=2.01, status="failed")
    found = goal_timing(goal, {"bad": (), "slow": (), "never": ("bad",)}, at(20))
    assert (found.path, found.makespan_ms) == (("bad",), 2010)
    assert told(found.stages["slow"].parts) == [("queue", 1), ("work", 8)]
    assert "never" not in found.stages


def test_a_goal_under_way_is_timed_up_to_now():
    stages = (
        stage("a", 0, 1, 2),
        stage("b", 3, 2.5, 3, state="ready", reason="retry", due_at=at(9), attempt=2, history=[entry(2.5, 3, due=9)]),
    )
    found = goal_timing(view(*stages, ended=None, status="processing"), line("a", "b"), at(5))
    assert told(found.stages["b"].parts) == [("queue", 0.5), ("retry", 0.5), ("delay", 2)]
    assert found.makespan_ms == 5000


def test_the_time_of_a_stage_that_fanned_out_is_its_last_items():
    whole = stage("each", 0, 2, 9, fan_out=3, max_parallel=1)
    item = stage("each", 6, 7, 9)
    goal = view(whole, ended=9)
    found = goal_timing(goal, line("each"), at(20), last_items={"each": item})
    assert told(found.parts) == [("queue", 2), ("delay", 4), ("queue", 1), ("work", 2)]
    assert [part.why for part in found.parts if part.kind == "delay"] == ["max_parallel"]
    assert told(item_timing(whole, item, at(20)).parts) == [("delay", 4), ("queue", 1), ("work", 2)]


def test_a_result_that_was_taken_over_takes_no_time():
    stages = (stage("a", -50, -49, -40, reason="reused"), stage("b", 0, 1, 2))
    found = goal_timing(view(*stages, ended=2), line("a", "b"), at(9))
    assert (list(found.stages), found.path) == (["b"], ("b",))
    assert told(found.parts) == [("queue", 1), ("work", 1)]


def test_an_interrupted_stage_loses_its_run():
    back = stage("a", 3, 1, None, state="ready", reason="interrupted")
    found = goal_timing(view(back, ended=None, status="processing"), line("a"), at(5))
    assert told(found.parts) == [("queue", 1), ("lost", 2), ("queue", 2)]


TIMES = st.integers(0, 100).map(at)
RUNS = st.builds(
    lambda kind, ends: Part(kind, min(ends), max(ends)),
    st.sampled_from(["work", "retry", "lost"]),
    st.tuples(TIMES, TIMES),
)
DELAYS = st.builds(lambda ends: Part("delay", min(ends), max(ends)), st.tuples(TIMES, TIMES))


@st.composite
def goals(draw):
    parents = draw(dags(10))
    tracks = [
        Track(
            name,
            above,
            draw(TIMES),
            tuple(draw(st.lists(RUNS, max_size=3))),
            tuple(draw(st.lists(DELAYS, max_size=3))),
        )
        for name, above in parents.items()
        if draw(st.integers(0, 9))  # now and then one took no time
    ]
    return parents, tracks, draw(TIMES)


@given(goals())
def test_parts_lie_end_to_end_and_the_critical_path_is_one_of_the_dag(drawn):
    parents, tracks, end = drawn
    found = timing_of(START, end, tracks)
    for stage_found in found.stages.values():
        ends = [stage_found.ready, *(part.end for part in stage_found.parts)]
        assert [part.start for part in stage_found.parts] == ends[:-1]
        assert ends[-1] == stage_found.end
        assert all(part.start < part.end and part.kind in KINDS for part in stage_found.parts)
    assert [part.start for part in found.parts] == [START, *(part.end for part in found.parts)][:-1]
    assert sum(found.path_ms.values()) == pytest.approx(found.makespan_ms)
    assert all(above in parents[below] for above, below in zip(found.path, found.path[1:], strict=False))
    assert bool(found.path) == bool(tracks)
    if found.path:
        assert not any(parent in found.stages for parent in parents[found.path[0]])
