"""Beat over a real Postgres: each due time once, whatever the clock, other beats and deaths do."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rows import at_once

from loomq.errors import DatabaseUnavailableError, SubmitUnavailableError
from loomq.ids import uuid7
from loomq.runs import dispatch
from loomq.runs.beat import Beat
from loomq.services import control, inspect
from loomq.services import schedules as service
from loomq.store import goals, schedules
from loomq.testing import wait_until

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
START = datetime(2026, 3, 2, 12, 0, 30, tzinfo=UTC)  # a Monday


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    """Import the test's own package, and not that of the test before."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "mine").is_dir()])


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def write(project):
    """Write the one schedule of the project."""
    project.worker("note")
    project.pipeline("go", "- {name: a, worker_type: note, input_mapping: {n: goal.context.n?}}")

    def write(*entries: str, zone: str = "UTC") -> None:
        lines = "\n".join(f"  - {{{entry}}}" for entry in entries)
        project.write("schedules/s.yaml", f"name: s\ntimezone: {zone}\nschedules:\n{lines}\n")

    return write


@pytest.fixture
def beats(loom, clock):
    """Give beats that share a clock; the next may lead only if the one before has stepped down."""
    return lambda: Beat(loom.database, loom.configs, loom.dispatcher, uuid7(), clock)


@pytest.fixture
def run(beats, clock):
    """Let a beat tick until nothing is due any more; gives it."""
    made: list[Beat] = []

    def run(passed: timedelta = timedelta(0)) -> Beat:
        beat = made[0] if made else made.append(beats()) or made[0]
        beat.tick()  # files that were written just now are read when they have come to rest
        clock.now += passed
        for _ in range(1000):
            if beat.tick() > 0.05:
                break
        return beat

    return run


GOAL = "dispatch_type: goal, goal: {instruction: go, pipeline: go, context: {n: 1}}"


def runs_of(loom, key="s.a"):
    found = [pair[0] for pair in schedules.last_runs(loom.database, [key], 10_000)]
    return sorted(found, key=lambda run: run.due_at)


def fired(loom, key="s.a"):
    """Give the due times that have a goal, and make sure that each has exactly one."""
    found = [run.due_at for run in runs_of(loom, key) for goal in run.goals if goal is not None]
    assert len(found) == len(set(found))
    count = loom.database.call("SELECT count(*) FROM goals", {})[0][0]
    assert count >= len(found)
    return found


def all_goals(loom):
    return loom.database.call("SELECT count(*) FROM goals", {})[0][0]


def test_a_cron_expression_fires_from_its_next_due_time_on_and_an_interval_at_once(write, loom, run):
    write(f'name: a, cron: "0 * * * *", {GOAL}', f"name: b, interval_seconds: 90, {GOAL}")
    run()
    assert fired(loom) == []
    assert fired(loom, "s.b") == [START]
    run(89 * SECOND)
    assert fired(loom, "s.b") == [START]
    for _ in range(100):
        run(MINUTE)
    assert fired(loom) == [START.replace(hour=hour, second=0) for hour in (13,)]
    assert fired(loom, "s.b") == [START + number * 90 * SECOND for number in range(len(fired(loom, "s.b")))]
    assert len(fired(loom, "s.b")) == 68
    assert goals.get(loom.database, runs_of(loom)[0].goals[0]).pipeline == "go"
    assert loom.database.call("SELECT DISTINCT request_id FROM goals WHERE request_id LIKE 'schedule s.a%%'", {}) == [
        ("schedule s.a, due 2026-03-02T13:00:00+00:00",)
    ]


