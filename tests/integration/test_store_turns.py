"""A turn in Postgres: it ends stages and claims the next ones as single calls would, whatever is in the way."""

from __future__ import annotations

import random

import pytest
from rows import at_once, new_stage, row, states_of, submit, submit_dag

from loomq.ids import uuid7
from loomq.store import goals, nodes, results, stages, turns
from loomq.store.backlog import URGENCIES, Fairness
from loomq.store.engine import Database
from loomq.store.nodes import Node
from loomq.store.stages import Part, Place, StageKey
from loomq.store.turns import Backlog, End

FAIR = Fairness(60.0, 1 / 8)
DIAMOND = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}


@pytest.fixture
def place(database):
    """A process of a node that lives."""
    node = uuid7()
    nodes.beat(database, Node(node, "h", 1, "prefork", 2, ("echo.local",), "0"))
    return Place(node, 7, "message")


def claimed(database, place, goal_id, name):
    found = stages.claim(database, StageKey(goal_id, name), uuid7(), place, 15)
    assert found
    return found


def end(claim, *following, most=None, **more):
    """An end that goes on with these children."""
    wanted = [(name, uuid7()) for name in following]
    return End(claim.key, claim.token, '{"n": 1}', next=wanted, most=len(wanted) if most is None else most, **more)


def backlog(limit, urgent=True):
    free = [limit] * URGENCIES if urgent else [0] * URGENCIES
    return Backlog([("echo", "local")], [free], [uuid7() for _ in range(limit)], FAIR)


def names(turned):
    return sorted(claim.key.name for claim in turned.claims)


def test_a_diamond_goes_through_in_three_turns(database, place):
    goal = submit_dag(database, DIAMOND)
    first = claimed(database, place, goal, "a")
    one = turns.turn(database, [end(first, "b", "c")], place, 15)
    assert names(one) == ["b", "c"]
    assert one.outcomes[0].published == one.outcomes[0].held == ()
    assert states_of(database, goal) == {"a": "done", "b": "claimed", "c": "claimed", "d": "waiting"}
    for claim in one.claims:
        assert claim.inputs["a"]["output"] == {"n": 1}
        assert (claim.attempt, claim.deliveries, claim.worker, claim.tier) == (1, 1, "echo", "local")
        assert (claim.context, claim.instruction) == ({"n": 1}, "go")
        # A single call with the same token is answered with the same claim.
        again = stages.claim(database, claim.key, claim.token, place, 15)
        assert (again.inputs, again.timeout_s, again.deliveries, again.priority, again.rates) == (
            claim.inputs,
            claim.timeout_s,
            claim.deliveries,
            claim.priority,
            claim.rates,
        )
    two = turns.turn(database, [end(claim, "d") for claim in one.claims], place, 15)
    assert names(two) == ["d"]
    (last,) = two.claims
    assert set(last.inputs) == {"b", "c"}
    three = turns.turn(database, [end(last)], place, 15)
    assert three.outcomes[0].goal_ended
    assert goals.state_of(database, goal) == "done"
    told = database.call("SELECT kind, stage FROM events WHERE goal_id = %(g)s ORDER BY seq", {"g": goal})
    assert set(map(tuple, told)) == {
        ("goal_submitted", None),
        ("goal_completed", None),
        *((kind, name) for name in "abcd" for kind in ("stage_started", "stage_completed")),
    }


def test_no_more_are_claimed_than_asked_for_and_the_others_wait(database, place):
    goal = submit_dag(database, {"a": (), "b": ("a",), "c": ("a",), "d": ("a",)})
    found = turns.turn(database, [end(claimed(database, place, goal, "a"), "b", "c", "d", most=1)], place, 15)
    assert len(found.claims) == 1
    assert len(found.outcomes[0].held) == 2
    assert sorted(states_of(database, goal).values()) == ["claimed", "done", "ready", "ready"]


def test_children_that_are_not_named_go_their_usual_way(database, place):
    goal = submit_dag(database, {"a": (), "b": ("a",), "c": ("a",)})
    found = turns.turn(database, [end(claimed(database, place, goal, "a"), "b", room={"echo.local.1": 1})], place, 15)
    assert names(found) == ["b"]
    outcome = found.outcomes[0]
    assert {*outcome.published, *outcome.held} == {"c"}


def test_a_turn_that_is_made_again_gives_the_same_claims_and_changes_nothing(database, place):
    goal = submit_dag(database, DIAMOND)
    extra = [submit(database, new_stage("x")) for _ in range(3)]
    first = end(claimed(database, place, goal, "a"), "b", "c")
    wanted = backlog(2)
    one = turns.turn(database, [first], place, 15, wanted)
    two = turns.turn(database, [first], place, 15, wanted)
    assert (one.outcomes[0].verdict, two.outcomes[0].verdict) == ("accepted", "repeated")
    tokens = [sorted((str(claim.key), claim.token, claim.deliveries) for claim in turn.claims) for turn in (one, two)]
    assert tokens[0] == tokens[1]
    assert len(one.claims) == 4
    assert sorted(states_of(database, each)["x"] for each in extra) == ["claimed", "claimed", "ready"]
    assert database.call("SELECT count(*) FROM events WHERE kind = 'stage_completed'", {}) == [(1,)]


