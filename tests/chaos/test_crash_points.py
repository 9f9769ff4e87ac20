"""Kill the process at each named point, for every stage once: nothing is lost, doubled, early or left hanging."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import shapes
from chaos import crash_driver
from chaos.crash_points import ANY, FAILS, QUIET, TWICE, Folder
from shapes import EVERY, JOINS, LEAVES, PARENTS, RAW, ROOTS

from loomq.store import goals
from loomq.testing import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]
PATIENCE_S = 150  # a round takes 10 s on a machine with nothing else to do
NODE = ("-c", "3")
HERE = Path(__file__).parent
CALLS = RAW["raw_chain"] | RAW["raw_chord"]  # raw calls: each is a goal of its own, which its one stage ends
WORKER_POINTS = {
    **dict.fromkeys(("claim.before", "claim.after", "work.before", "work.after", "complete.after"), EVERY),
    **dict.fromkeys(("publish.before", "publish.after"), EVERY.keys() - ROOTS),
    "publish.middle": {"d1"},
    **dict.fromkeys(("join.before", "join.after"), JOINS),
    "finish.after": LEAVES | CALLS.keys(),
    **dict.fromkeys(("fail.before", "fail.after"), PARENTS["flaky"]),
    **dict.fromkeys(("submit.before_write", "submit.after_write"), CALLS.keys() - ROOTS),  # what a worker sends on
    "follow.before": {"c1", "c2"},
    "body.before": {"x3"},
    "body.after": {"x3"},
    "agent.after_take_back": EVERY,
    TWICE: (),
}
SWEEP_POINTS = {
    "sweep.after_lead": {ANY},
    "sweep.middle": {ANY},
    **dict.fromkeys(("sweep.after_take_back", "sweep.after_unpublish"), EVERY),
    **dict.fromkeys(("sweep.after_take_ready", "sweep.after_send"), EVERY),
    "sweep.follow.before": {"c1", "c2"},
    "sweep.body.before": {"x3"},
    "sweep.body.after": {"x3"},
    QUIET: (),
}
# What gives the sweeper something to find.
SOURCES = {
    **dict.fromkeys(("claim.before", "claim.after"), EVERY),
    "follow.before": {"c1", "c2"},
    "body.before": {"x3"},
}
SUBMIT_POINTS = {
    **dict.fromkeys(("submit.before_write", "submit.after_write"), ROOTS),
    "submit.middle": {"w1", "r1", "x2"},
    "submit.after_publish": ROOTS - CALLS.keys(),
}
REPLAY_POINTS = dict.fromkeys(("replay.before", "replay.after", "replay.after_take_ready", "replay.after_send"), EVERY)


def stock(project, *, straight_on=False):
    """Write the shapes, and let every process of the project meet the points; each stage is a message of its own."""
    shapes.write(project)
    project.settings_given["straight_on"] = straight_on
    folder = Folder(project.folder / "crash")
    folder.plan({})
    project.settings_given |= {"max_deliveries": 100, "lease_seconds": 2, "sweep_seconds": 0.1}
    path = os.pathsep.join(map(str, (HERE / "site", HERE.parent, HERE.parents[1])))
    project.env = {"PYTHONPATH": path, "CRASH_POINTS": str(folder.path)}


class Town:
    """A project with two nodes, the folder of the points, and what has been submitted."""

    def __init__(self, shop):
        self.project, self.loom = shop.project, shop.loom
        self.crash = Folder(shop.project.folder / "crash")
        self.keys: dict[str, str] = {}

    def plan(self, points):
        """Begin anew with these points."""
        self.crash.plan({})
        for mark in (self.crash.path / "marks").iterdir():
            mark.unlink()
        self.crash.plan(points)

    def submit(self, key, shape):
        """Submit a goal or a user's canvas."""
        crash_driver.submit_one(self.loom, shape, key)
        self.keys[key] = shape

    def more(self, at_once):
        """Submit goals of the shapes that miss a planned point; gives the stages at which one is missed."""
        missing = {stage for _, stage in self.crash.missing()}
        for shape, stages in (PARENTS | RAW).items():
            if missing & (stages.keys() | {ANY}):
                for turn in range(at_once):
                    self.submit(f"{shape}-{len(self.keys)}-{turn}", shape)
        return set(EVERY) if ANY in missing else missing

    def rounds(self, at_once, again=()):
        """Submit goals, round by round, until every planned point has been reached; some points kill in each round."""
        for _ in range(12):
            stages = self.more(at_once)
            self.wait()
            if not self.crash.missing():
                return
            for mark in (self.crash.path / "marks" / f"{point}~{stage}" for point in again for stage in stages):
                mark.unlink(missing_ok=True)
        raise AssertionError(f"no process ever reached {sorted(self.crash.missing())}")

    def wait(self):
        """Wait until the last goal of each key has ended."""

        def ended():
            known = {key for (key,) in self.loom.database.call("SELECT key FROM idempotency_keys", {})}
            return known >= set(map(self.last_of, self.keys)) and not goals.count_open(self.loom.database)

        wait_until(ended, "the goals to end", PATIENCE_S)

    def last_of(self, key):
        """Name the key in the database of the goal that a submission ends with."""
        return {"raw_chain": f"task:{key}-c3", "raw_chord": f"task:{key}-x3"}.get(self.keys[key], key)

    def check(self):
        """Make sure that each goal is done, each of its stages once, after its parents, with the right output."""
        call = self.loom.database.call
        assert call("SELECT DISTINCT state FROM goals UNION SELECT DISTINCT state FROM stages", {}) == [("done",)]
        expected = Counter(stage for shape in self.keys.values() for stage in (PARENTS | RAW)[shape])
        rows = call("SELECT name, (output ->> 'n')::int FROM stages", {})
        assert Counter(name for name, _ in rows) == expected
        assert {(name, n) for name, n in rows} == {(name, shapes.expected(name, 1)) for name in expected}
        assert not call("SELECT goal_id, name, count(*) FROM ends GROUP BY 1, 2 HAVING count(*) <> 1", {})
        assert call("SELECT count(*) FROM ends", {}) == [(len(rows),)]
        effects = [line.split(maxsplit=2) for line in (self.crash.path / "effects").read_text().splitlines()]
        assert {order for _, _, order in effects} == {"in order"}
        assert {(goal, name) for goal, name, _ in effects} == {
            (str(goal), name) for goal, name in call("SELECT goal_id, name FROM stages", {})
        }