def test_a_clock_that_is_set_back_or_jumps_doubles_nothing(write, loom, run, clock):
    write(f"name: a, interval_seconds: 60, catch_up: all, {GOAL}")
    run()
    for _ in range(10):
        run(MINUTE)
    before = fired(loom)
    assert len(before) == 11
    run(-5 * MINUTE)
    run(-3 * SECOND)
    assert fired(loom) == before
    for _ in range(5):
        run(MINUTE)
    assert fired(loom) == before
    run(MINUTE + 3 * SECOND)
    assert len(fired(loom)) == 12
    run(DAY)  # forward, by mistake
    ahead = fired(loom)
    assert len(ahead) == 12 + 1440
    run(-DAY)
    run(5 * MINUTE)
    assert fired(loom) == ahead  # all of them have fired already
    clock.now = max(ahead)
    run(MINUTE)
    assert len(fired(loom)) == len(ahead) + 1
    assert all_goals(loom) == len(ahead) + 1


def test_after_a_far_jump_forward_and_back_what_was_skipped_by_it_fires_in_its_time(write, loom, run):
    write(f"name: a, interval_seconds: 3600, {GOAL}")
    run()
    run(365 * DAY)
    assert [run.state for run in runs_of(loom)] == ["fired", "skipped", "fired"]
    run(-365 * DAY)
    run(HOUR)
    assert fired(loom)[:2] == [START, START + HOUR]


@pytest.mark.parametrize(
    ("policy", "states", "count"), [("skip", ["skipped"], 0), ("once", ["fired"], 1), ("all", ["fired"] * 24, 24)]
)
def test_after_a_day_off_the_policy_says_what_fires(write, loom, run, policy, states, count):
    write(f'name: a, cron: "0 * * * *", catch_up: {policy}, {GOAL}')
    run()
    run(DAY + 10 * MINUTE)
    found = runs_of(loom)
    assert [each.state for each in found] == states
    assert len(fired(loom)) == all_goals(loom) == count
    if policy == "skip":
        assert found[0].reason == (
            "beat was not there from 2026-03-02 13:00:00+00:00 to 2026-03-03 12:00:00+00:00; catch_up: skip"
        )
    if policy == "once":
        assert found[0].due_at == datetime(2026, 3, 3, 12, tzinfo=UTC)
        assert found[0].reason.startswith("stands for all that was due from 2026-03-02 13:00:00")
    run(50 * MINUTE - 30 * SECOND)
    assert len(fired(loom)) == count + 1


def test_two_that_both_believe_to_lead_fire_each_due_time_once(write, loom, beats, clock):
    write(f"name: a, interval_seconds: 10, {GOAL}", f"name: b, interval_seconds: 10, {GOAL}")
    pair = [beats(), beats()]
    for each in pair:
        each._read_files()
    for _ in range(20):
        at_once(*[each._pass for each in pair])  # past the lease, as one that was held up between two lines
        clock.now += 10 * SECOND
    at_once(*[each._pass for each in pair])
    for key in ("s.a", "s.b"):
        assert fired(loom, key) == [START + number * 10 * SECOND for number in range(21)]
    assert all_goals(loom) == 42


def test_one_of_two_leads_and_the_other_follows_when_it_steps_down(write, loom, beats, clock):
    write(f"name: a, interval_seconds: 10, {GOAL}")
    first, second = beats(), beats()
    first.tick()
    second.tick()
    clock.now += 10 * SECOND
    second.tick()
    assert len(fired(loom)) == 1
    first.step_down()
    second.tick()
    assert len(fired(loom)) == 2
    assert "another" not in str(service.beat(loom).leader)


class Death(BaseException):
    """What ends the process, as far as a test in it can."""


