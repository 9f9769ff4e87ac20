"""Fan-out over items as rows: each runs once and counts once, whoever dies, comes late or acts at the same time."""

from __future__ import annotations

import random
import time

import pytest
from rows import (
    NO,
    PLACE,
    at_once,
    claim,
    complete,
    due,
    fan_out,
    lose,
    new_stage,
    replay,
    row,
    states_of,
    submit,
    take_item,
)

from loomq.ids import uuid7
from loomq.store import goals, letters, openings, stages
from loomq.store.engine import Database
from loomq.store.openings import Element
from loomq.store.stages import Place, StageKey

NEVER = 9000


@pytest.fixture
def crowd(database_url):
    """The database for many threads at once."""
    found = Database(database_url, pool_size=10)
    yield found
    found.close()


def items(database, goal, name="each"):
    query = "SELECT item, state FROM stages WHERE goal_id = %(goal)s AND name = %(name)s AND item >= 0 ORDER BY item"
    return [state for _, state in database.call(query, {"goal": goal, "name": name})]


def output(database, goal, name="each"):
    return database.call("SELECT loomq_items(%(goal)s, %(name)s)", {"goal": goal, "name": name})[0][0]


# Fan-out


def test_no_more_items_than_allowed_are_under_way_and_none_is_forgotten_whatever_happens_to_them(crowd):
    goal = fan_out(crowd, 60, max_parallel=5, tolerant=True)
    under_way = "SELECT count(*) FROM stages WHERE goal_id = %(goal)s AND item >= 0 AND state = ANY (%(states)s)"
    busy = ["ready", "published", "claimed"]
    seen = []

    def work(seed):
        dice, place = random.Random(seed), Place(uuid7(), seed, "message")
        while row(crowd, goal, "each").state == "claimed":
            seen.append(crowd.call(under_way, {"goal": goal, "states": busy})[0][0])
            for _, item in sorted(due(crowd, goal)):
                held = take_item(crowd, goal, item, place) if item >= 0 else None
                if held is None:
                    continue
                fate = dice.random()
                if fate < 0.2:
                    lose(crowd, held, retryable=dice.random() < 0.7)
                elif fate < 0.4:
                    stages.take_back(crowd, lease_s=15, max_deliveries=3, node=place.node, gone=[seed])
                else:
                    assert complete(crowd, held, f"{item}").verdict == "accepted"

    at_once(*[lambda seed=seed: work(seed) for seed in range(6)])
    assert max(seen) <= 5
    assert set(items(crowd, goal)) <= {"done", "failed", "dead"}
    assert due(crowd, goal) == {("after", -1)}
    found = output(crowd, goal)
    assert len(found["items"]) == 60
    assert [one for one in found["items"] if one is not None] == [
        index for index, state in enumerate(items(crowd, goal)) if state == "done"
    ]
    assert len(found["errors"]) == 60 - items(crowd, goal).count("done")


@pytest.mark.parametrize("leaf", [True, False])
def test_the_last_items_end_at_once_and_end_their_stage_once(crowd, leaf):
    for _ in range(5):
        goal = fan_out(crowd, 6, leaf=leaf)
        held = [take_item(crowd, goal, item) for item in range(6)]
        outcomes = at_once(*[lambda one=one: complete(crowd, one) for one in held])
        assert row(crowd, goal, "each").state == "done"
        assert [outcome.goal_ended for outcome in outcomes].count(True) == leaf
        assert [outcome.held for outcome in outcomes].count(("after",)) == (not leaf)
        assert goals.get(crowd, goal).state == ("done" if leaf else "open")


@pytest.mark.parametrize("fallback", [{"output": {"instead": 1}}, None])
def test_a_stage_without_items_to_run_is_done_and_its_goal_ends(database, fallback):
    assert goals.get(database, fan_out(database, 0, leaf=True, fallback=fallback)).state == "done"
    goal = submit(database, new_stage("each"))
    held = claim(database, goal, "each")
    skipped = [Element(index, index, "odd") for index in range(3)]
    assert openings.expand(database, held.key, held.token, skipped, reads=(), max_parallel=1).goal_ended
    assert output(database, goal) == {"items": [None] * 3, "errors": []}