@pytest.fixture(scope="module")
def town(shop):
    """The project, with its second node."""
    other = type(shop.node)(shop.project, *NODE)
    shop.loom.database.call(shapes.LOG_ENDS, {})
    yield Town(shop)
    other.kill()


@contextmanager
def _driver(town, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "chaos.crash_driver", *arguments],
        cwd=town.project.folder,
        env=town.project.environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it has forked
        process.wait()


def test_a_death_at_any_point_of_a_submission_leaves_one_goal_or_none(town):
    town.plan(SUBMIT_POINTS)
    file = town.project.folder / "keys.json"

    with _driver(town, "submit", str(file)) as driver:
        assert driver.wait(PATIENCE_S) == 0
    assert not town.crash.missing(), "points that no submission ever reached"
    for shape, keys in json.loads(file.read_text()).items():
        for key in keys:
            town.submit(key, shape)

    town.wait()
    town.check()


def test_a_death_at_any_point_of_a_workers_way_loses_and_doubles_nothing(town):
    town.plan(WORKER_POINTS)
    town.rounds(at_once=4)
    town.check()


def test_a_death_at_any_point_of_the_sweepers_way_loses_and_doubles_nothing(town):
    town.plan(SWEEP_POINTS | SOURCES)
    with _driver(town, "sweep"):
        town.rounds(at_once=2, again=SOURCES)
    town.check()


def test_a_death_at_any_point_of_a_replay_loses_and_doubles_nothing(town):
    town.plan(REPLAY_POINTS)
    for number in range(8):
        stages = town.more(4)
        fails = {f"{FAILS}{number}.{time}": stages for time in range(4)}
        while True:
            town.crash.plan(REPLAY_POINTS | fails)
            wait_until(lambda: not goals.count_open(town.loom.database), "the goals to end", PATIENCE_S)
            if not crash_driver.in_hand(town.loom):
                break
            town.crash.plan(REPLAY_POINTS | fails | {QUIET: ()})
            with _driver(town, "replay") as driver:
                assert driver.wait(PATIENCE_S) == 0
        if not town.crash.missing():
            break
    assert not town.crash.missing(), "points that no replay ever reached"
    town.wait()
    town.check()