@pytest.mark.parametrize(
    "where", ["decide", "end_earlier", "submit", "submitted", "add_goals", "finish", "set_items", "expanded"]
)
def test_whoever_goes_on_after_a_death_hands_in_each_goal_once(project, write, loom, beats, clock, monkeypatch, where):
    project.write("mine/lists.py", "def three():\n    return [{'n': n} for n in range(3)]\n")
    expand = "expand_from: mine.lists.three, " if where in {"set_items", "expanded", "submitted"} else ""
    write(f"name: a, interval_seconds: 60, overlap: cancel_previous, {expand}{GOAL}")
    each = 3 if expand else 1
    first, second = beats(), beats()
    wait_until(lambda: first.tick() and all_goals(loom) == each, "the first run")
    clock.now += MINUTE
    home = {"submit": loom.submitter, "submitted": loom.submitter, "expanded": dispatch.Expansion}.get(where, schedules)
    name = {"submitted": "submit", "expanded": "outcome"}.get(where, where)
    original, calls = getattr(home, name), []

    def dies(*args, **options):
        calls.append(1)
        if where == "submitted":  # the second of three, after it is written down
            found = original(*args, **options)
            if len(calls) < 2:
                return found
            raise Death
        if where == "decide":
            original(*args, **options)
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(home, name, dies)
        for _ in range(200):
            try:
                first.tick()
            except Death:
                break
        else:
            pytest.fail("nobody died")
    first.step_down()
    second._dispatcher = dispatch.Dispatcher(loom.settings, loom.database, loom.submitter, loom.sequel)
    wait_until(lambda: second.tick() and [run.state for run in runs_of(loom)] == ["fired"] * 2, "the second run")
    assert all_goals(loom) == 2 * each
    assert [len(run.goals) for run in runs_of(loom)] == [each] * 2
    states = loom.database.call("SELECT state FROM goals ORDER BY id", {})
    assert states == [("cancelled",)] * each + [("open",)] * each


def test_a_database_that_is_away_is_outlived_and_told_once(write, loom, beats, clock, monkeypatch, caplog):
    write(f"name: a, interval_seconds: 60, {GOAL}")
    beat = beats()
    beat.tick()
    clock.now += MINUTE

    def refuses(*args, **options):
        raise SubmitUnavailableError("the goal was not accepted: away")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(loom.submitter, "submit", refuses)
        for _ in range(3):
            assert 0 < beat.tick() <= 1
        patch.setattr(schedules, "seen", lambda database: (_ for _ in ()).throw(DatabaseUnavailableError("away")))
        beat.tick()
    assert [record.message for record in caplog.records] == ["the goal was not accepted: away"]
    beat.tick()
    assert len(fired(loom)) == 2


def test_what_is_refused_is_told_and_keeps_nobody_else_waiting(project, write, loom, run):
    project.pipeline(
        "strict",
        "- {name: a, worker_type: note, input_mapping: {}}",
        "input_schema: {type: object, properties: {n: {type: integer, maximum: 1}}}\n",
    )
    project.write(
        "mine/lists.py",
        "def three():\n    return [{'n': n} for n in range(3)]\n"
        "def wrong():\n    return {'n': 1}\n"
        "def broken():\n    return 1 / 0\n"
        "def none():\n    return []\n"
        "def all_wrong():\n    return [{'n': 7}]\n"
        "def leaves():\n    raise SystemExit\n"
        "def mixed():\n    return [{}, 3]\n"
        "def no_json():\n    return [{'n': object()}]\n",
    )
    names = ("three", "wrong", "broken", "none", "all_wrong", "leaves", "mixed", "no_json", "gone")
    strict = "dispatch_type: goal, goal: {instruction: go, pipeline: strict}"
    write(*(f"name: {name}, interval_seconds: 60, expand_from: mine.lists.{name}, {strict}" for name in names))
    run()
    wait_until(lambda: run() and not schedules.unfinished(loom.database), "the runs")
    found = {name: runs_of(loom, f"s.{name}")[0] for name in names}
    told = {name: (one.state, one.reason) for name, one in found.items()}
    assert told["three"][0] == "fired"
    assert told["three"][1].startswith("1 of 3 were refused: the context of pipeline strict breaks its contract")
    assert [goal is None for goal in found["three"].goals] == [False, False, True]
    assert told["wrong"] == ("failed", "mine.lists.wrong gave a dict; it must give a list of dicts, one a dispatch")
    assert told["broken"] == ("failed", "mine.lists.broken raised ZeroDivisionError: division by zero")
    assert told["none"] == ("fired", "mine.lists.none gave nothing")
    assert told["all_wrong"][0] == "failed"
    assert told["leaves"] == ("failed", "mine.lists.leaves raised SystemExit: ")
    assert "a list with a int in it" in told["mixed"][1]
    assert "is not JSON" in told["no_json"][1]
    assert "has no 'gone'" in told["gone"][1]
    assert all_goals(loom) == 2
    told = [fault for fault in service.beat(loom).faults if "s.broken: the run due at" in fault]
    assert told[0].endswith("failed: mine.lists.broken raised ZeroDivisionError: division by zero")


