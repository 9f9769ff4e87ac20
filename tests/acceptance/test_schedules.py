"""Schedules by real beat processes, and by the commands: ``celery -A loomq beat``, ``loomq schedule``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise

import pytest

from loomq.services import schedules as service
from loomq.store import nodes, schedules
from loomq.testing import wait_until

GOAL = "dispatch_type: goal, goal: {instruction: go, pipeline: go, context: {n: 1}}"


class BeatProcess:
    """A real ``celery -A loomq beat``."""

    def __init__(self, project, name):
        self.log = project.folder / f"{name}.log"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "loomq", "beat", "-l", "INFO"],
                cwd=project.folder,
                env=project.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self):
        return self.process.pid

    def signal(self, number):
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self):
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start_beat(project):
    """Start beats that live as long as the test."""
    beats = []

    def start(name="beat"):
        beats.append(BeatProcess(project, f"{name}{len(beats)}"))
        return beats[-1]

    yield start
    for beat in beats:
        beat.end()


@pytest.fixture
def write(project):
    project.worker("note")
    project.pipeline("go", "- {name: a, worker_type: note, input_mapping: {n: goal.context.n?}}")

    def write(*entries):
        lines = "\n".join(f"  - {{{entry}}}" for entry in entries)
        project.write("schedules/s.yaml", f"name: s\nschedules:\n{lines}\n")

    return write


def loomq(project, *arguments, code=0):
    found = subprocess.run(
        [sys.executable, "-m", "loomq.cli.main", *arguments],
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert found.returncode == code, found.stdout + found.stderr
    return found


def due(loom, key="s.a"):
    """List the due times that have fired; each has one goal."""
    found = [run for run, _ in schedules.last_runs(loom.database, [key], 1000) if run.state == "fired"]
    assert all(len(run.goals) == 1 for run in found)
    goals = loom.database.call(
        "SELECT count(*), count(DISTINCT request_id) FROM goals WHERE request_id LIKE %(like)s",
        {"like": f"schedule {key}, due %"},
    )[0]
    assert goals[0] == goals[1]
    return sorted(run.due_at for run in found)


def leader_pid(loom):
    leader = nodes.leader(loom.database, "beat")
    return int(leader.who.partition("@")[0]) if leader else 0


def test_a_stopped_leader_is_followed_within_five_seconds_and_changes_nothing_when_it_wakes(
    write, project, loom, start_beat
):
    write(f"name: a, interval_seconds: 0.5, {GOAL}")
    first = start_beat()
    wait_until(lambda: len(due(loom)) > 2, "the first beat")
    second = start_beat()
    wait_until(lambda: "beat: Starting" in second.log.read_text(), "the second beat")
    assert leader_pid(loom) == first.pid
    first.signal(signal.SIGSTOP)
    lost_at = time.monotonic()
    wait_until(lambda: leader_pid(loom) == second.pid, "the take-over")
    assert time.monotonic() - lost_at < 5
    count = len(due(loom))
    first.signal(signal.SIGCONT)
    wait_until(
        lambda: "another beat fires the schedules; this one stands by" in first.log.read_text(),
        "the first to hear of it",
    )
    wait_until(lambda: len(due(loom)) > count + 5, "the second to go on")
    found = due(loom)
    steps = {round((later - earlier).total_seconds(), 3) for earlier, later in pairwise(found)}
    assert steps == {0.5}  # nothing is missing, and nothing came twice


def test_a_beat_that_is_told_to_stop_hands_over_at_once(write, project, loom, start_beat):
    write(f"name: a, interval_seconds: 0.5, {GOAL}")
    first = start_beat()
    wait_until(lambda: due(loom), "the first beat")
    second = start_beat()
    wait_until(lambda: "beat: Starting" in second.log.read_text(), "the second beat")
    first.signal(signal.SIGTERM)
    assert first.process.wait(timeout=10) == 0
    left_at = time.monotonic()
    wait_until(lambda: leader_pid(loom) == second.pid, "the take-over")
    assert time.monotonic() - left_at < 2


def test_after_a_day_off_a_beat_makes_up_for_what_the_policy_says(write, loom, start_beat):
    lines = [
        f"name: {policy}, interval_seconds: 3600, catch_up: {policy}, {GOAL}" for policy in ("skip", "once", "all")
    ]
    write(*lines)
    beat = start_beat()
    keys = ["s.skip", "s.once", "s.all"]
    wait_until(lambda: all(due(loom, key) for key in keys), "the first due times")
    beat.end()
    loom.database.call(
        "UPDATE schedules SET anchor = anchor - interval '86700 s', handled_until = handled_until - interval '86700 s'",
        {},
    )
    loom.database.call("UPDATE schedule_runs SET due_at = due_at - interval '86700 s'", {})
    assert any("was due at" in fault for fault in service.beat(loom).faults)
    start_beat()
    wait_until(lambda: len(due(loom, "s.all")) == 25, "all that was missed")
    wait_until(lambda: len(due(loom, "s.once")) == 2, "the one for all")
    skipped = service.show(loom, "s.skip").runs[0]
    assert (skipped.state, skipped.reason[:23]) == ("skipped", "beat was not there from")
    assert len(due(loom, "s.skip")) == 1


def test_edits_are_picked_up_while_beat_runs_and_a_broken_file_is_told_of(write, project, loom, start_beat):
    write(f"name: a, interval_seconds: 3600, {GOAL}")
    beat = start_beat()
    wait_until(lambda: due(loom), "the first due time")
    project.write("schedules/s.yaml", "name: s\nschedules: [{name: a, cron: never}]\n")
    wait_until(lambda: "stay in force" in beat.log.read_text(), "the complaint")
    told = loomq(project, "status")
    assert "beat goes on with the files as they were before" in told.stdout
    assert "s.yaml:2" in told.stdout
    write(f"name: a, interval_seconds: 0.5, {GOAL}", f"name: b, interval_seconds: 3600, {GOAL}")
    wait_until(lambda: len(due(loom)) > 2, "the new interval")
    wait_until(lambda: due(loom, "s.b"), "the new entry")
    assert beat.process.poll() is None


def test_the_goals_of_schedules_run_and_are_shown(write, project, loom, start_beat, start_node):
    write(
        f"name: a, interval_seconds: 1, {GOAL}",
        'name: weekly, cron: "0 9 * * mon-fri", dispatch_type: task, task: {worker_type: note, payload: {n: 2}}',
    )
    start_node()
    start_beat()
    wait_until(lambda: any(run.outcomes.get("completed") for run in service.show(loom, "s.a").runs), "a result")
    listed = json.loads(loomq(project, "schedule", "list", "--json").stdout)
    assert [one["key"] for one in listed["schedules"]] == ["s.a", "s.weekly"]
    assert listed["beat"]["leader"]["who"]
    assert listed["beat"]["faults"] == []
    text = loomq(project, "schedule", "list").stdout
    assert "at 09:00, Monday through Friday" in text
    assert "every second" in text
    shown = loomq(project, "schedule", "show", "a").stdout
    assert "completed" in shown
    assert "due       every second, UTC" in shown
    following = json.loads(loomq(project, "schedule", "next", "3", "--of", "weekly", "--json").stdout)["next"]
    assert [one["due_at"][11:] for one in following] == ["09:00:00+00:00"] * 3
    assert "beat     " in loomq(project, "status").stdout
    status = json.loads(loomq(project, "status", "--json").stdout)
    assert (status["beat"]["schedules"], status["beat"]["firing"], status["beat"]["late"]) == (2, 2, [])
    assert "2 on; fired by" in loomq(project, "doctor", code=0).stdout


def test_the_commands_that_steer(write, project, loom):
    write(
        'name: a, cron: "0 6 * * *", overlap: skip, ' + GOAL,
        'name: broken, cron: "0 6 * * *", expand_from: mine.lists.none, ' + GOAL,
    )
    assert "no beat fires the 2 schedules" in loomq(project, "schedule", "list").stderr
    assert loomq(project, "schedule", "pause", "a").stdout == "paused s.a\n"
    assert json.loads(loomq(project, "schedule", "pause", "a", "--json").stdout)["paused"] is False
    assert "paused by " in loomq(project, "schedule", "show", "a").stdout
    assert loomq(project, "schedule", "resume", "a").stdout == "resumed s.a\n"
    fired = loomq(project, "schedule", "trigger", "a")
    assert loomq(project, "show", fired.stdout.strip(), "--json").returncode == 0
    assert "overlap: skip" in loomq(project, "schedule", "trigger", "a", code=1).stderr
    assert json.loads(loomq(project, "schedule", "trigger", "a", "--overlap", "allow", "--json").stdout)["goals"]
    assert "cannot be imported" in loomq(project, "schedule", "trigger", "broken", code=1).stderr
    when = ["--from", "2026-01-01", "--to", "2026-01-04"]
    assert loomq(project, "schedule", "backfill", "a", *when, "--dry-run").stdout.splitlines() == [
        "Thu 2026-01-01 06:00",
        "Fri 2026-01-02 06:00",
        "Sat 2026-01-03 06:00",
    ]
    assert "0 fired, 3 queued, 0 failed" in loomq(project, "schedule", "backfill", "a", *when).stderr
    again = json.loads(loomq(project, "schedule", "backfill", "a", *when, "--json").stdout)
    assert (again["due"], again["passed_over"]) == ([], 3)
    assert '"soon" is no time' in loomq(project, "schedule", "backfill", "a", "--from", "soon", code=2).stderr
    assert 'did you mean "s.a"?' in loomq(project, "schedule", "show", "s.x", code=2).stderr