def test_a_stage_is_fanned_out_once_and_is_then_out_of_its_process_hands(database):
    goal = submit(database, new_stage("each"))
    held = claim(database, goal, "each")
    fan_out(database, 3, goal=goal, claimed=held, max_parallel=1)
    elements = [Element(index, index) for index in range(3)]
    again = openings.expand(database, held.key, held.token, elements, reads=(), max_parallel=1)
    assert (again.verdict, items(database, goal)) == ("repeated", ["ready", "waiting", "waiting"])
    # An interruption or an error that comes late must not take the stage from its items.
    assert not stages.release(database, held.key, held.token, "interrupted")
    assert lose(database, held).verdict == "fenced"
    assert stages.take_back(database, lease_s=15, max_deliveries=1, node=PLACE.node, gone=[PLACE.pid]) == []
    for item in range(3):
        complete(database, take_item(database, goal, item))
    assert goals.get(database, goal).state == "done"


def test_a_stage_of_an_ended_goal_is_not_fanned_out(database):
    goal = submit(database, new_stage("each"))
    held = claim(database, goal, "each")
    goals.end(database, goal, "cancelled", NO)
    found = openings.expand(database, held.key, held.token, [Element(0, 0)], reads=())
    assert (found.verdict, items(database, goal), states_of(database, goal)) == ("fenced", [], {"each": "cancelled"})


def test_items_of_a_stage_that_has_failed_do_not_start_again(database):
    goal = fan_out(database, 6, goal_is={"on_failure": "continue_partial"})
    bad, retried, released, _, good = (take_item(database, goal, item) for item in range(5))  # one is lost
    assert (lose(database, bad).verdict, due(database, goal)) == ("continued", {("after", -1)})
    assert row(database, goal, "each").error["index"] == 0
    wanted = {held.key.item: held.is_wanted for held in stages.held_by(database, PLACE.node)}
    assert wanted == dict.fromkeys((1, 2, 3, 4), False)
    lose(database, retried, retryable=True)
    stages.release(database, released.key, released.token, "interrupted")
    stages.take_back(database, lease_s=15, max_deliveries=9, node=PLACE.node, gone=[PLACE.pid])
    assert complete(database, good).verdict == "fenced"
    database.call("UPDATE stages SET not_before = NULL WHERE goal_id = %(goal)s", {"goal": goal})
    assert [take_item(database, goal, item) for item in range(6)] == [None] * 6
    assert items(database, goal) == ["failed", *["cancelled"] * 5]
    assert complete(database, claim(database, goal, "after")).goal_ended


def test_an_item_falls_back_by_itself(database):
    other = {"worker": "other", "tier": "local", "timeout_s": 5, "max_retries": 0}
    goal = fan_out(database, 2, fallback=other, max_parallel=1)
    assert lose(database, take_item(database, goal, 0)).verdict == "fallback"
    again = take_item(database, goal, 0)
    assert (again.worker, again.attempt, again.max_retries) == ("other", 1, 0)
    assert take_item(database, goal, 1) is None
    complete(database, again, "0")
    assert take_item(database, goal, 1).worker == "echo"

    goal = fan_out(database, 2, fallback={"output": {"instead": 1}}, max_parallel=1)
    assert lose(database, take_item(database, goal, 0)).verdict == "fallback"
    complete(database, take_item(database, goal, 1), "7")
    assert output(database, goal) == {"items": [{"instead": 1}, 7], "errors": []}


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_items_go_with_their_goal(database, state):
    goal = fan_out(database, 4, max_parallel=2)
    running = take_item(database, goal, 0)
    goals.end(database, goal, state, NO)
    assert items(database, goal) == ["claimed", *["cancelled"] * 3]
    assert complete(database, running).verdict == "accepted"
    assert states_of(database, goal) == {"each": "cancelled", "after": "cancelled"}
    assert goals.get(database, goal).leaves_left == 1