def test_a_function_that_never_comes_back_fails_its_run_and_stops_nobody(project, write, loom, run, monkeypatch):
    monkeypatch.setattr(dispatch, "_EXPANDS_WITHIN_S", 0.5)
    project.write("mine/lists.py", "import threading\n\n\ndef hangs():\n    threading.Event().wait()\n")
    write(
        f"name: a, interval_seconds: 600, expand_from: mine.lists.hangs, {GOAL}",
        f"name: b, interval_seconds: 1, {GOAL}",
    )
    run()
    run(SECOND)
    assert len(fired(loom, "s.b")) == 2
    wait_until(lambda: run() and runs_of(loom)[0].state == "failed", "the end of patience")
    assert runs_of(loom)[0].reason == "mine.lists.hangs gave nothing within 0.5 s"


def end_goals(loom, state="failed"):
    for (goal_id,) in loom.database.call("SELECT id FROM goals WHERE state = 'open'", {}):
        goals.end(loom.database, goal_id, state, {"type": "X", "message": "m"})


def test_overlap_skip_passes_over_what_is_due_while_the_last_run_goes_on(write, loom, run):
    write(f"name: a, interval_seconds: 60, overlap: skip, {GOAL}")
    run()
    run(MINUTE)
    end_goals(loom)
    run(MINUTE)
    assert [(one.state, one.reason) for one in runs_of(loom)] == [
        ("fired", None),
        ("skipped", "the last run was still going on; overlap: skip"),
        ("fired", None),
    ]


def test_overlap_queue_lets_one_go_after_another_in_order(write, loom, run):
    write(f"name: a, interval_seconds: 60, overlap: queue, {GOAL}")
    run()
    for _ in range(3):
        run(MINUTE)
    assert [one.state for one in runs_of(loom)] == ["fired", *["queued"] * 3]
    for done in range(2, 5):
        end_goals(loom)
        run()
        run()
        assert [one.state for one in runs_of(loom)] == ["fired"] * done + ["queued"] * (4 - done)
        assert all_goals(loom) == done


def test_a_queue_has_an_end(write, loom, run, monkeypatch):
    monkeypatch.setattr("loomq.runs.beat._MOST_QUEUED", 2)
    write(f"name: a, interval_seconds: 60, overlap: queue, {GOAL}")
    run()
    for _ in range(3):
        run(MINUTE)
    assert [one.state for one in runs_of(loom)] == ["fired", "queued", "queued", "skipped"]
    assert runs_of(loom)[-1].reason == "2 runs wait already; overlap: queue"


def test_overlap_cancel_previous_ends_the_last_run(write, loom, run):
    write(f"name: a, interval_seconds: 60, overlap: cancel_previous, {GOAL}")
    run()
    run(MINUTE)
    first, second = (one.goals[0] for one in runs_of(loom))
    assert loom.database.call("SELECT state FROM goals ORDER BY id", {}) == [("cancelled",), ("open",)]
    error = inspect.goal(loom, first).error
    assert error["message"] == "the next run of schedule s.a began"
    assert inspect.goal(loom, second).error is None


def test_a_paused_schedule_fires_nothing_and_goes_on_from_its_resumption(write, loom, run, clock, monkeypatch):
    write(f"name: a, interval_seconds: 60, catch_up: all, overlap: queue, {GOAL}")
    run()
    run(MINUTE)  # queued
    assert service.pause(loom, "s.a", actor="kim")
    assert not service.pause(loom, "s.a")
    end_goals(loom)
    run(10 * MINUTE)
    assert len(fired(loom)) == 1
    view = service.show(loom, "s.a")
    assert (view.state, view.paused_by, view.next, view.late) == ("paused", "kim", (), None)
    loom.database.call(
        "UPDATE schedules SET handled_until = %(now)s", {"now": clock.now}
    )  # as resume does, by our clock
    loom.database.call("UPDATE schedules SET paused_at = NULL", {})
    run()
    assert len(fired(loom)) == 2  # the queued one
    end_goals(loom)
    run(MINUTE)
    assert len(fired(loom)) == 3