def test_an_end_whose_token_no_longer_holds_changes_nothing_and_stops_no_other(database, place):
    lost, kept = submit_dag(database, {"a": (), "b": ("a",)}), submit_dag(database, {"a": (), "b": ("a",)})
    gone = claimed(database, place, lost, "a")
    stages.release(database, gone.key, gone.token, "taken")
    good = claimed(database, place, kept, "a")
    found = turns.turn(database, [end(gone, "b"), end(good, "b")], place, 15)
    assert [outcome.verdict for outcome in found.outcomes] == ["fenced", "accepted"]
    assert [claim.key.goal_id for claim in found.claims] == [kept]
    assert states_of(database, lost) == {"a": "ready", "b": "waiting"}


def test_a_node_that_is_leaving_ends_what_it_has_and_takes_no_more(database, place):
    goal = submit_dag(database, {"a": (), "b": ("a",)})
    waiting = submit(database, new_stage("x"))
    first = claimed(database, place, goal, "a")
    nodes.leave(database, place.node)
    found = turns.turn(database, [end(first, "b")], place, 15, backlog(5))
    assert found.claims == ()
    assert found.outcomes[0].held == ("b",)
    assert states_of(database, waiting) == {"x": "ready"}


@pytest.mark.parametrize("how", ["paused", "cancelled"])
def test_of_a_goal_that_is_paused_or_ended_nothing_more_starts(database, place, how):
    goal = submit_dag(database, {"a": (), "b": ("a",)})
    first = claimed(database, place, goal, "a")
    if how == "paused":
        goals.pause(database, goal)
    else:
        goals.end(database, goal, "cancelled", {"message": "no"})
    found = turns.turn(database, [end(first, "b")], place, 15)
    assert found.claims == ()
    state = states_of(database, goal)["b"]
    if how == "cancelled":
        assert state == "cancelled"
        return
    assert state == "ready"
    goals.resume(database, goal)
    assert stages.claim(database, StageKey(goal, "b"), uuid7(), place, 15)


def test_the_backlog_is_taken_by_urgency_and_not_below_what_the_broker_holds(database, place):
    low = submit(database, new_stage("x", priority=0), priority=0)
    high = submit(database, new_stage("x", priority=2), priority=2)
    one = turns.turn(database, [], place, 15, backlog(1))
    assert [claim.key.goal_id for claim in one.claims] == [high]
    assert turns.turn(database, [], place, 15, backlog(1, urgent=False)).claims == ()
    assert [claim.key.goal_id for claim in turns.turn(database, [], place, 15, backlog(5)).claims] == [low]


def test_a_raw_call_among_the_backlog_is_given_back_to_be_sent(database, place):
    call = submit(database, new_stage("call"), kind="worker", task_id="t-1", canvas={"headers": {}})
    found = turns.turn(database, [], place, 15, backlog(5))
    assert found.claims == ()
    (due,) = found.due
    assert (due.key.goal_id, due.task_id, due.worker) == (call, "t-1", "echo")
    assert states_of(database, call) == {"call": "published"}


def test_a_part_of_a_chord_and_notes_are_kept(database, place):
    goal = submit(database, new_stage("call"), kind="worker", task_id="t-1")
    results.open_chord(database, "g", {"body": 1})
    first = claimed(database, place, goal, "call")
    turns.turn(
        database, [end(first, part=Part("g", 0), notes={"why": "so"}, token_usage={"prompt_tokens": 3})], place, 15
    )
    row = database.call("SELECT notes, token_usage, processing_time_ms FROM stages", {})[0]
    assert tuple(row) == ({"why": "so"}, {"prompt_tokens": 3}, 0)
    assert database.call("SELECT count(*) FROM chord_parts", {}) == [(1,)]


def test_what_was_fetched_is_claimed_in_the_same_call_as_ends(database, place):
    mine, theirs = submit(database, new_stage("a")), submit(database, new_stage("x", state="published"))
    pulled = [(StageKey(theirs, "x"), uuid7())]
    found = turns.turn(database, [end(claimed(database, place, mine, "a"))], place, 15, pulled=pulled)
    assert found.outcomes[0].goal_ended
    assert [(claim.key, claim.token) for claim in found.claims] == pulled
    written = row(database, theirs, "x")
    assert (written.state, written.node, written.pid, written.message_id, written.deliveries) == (
        "claimed",
        place.node,
        place.pid,
        place.message_id,
        1,
    )
    again = turns.turn(database, [], place, 15, pulled=pulled)
    assert [claim.token for claim in again.claims] == [pulled[0][1]], "the same call, whose first answer was lost"
    assert row(database, theirs, "x").deliveries == 1