def test_ten_thousand_items_cost_each_what_one_of_a_few_costs(database):
    def median_s(goal, numbers):
        """Run these items of a goal, and say how long a completion takes."""
        found = []
        for item in numbers:
            held = take_item(database, goal, item)
            begun = time.monotonic()
            complete(database, held, "1")
            found.append(time.monotonic() - begun)
        return sorted(found)[len(found) // 2]

    few = median_s(fan_out(database, 40, max_parallel=10), range(40))
    begun = time.monotonic()
    goal = fan_out(database, 10_000, max_parallel=10)
    assert time.monotonic() - begun < 5
    assert median_s(goal, range(20)) < 3 * few + 0.005
    # All the rest at a stroke but the last thirty, of which ten are under way.
    database.call(
        "UPDATE stages SET state = CASE WHEN item < 9970 THEN 'done' ELSE 'ready' END"
        " WHERE goal_id = %(goal)s AND item BETWEEN 20 AND 9979",
        {"goal": goal},
    )
    database.call(
        "UPDATE stages SET waits_for = 30, released = 9979 WHERE goal_id = %(goal)s AND name = 'each' AND item = -1",
        {"goal": goal},
    )
    assert median_s(goal, range(9970, 10_000)) < 3 * few + 0.005
    assert due(database, goal) == {("after", -1)}
    begun = time.monotonic()
    assert len(claim(database, goal, "after").inputs["each"]["output"]["items"]) == 10_000
    assert time.monotonic() - begun < 1


# Fan-out again


def test_a_replayed_item_runs_again_with_its_edited_input_and_what_is_done_stays(database):
    goal = fan_out(database, 4, max_parallel=2)
    complete(database, take_item(database, goal, 1), '"kept"')
    lose(database, take_item(database, goal, 0))
    assert items(database, goal) == ["failed", "done", "cancelled", "cancelled"]
    found = replay(database, goal, item=0, payload={"x": "mended"})
    assert (found.outcome, {(key.name, key.item) for key in found.replayed}) == (
        "replayed",
        {("each", -1), ("each", 0)},
    )
    assert (found.reopened, due(database, goal)) == (1, {("each", -1)})
    assert states_of(database, goal) == {"each": "ready", "after": "waiting"}
    assert replay(database, goal, item=0).outcome == "nothing"
    fan_out(database, 4, goal=goal, max_parallel=2)
    assert items(database, goal) == ["ready", "done", "ready", "waiting"]
    mended = take_item(database, goal, 0)
    assert (mended.payload, mended.attempt, mended.deliveries) == ({"x": "mended"}, 1, 1)
    for held in (mended, take_item(database, goal, 2)):
        complete(database, held)
    complete(database, take_item(database, goal, 3))
    assert output(database, goal)["items"][1] == "kept"
    assert complete(database, claim(database, goal, "after")).goal_ended


def test_an_item_that_still_ran_when_its_stage_was_replayed_counts_once(database):
    goal = fan_out(database, 3)
    bad, slow, slower = (take_item(database, goal, item) for item in range(3))
    lose(database, bad)
    replay(database, goal)
    held = claim(database, goal, "each")
    complete(database, slow, "1")  # the stage is in a process's hands: it has not fanned out yet
    assert row(database, goal, "each").state == "claimed"
    fan_out(database, 3, goal=goal, claimed=held)
    complete(database, take_item(database, goal, 0), "0")
    assert row(database, goal, "each").state == "claimed"
    complete(database, slower, "2")
    assert (row(database, goal, "each").state, output(database, goal)["items"]) == ("done", [0, 1, 2])


def test_items_that_end_while_their_stage_fans_out_again_are_neither_lost_nor_in_its_way(crowd):
    for _ in range(12):
        goal = fan_out(crowd, 8)
        running = [take_item(crowd, goal, item) for item in range(8)]
        lose(crowd, running[0])
        replay(crowd, goal)
        held = claim(crowd, goal, "each")
        begun = time.monotonic()
        at_once(
            lambda goal=goal, held=held: fan_out(crowd, 8, goal=goal, claimed=held),
            *[lambda one=one: complete(crowd, one, "1") for one in running[1:]],
        )
        assert time.monotonic() - begun < 0.9, "somebody waited for a deadlock"
        complete(crowd, take_item(crowd, goal, 0), "1")
        assert (row(crowd, goal, "each").state, output(crowd, goal)["items"]) == ("done", [1] * 8)


def test_a_replay_leaves_items_alone_that_nobody_missed(database):
    goal = submit(
        database,
        new_stage("each", children=("after",)),
        new_stage("after", state="waiting", waits_for=1, reads=("each",)),
    )
    fan_out(database, 2, goal=goal, tolerant=True)
    lose(database, take_item(database, goal, 0))
    complete(database, take_item(database, goal, 1))
    letters.drop(database, StageKey(goal, "each", 0), actor="ann", request=uuid7())
    lose(database, claim(database, goal, "after"))
    assert replay(database, goal, item=0).outcome != "replayed"
    assert replay(database, goal, "after").outcome == "replayed"
    assert items(database, goal) == ["failed", "done"]
    assert complete(database, claim(database, goal, "after")).goal_ended


def test_a_goal_that_went_on_after_a_failure_is_not_replayed(database):
    goal = submit(database, new_stage("a"), new_stage("b"), on_failure="continue_partial")
    lose(database, claim(database, goal, "a"))
    goals.end(database, goal, "failed", NO)
    assert replay(database, goal, "a").outcome == "ended"
    assert letters.replayable(database, letters.LetterFilter(), 10) == []