def test_resume_passes_over_what_was_due_by_the_server_s_clock(write, loom):
    write(f"name: a, interval_seconds: 3600, catch_up: all, {GOAL}")
    beat = loom.beat(uuid7())
    beat.tick()
    assert len(fired(loom)) == 1
    assert not service.resume(loom, "s.a")
    service.pause(loom, "s.a")
    loom.database.call("UPDATE schedules SET handled_until = handled_until - interval '1 day'", {})
    assert service.resume(loom, "s.a")
    beat.tick()
    assert len(fired(loom)) == 1


def test_a_schedule_can_be_paused_before_beat_has_seen_it(write, loom, run):
    write(f"name: a, interval_seconds: 60, {GOAL}")
    assert service.show(loom, "s.a").state == "new"
    assert service.pause(loom, "s.a")
    run(HOUR)
    assert fired(loom) == []


def test_edits_are_picked_up_and_broken_ones_change_nothing(project, write, loom, run, caplog):
    write(f"name: a, interval_seconds: 60, {GOAL}", f"name: gone, interval_seconds: 60, overlap: queue, {GOAL}")
    run()
    run(MINUTE)
    assert runs_of(loom, "s.gone")[-1].state == "queued"
    project.write("schedules/s.yaml", "name: s\nschedules: 3\n")
    run(MINUTE)
    assert len(fired(loom)) == 3
    (fault,) = [record.message for record in caplog.records if "stay in force" in record.message]
    assert "schedules/s.yaml:2" in fault
    view = service.beat(loom)
    assert view.files_fault is not None
    assert "beat goes on with the files as they were before" in view.faults[0]
    write(f"name: a, interval_seconds: 10, {GOAL}", f"name: new, interval_seconds: 60, {GOAL}")
    run(7 * SECOND)
    assert service.beat(loom).files_fault is None
    run(10 * SECOND)
    assert len(fired(loom)) == 5
    assert len(fired(loom, "s.new")) == 1
    gone = runs_of(loom, "s.gone")[-1]
    assert (gone.state, gone.reason) == ("skipped", "the schedule is disabled, or no longer in the files")
    write(f"name: a, interval_seconds: 10, enabled: false, {GOAL}")
    run(HOUR)
    assert len(fired(loom)) == 5


def test_a_disabled_schedule_that_is_enabled_again_catches_nothing_up(write, loom, run):
    line = 'name: a, cron: "0 * * * *", catch_up: all'
    write(f"{line}, {GOAL}")
    run()
    write(f"{line}, enabled: false, {GOAL}")
    run(DAY)
    write(f"{line}, {GOAL}")
    run()
    assert fired(loom) == []
    run(HOUR - 30 * SECOND)
    assert len(fired(loom)) == 1


def test_tasks_tiers_priorities_and_the_only_orchestrator(project, write, loom, run):
    project.write("pipelines/chief.yaml", "name: chief\nkind: orchestrator\navailable_workers: [{name: note}]\n")
    write(
        "name: a, interval_seconds: 60, dispatch_type: task,"
        " task: {worker_type: note, payload: {n: 5}, model_tier: frontier, priority: high}",
        "name: b, interval_seconds: 60, dispatch_type: goal, goal: {instruction: think, priority: critical}",
    )
    assert "note.frontier" in loom.router.queues_in_use
    run()
    row = goals.get(loom.database, runs_of(loom)[0].goals[0])
    assert (row.kind, row.pipeline, row.context, row.priority) == ("worker", "note", {"n": 5}, 2)
    assert goals.stages_of(loom.database, row.id)[0].tier == "frontier"
    other = goals.get(loom.database, runs_of(loom, "s.b")[0].goals[0])
    assert (other.kind, other.pipeline, other.instruction, other.priority) == ("orchestrator", "chief", "think", 3)