def test_what_is_claimed_in_a_turn_holds_no_key_of_an_earlier_attempt(database, place):
    goal = submit(database, new_stage("a", state="published"))
    database.call("UPDATE stages SET limit_key = 'k', wants_key = true", {})
    turns.turn(database, [], place, 15, pulled=[(StageKey(goal, "a"), uuid7())])
    assert database.call("SELECT limit_key, wants_key FROM stages", {}) == [(None, False)]


def test_a_fetched_message_that_came_twice_or_late_claims_nothing(database, place):
    taken, paused, over = (submit(database, new_stage("a")) for _ in range(3))
    claimed(database, place, taken, "a")
    goals.pause(database, paused)
    goals.end(database, over, "cancelled", {})
    pulled = [(StageKey(goal, "a"), uuid7()) for goal in (taken, paused, over, uuid7())]
    found = turns.turn(database, [], place, 15, pulled=pulled)
    assert (found.claims, found.is_leaving) == ((), False)
    assert states_of(database, paused) == {"a": "ready"}


def test_a_node_that_is_leaving_claims_nothing_of_what_it_fetched(database, place):
    goal = submit(database, new_stage("a", state="published"))
    database.call("DELETE FROM nodes", {})
    found = turns.turn(database, [], place, 15, pulled=[(StageKey(goal, "a"), uuid7())])
    assert (found.claims, found.is_leaving) == ((), True)
    assert states_of(database, goal) == {"a": "published"}


def test_what_was_fetched_and_what_waits_are_claimed_side_by_side(database, place):
    fetched, waiting = submit(database, new_stage("a", state="published")), submit(database, new_stage("a"))
    found = turns.turn(database, [], place, 15, backlog(3), [(StageKey(fetched, "a"), uuid7())])
    assert [claim.key.goal_id for claim in found.claims] == [fetched, waiting]


def test_an_end_waits_for_the_disk_though_claims_do_not(database, place):
    database.call("CREATE TABLE seen (setting text)", {})
    database.call(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO seen SELECT current_setting('synchronous_commit'); RETURN NULL; END $$",
        {},
    )
    database.call(
        "CREATE CONSTRAINT TRIGGER note AFTER UPDATE ON stages DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW WHEN (new.state = 'done') EXECUTE FUNCTION note()",
        {},
    )
    goal = submit_dag(database, {"a": (), "b": ("a",)})
    turns.turn(database, [end(claimed(database, place, goal, "a"), "b")], place, 15, backlog(3))
    assert database.call("SELECT DISTINCT setting FROM seen", {}) == [("on",)]  # at the commit


@pytest.mark.parametrize("seed", range(6))
def test_many_processes_end_random_graphs_with_each_stage_done_once_after_its_parents(database_url, seed):
    """Against the rules: whatever turns are taken at once, nothing is claimed twice, early, or left over."""
    dice = random.Random(seed)
    database = Database(database_url, pool_size=8)
    node = uuid7()
    nodes.beat(database, Node(node, "h", 1, "prefork", 8, ("echo.local",), "0"))
    graphs = []
    for _ in range(8):
        count = dice.randint(2, 9)
        parents = {f"s{n}": tuple(f"s{m}" for m in range(n) if dice.random() < 0.4) for n in range(count)}
        graphs.append((submit_dag(database, parents), parents))
    begun = []

    def work(pid):
        mine = random.Random(seed * 100 + pid)
        where = Place(node, pid, f"m{pid}")
        todo = []
        for _ in range(200):
            begun.extend((claim.key.goal_id, claim.key.name, tuple(sorted(claim.inputs))) for claim in todo)
            ends = []
            for claim in todo:
                below = [n for n, above in dict(graphs)[claim.key.goal_id].items() if claim.key.name in above]
                named = below if mine.random() < 0.7 else below[:1]
                ends.append(end(claim, *named, most=mine.randint(0, 3)))
            found = turns.turn(database, ends, where, 15, backlog(mine.randint(1, 4)))
            assert {outcome.verdict for outcome in found.outcomes} <= {"accepted"}
            todo = list(found.claims)
            if not todo and not goals.count_open(database):
                return

    at_once(*[lambda pid=pid: work(pid) for pid in range(1, 6)])
    assert goals.count_open(database) == 0
    expected = [(goal, name, tuple(sorted(above))) for goal, parents in graphs for name, above in parents.items()]
    assert sorted(begun) == sorted(expected)
    database.close()