def test_trigger_fires_now_and_keeps_to_the_policy_unless_told_otherwise(project, write, loom, run, clock):
    project.write("mine/lists.py", "def two():\n    return [{'n': n} for n in range(2)]\n")
    write(f"name: a, interval_seconds: 60, overlap: skip, enabled: false, expand_from: mine.lists.two, {GOAL}")
    first = service.trigger(loom, "s.a")
    assert (first.cause, first.state, len(first.goals)) == ("trigger", "fired", 2)
    assert service.trigger(loom, "s.a").state == "skipped"
    assert service.trigger(loom, "s.a", overlap="allow").state == "fired"
    assert service.trigger(loom, "s.a", overlap="cancel_previous").state == "fired"
    assert loom.database.call("SELECT count(*) FROM goals WHERE state = 'cancelled'", {}) == [(4,)]
    assert service.trigger(loom, "s.a", overlap="queue").state == "queued"
    end_goals(loom)
    write(f"name: a, interval_seconds: 60, overlap: skip, expand_from: mine.lists.two, {GOAL}")
    wait_until(lambda: run() and not schedules.unfinished(loom.database), "the queued one")
    assert [one.state for one in runs_of(loom)].count("fired") >= 4


def test_a_trigger_that_dies_is_gone_on_with_by_beat(write, loom, run, monkeypatch):
    write(f"name: a, interval_seconds: 60, enabled: false, {GOAL}")

    def dies(*args):
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(loom.dispatcher, "bring_about", dies)
        with pytest.raises(Death):
            service.trigger(loom, "s.a")
    run()
    assert all_goals(loom) == 0  # it is left to whoever began it
    loom.database.call("UPDATE schedule_runs SET held_until = clock_timestamp() - interval '1 second'", {})
    run()
    assert all_goals(loom) == 1


def test_backfill_fires_what_has_not_fired_once(write, loom, run):
    write(f'name: a, cron: "0 6 * * *", {GOAL}', zone="America/New_York")
    begin, end = datetime(2026, 3, 5), datetime(2026, 3, 12)  # noqa: DTZ001  (over a change of the clock)
    planned = service.backfill(loom, "s.a", begin, end, dry_run=True)
    assert len(planned.due) == 7
    assert all_goals(loom) == 0
    assert [at.hour for at in planned.due] == [11, 11, 11, 10, 10, 10, 10]
    loom.database.call(
        "INSERT INTO schedule_runs (key, due_at, cause, state, dispatch, goals) VALUES"
        " ('s.a', %(one)s, 'due', 'fired', '{}', '{}'), ('s.a', %(two)s, 'due', 'skipped', '{}', '{}')",
        {"one": planned.due[0], "two": planned.due[1]},
    )
    done = service.backfill(loom, "s.a", begin, end)
    assert (len(done.due), done.passed_over, [one.state for one in done.runs]) == (6, 1, ["fired"] * 6)
    assert all_goals(loom) == 6
    again = service.backfill(loom, "s.a", begin, end)
    assert (again.due, again.passed_over, all_goals(loom)) == ((), 7, 6)
    at_once(*[lambda: service.backfill(loom, "s.a", datetime(2026, 4, 1), datetime(2026, 4, 11))] * 3)  # noqa: DTZ001
    assert all_goals(loom) == 16


def test_backfill_refuses_what_cannot_be_meant(write, loom):
    write(f"name: a, interval_seconds: 60, {GOAL}", f'name: b, cron: "* * * * *", overlap: queue, {GOAL}')
    with pytest.raises(Exception, match="nothing is before"):
        service.backfill(loom, "s.a", datetime(2100, 1, 1, tzinfo=UTC))
    with pytest.raises(Exception, match="more than 1,000 times"):
        service.backfill(loom, "s.b", datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC))
    queued = service.backfill(loom, "s.b", datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 3, tzinfo=UTC))
    assert [one.state for one in queued.runs] == ["queued"] * 3


def test_a_schedule_is_found_by_what_says_which(project, write, loom):
    write(f"name: a, interval_seconds: 60, {GOAL}", f"name: b, interval_seconds: 60, {GOAL}")
    assert service.find(loom, "s.a") == service.find(loom, "a") == "s.a"
    with pytest.raises(Exception, match=r'"s" may be s\.a, s\.b'):
        service.find(loom, "s")
    with pytest.raises(Exception, match="no schedule is called"):
        service.find(loom, "c")


def test_a_schedule_that_has_not_fired_when_it_should_is_late(write, loom):
    write(f"name: a, interval_seconds: 3600, {GOAL}")
    assert service.beat(loom).faults == ("no beat fires the schedule: celery -A loomq beat, or loomq dev",)
    beat = loom.beat(uuid7())
    beat.tick()
    assert service.beat(loom).faults == ()
    loom.database.call(
        "UPDATE schedules SET anchor = anchor - interval '2 hours', handled_until = handled_until - interval '2 hours'",
        {},
    )
    (fault,) = service.beat(loom).faults
    assert fault.startswith("s.a was due at ")
    assert service.survey(loom)[0].late is not None


def test_a_thousand_schedules_cost_a_tick_little(write, loom, run, clock):
    """Each tick asks for each schedule's next time once, and not anew."""
    write(*(f'name: e{number}, cron: "{number % 60} * * * *", {GOAL}' for number in range(300)))
    beat = run()
    asked = []
    for timing in beat.timings.values():
        original = timing.clock.after
        object.__setattr__(timing.clock, "after", lambda moment, original=original: asked.append(1) or original(moment))
    for _ in range(20):
        run()
    assert len(asked) == 0


def test_runs_are_pruned_after_their_goals_but_for_the_last(write, loom, run):
    from loomq.services.prune import prune

    write(f"name: a, interval_seconds: 60, {GOAL}")
    run()
    for _ in range(3):
        run(MINUTE)
    control.cancel(loom, runs_of(loom)[0].goals[0])
    control.cancel(loom, runs_of(loom)[-1].goals[0])
    assert prune(older=timedelta(0), dry_run=True, loom=loom).runs == 0
    done = prune(older=timedelta(0), loom=loom)
    assert (done.goals, done.runs) == (2, 1)
    assert len(runs_of(loom)) == 3


def test_a_run_that_goes_on_is_seen_behind_hundreds_that_do_not(write, loom, run):
    write(f"name: a, interval_seconds: 60, overlap: skip, {GOAL}")
    run()
    for _ in range(130):
        run(MINUTE)
    assert all_goals(loom) == 1
    assert len(runs_of(loom)) == 131


def test_one_schedule_that_cannot_be_served_keeps_no_other_from_it(write, loom, run, monkeypatch):
    write(*(f"name: {name}, interval_seconds: 60, {GOAL}" for name in "abc"))
    beat = run()
    original = schedules.decide

    def breaks(database, key, *args, **more):
        if key == "s.b":
            raise ZeroDivisionError("nobody thought of that")
        return original(database, key, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(schedules, "decide", breaks)
        run(MINUTE)
        assert [len(fired(loom, key)) for key in ("s.a", "s.b", "s.c")] == [2, 1, 2]
        assert any("s.b cannot be served: ZeroDivisionError" in fault for fault in service.beat(loom).faults)
    run(MINUTE)
    assert [len(fired(loom, key)) for key in ("s.a", "s.b", "s.c")] == [3, 3, 3]
    beat.tick()
    assert not any("cannot be served" in fault for fault in service.beat(loom).faults)


def test_a_beat_whose_passes_all_fail_lets_another_lead(write, loom, beats, monkeypatch):
    write(f"name: a, interval_seconds: 60, {GOAL}")
    first, second = beats(), beats()

    def breaks():
        raise ZeroDivisionError

    monkeypatch.setattr(first, "_pass", breaks)
    for _ in range(3):
        first.tick()
        second.tick()
    first.tick()
    second.tick()
    assert len(fired(loom)) == 1


def test_what_postgres_cannot_keep_of_a_reason_is_replaced(project, write, loom, run):
    project.write("mine/lists.py", "def bad():\n    raise ValueError('a\\0b\\ud800' + 'c' * 9000)\n")
    write(f"name: a, interval_seconds: 60, expand_from: mine.lists.bad, {GOAL}")
    wait_until(lambda: run() and runs_of(loom) and runs_of(loom)[0].state == "failed", "the end")
    assert "a\N{REPLACEMENT CHARACTER}b?c" in runs_of(loom)[0].reason
    assert len(runs_of(loom)[0].reason) < 2100


def test_a_run_of_many_goals_leaves_time_for_others(project, write, loom, beats, clock):
    project.write("mine/lists.py", "def many():\n    return [{'n': n} for n in range(1500)]\n")
    write(
        f"name: many, interval_seconds: 6000, expand_from: mine.lists.many, {GOAL}",
        f"name: b, interval_seconds: 1, {GOAL}",
    )
    beat = beats()
    wait_until(lambda: beat.tick() >= 0 and runs_of(loom, "s.many")[0].goals, "some of the many")
    before = len(runs_of(loom, "s.many")[0].goals)
    clock.now += SECOND
    beat.tick()
    assert fired(loom, "s.b")[-1] == clock.now
    assert before < len(runs_of(loom, "s.many")[0].goals) < 1500
    wait_until(lambda: beat.tick() >= 0 and runs_of(loom, "s.many")[0].state == "fired", "all of the many")
    assert len(set(runs_of(loom, "s.many")[0].goals)) == 1500


def test_many_queued_runs_of_one_schedule_keep_no_other_waiting(write, loom, run):
    write(f'name: a, cron: "* * * * *", overlap: queue, {GOAL}', f"name: b, interval_seconds: 60, {GOAL}")
    run()
    service.backfill(loom, "s.a", datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 16, tzinfo=UTC))
    service.pause(loom, "s.a")
    run(MINUTE)
    assert len(fired(loom, "s.b")) == 2
    assert fired(loom) == []


def test_files_that_are_away_for_a_moment_withdraw_nothing(project, write, loom, run):
    write(f"name: a, interval_seconds: 60, overlap: queue, {GOAL}")
    beat = run()
    run(MINUTE)
    file = project.folder / "schedules/s.yaml"
    text = file.read_text()
    file.unlink()
    beat.tick()
    file.write_text(text)
    run()
    run()
    assert [one.state for one in runs_of(loom)] == ["fired", "queued"]


def test_a_schedule_that_two_begin_at_once_begins_once(write, loom):
    schedules.begin(loom.database, "s.a", "every 10 s UTC", START, START - SECOND)
    schedules.begin(loom.database, "s.a", "every 10 s UTC", START + 3 * SECOND, START + 2 * SECOND)
    assert schedules.seen(loom.database)[1]["s.a"].anchor == START
    schedules.begin(loom.database, "s.a", "every 9 s UTC", START + 3 * SECOND, START + 2 * SECOND)
    assert schedules.seen(loom.database)[1]["s.a"].anchor == START + 3 * SECOND


def test_an_interval_that_began_before_the_clock_was_set_back_begins_anew(write, loom, run, clock):
    write(f"name: a, interval_seconds: 60, {GOAL}")
    clock.now += DAY
    run()
    run(-DAY)
    run(MINUTE)
    assert fired(loom)[:2] == [START, START + MINUTE]


def test_with_all_and_queue_nothing_is_lost_when_the_queue_is_full(write, loom, run, monkeypatch):
    monkeypatch.setattr("loomq.runs.beat._MOST_QUEUED", 2)
    write(f"name: a, interval_seconds: 60, overlap: queue, catch_up: all, {GOAL}")
    run()
    run(6 * MINUTE)
    for _ in range(8):
        end_goals(loom, "done")
        run()
        run()
    assert [one.state for one in runs_of(loom)] == ["fired"] * 7
