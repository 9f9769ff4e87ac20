"""A stage is claimed by one and completed once."""

from datetime import timedelta

import pytest
from rows import PLACE, alter, at_once, claim, complete, new_stage, row, run, states_of, submit, submit_dag

from loomq.ids import uuid7
from loomq.store import goals, stages
from loomq.store.engine import Database
from loomq.store.stages import StageKey


def _claim(database, goal_id, name, token=None, place=PLACE, lease_s=15):
    return stages.claim(database, StageKey(goal_id, name), token or uuid7(), place, lease_s)


# Claim


def test_a_claim_brings_what_the_stage_needs(database):
    goal_id = submit(
        database,
        new_stage("a", timeout_s=2.5, max_retries=7),
        context={"x": [1]},
        instruction="go",
        priority=3,
        task_id="t",
        canvas={"group_id": "g"},
    )
    token = uuid7()
    claimed = _claim(database, goal_id, "a", token)
    assert (claimed.key, claimed.token) == (StageKey(goal_id, "a"), token)
    assert (claimed.snapshot, claimed.instruction, claimed.context, claimed.priority) == ("h", "go", {"x": [1]}, 3)
    assert (claimed.task_id, claimed.canvas) == ("t", {"group_id": "g"})
    assert (claimed.attempt, claimed.deliveries, claimed.timeout_s, claimed.max_retries) == (1, 1, 2.5, 7)
    assert claimed.inputs == {}
    written = row(database, goal_id, "a")
    assert (written.state, written.token, written.message_id) == ("claimed", token, "message")
    assert (written.node, written.pid) == (PLACE.node, PLACE.pid)
    assert written.lease_until - written.started_at >= timedelta(seconds=14.9)


def test_one_of_twenty_claims_at_once_wins(database_url):
    database = Database(database_url, pool_size=10)
    goal_id = submit(database, new_stage("a", state="published"))
    claims = at_once(*[lambda: _claim(database, goal_id, "a")] * 20)
    (winner,) = [found for found in claims if found]
    written = row(database, goal_id, "a")
    assert (written.token, written.deliveries) == (winner.token, 1)
    database.close()


def test_a_claim_repeated_with_its_token_is_the_same_and_counts_one_delivery(database):
    goal_id = submit(database, new_stage("a"))
    token = uuid7()
    first, again = _claim(database, goal_id, "a", token), _claim(database, goal_id, "a", token)
    assert first == again
    assert row(database, goal_id, "a").deliveries == 1
    assert _claim(database, goal_id, "a") is None


def test_a_stage_is_not_claimed_before_its_time(database):
    goal_id = submit(database, new_stage("a"))
    alter(database, goal_id, "a", "not_before = clock_timestamp() + interval '1 hour'")
    assert _claim(database, goal_id, "a") is None
    assert row(database, goal_id, "a").deliveries == 0
    alter(database, goal_id, "a", "not_before = clock_timestamp() - interval '1 second'")
    assert _claim(database, goal_id, "a") is not None


@pytest.mark.parametrize("state", ["waiting", "claimed", "done", "failed", "skipped", "cancelled", "dead"])
def test_what_is_not_due_is_not_there_to_claim(database, state):
    goal_id = submit(database, new_stage("a", state="waiting", waits_for=1))
    alter(database, goal_id, "a", f"state = '{state}'")
    assert _claim(database, goal_id, "a") is None
    assert row(database, goal_id, "a").state == state


@pytest.mark.parametrize("state", ["ready", "published"])
def test_what_is_due_is_claimed_whether_its_message_was_counted_or_not(database, state):
    goal_id = submit(database, new_stage("a", state=state))
    assert _claim(database, goal_id, "a") is not None


def test_what_does_not_exist_is_not_there_to_claim(database):
    goal_id = submit(database, new_stage("a"))
    assert _claim(database, goal_id, "b") is None
    assert _claim(database, uuid7(), "a") is None
    assert stages.claim(database, StageKey(goal_id, "a", 0), uuid7(), PLACE, 15) is None


def test_a_claim_reads_exactly_the_stages_that_its_mapping_names(database):
    goal_id = submit(
        database,
        new_stage("a", children=("c",)),
        new_stage("b", children=("c",)),
        new_stage("unread", children=("c",)),
        new_stage("c", state="waiting", waits_for=3, reads=("a", "b")),
    )
    first = claim(database, goal_id, "a")
    complete(database, first, '{"v": [1, "x", null]}', model_used="m", processing_time_ms=12)
    run(database, goal_id, "b", "unread")
    inputs = claim(database, goal_id, "c").inputs
    assert set(inputs) == {"a", "b"}
    written = row(database, goal_id, "a")
    assert inputs["a"]["output"] == {"v": [1, "x", None]}
    assert (inputs["a"]["model_used"], inputs["a"]["processing_time_ms"]) == ("m", 12)
    assert inputs["a"]["wall_time_ms"] == round((written.ended_at - written.started_at).total_seconds() * 1000)
    assert inputs["b"]["output"] == {"by": "b"}


# Complete


def test_a_completion_is_accepted_once_and_then_repeated(database):
    goal_id = submit_dag(database, {"a": (), "b": ("a",), "c": ("a",)})
    claimed = claim(database, goal_id, "a")
    room = {"echo.local": 9}
    first = complete(
        database, claimed, '{"x": 1}', model_used="m", token_usage={"prompt_tokens": 3}, processing_time_ms=7, room=room
    )
    assert (first.verdict, set(first.published), first.held) == ("accepted", {"b", "c"}, ())
    written = row(database, goal_id, "a")
    assert (written.state, written.output, written.lease_until) == ("done", {"x": 1}, None)
    assert (written.model_used, written.token_usage, written.processing_time_ms) == ("m", {"prompt_tokens": 3}, 7)

    again = complete(database, claimed, '{"x": 2}', room=room)
    assert (again.verdict, set(again.published)) == ("repeated", {"b", "c"})
    assert row(database, goal_id, "a").output == {"x": 1}
    assert {row(database, goal_id, name).waits_for for name in ("b", "c")} == {0}


def test_a_repeated_completion_gives_only_children_that_are_still_to_be_sent(database):
    goal_id = submit_dag(database, {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")})
    claimed = claim(database, goal_id, "a")
    complete(database, claimed, room={"echo.local": 9})
    claim(database, goal_id, "b")
    assert complete(database, claimed, room={"echo.local": 9}).published == ("c",)


def test_a_completion_is_fenced_by_its_token(database):
    goal_id = submit_dag(database, {"a": (), "b": ("a",)})
    claimed = claim(database, goal_id, "a")
    outcome = stages.complete(database, claimed.key, uuid7(), output='{"stolen": 1}', room={"echo.local": 9})
    assert (outcome.verdict, outcome.published, outcome.held, outcome.goal_ended) == ("fenced", (), (), False)
    assert states_of(database, goal_id) == {"a": "claimed", "b": "waiting"}
    assert complete(database, claimed).verdict == "accepted"
    assert stages.complete(database, claimed.key, uuid7(), output="{}").verdict == "fenced"


def test_a_completion_after_the_stage_was_taken_back_is_fenced(database):
    goal_id = submit_dag(database, {"a": (), "b": ("a",)})
    late = claim(database, goal_id, "a", lease_s=0)
    assert len(stages.take_back(database, lease_s=15, max_deliveries=5)) == 1
    assert complete(database, late).verdict == "fenced"
    second = claim(database, goal_id, "a")
    assert complete(database, late).verdict == "fenced"
    assert complete(database, second, '{"by": "second"}').verdict == "accepted"
    assert complete(database, late).verdict == "fenced"
    assert row(database, goal_id, "a").output == {"by": "second"}


def test_a_child_is_the_callers_to_publish_if_its_queue_has_room_or_the_message_carries_it(database):
    goal_id = submit(
        database,
        new_stage("a", children=("carried", "held", "room")),
        new_stage("carried", state="waiting", waits_for=1, worker="x"),
        new_stage("held", state="waiting", waits_for=1, worker="x"),
        new_stage("room", state="waiting", waits_for=1, worker="y", tier="frontier"),
    )
    outcome = complete(
        database, claim(database, goal_id, "a"), room={"y.frontier": 9, "y.local": 9}, carried=["carried"]
    )
    assert (set(outcome.published), outcome.held) == ({"carried", "room"}, ("held",))
    assert states_of(database, goal_id) == {"a": "done", "carried": "published", "held": "ready", "room": "published"}
    assert row(database, goal_id, "held").published_at is None
    assert row(database, goal_id, "room").published_at is not None
    assert {row(database, goal_id, name).ready_at is None for name in ("carried", "held", "room")} == {False}


def test_no_more_children_are_the_callers_than_their_queue_takes(database):
    goal_id = submit(
        database,
        new_stage("a", children=("c1", "c2", "c3", "carried", "other")),
        *[new_stage(name, state="waiting", waits_for=1) for name in ("c1", "c2", "c3", "carried")],
        new_stage("other", state="waiting", waits_for=1, worker="other"),
    )
    outcome = complete(
        database, claim(database, goal_id, "a"), room={"echo.local": 2, "other.local": 0}, carried=["carried"]
    )
    assert (set(outcome.published), set(outcome.held)) == ({"c1", "c2", "carried"}, {"c3", "other"})


def test_a_child_that_still_waits_is_counted_down_and_not_handed_out(database):
    goal_id = submit_dag(database, {"a": (), "b": (), "c": ("a", "b")})
    first = complete(database, claim(database, goal_id, "a"), room={"echo.local": 9}, carried=["c"])
    assert (first.published, first.held) == ((), ())
    assert (row(database, goal_id, "c").state, row(database, goal_id, "c").waits_for) == ("waiting", 1)
    last = complete(database, claim(database, goal_id, "b"), room={"echo.local": 9})
    assert last.published == ("c",)


def test_a_completion_tells_whether_more_work_waits_for_its_route(database):
    goal_id = submit(
        database,
        new_stage("a"),
        new_stage("b"),
        new_stage("elsewhere", worker="other"),
        new_stage("sent", state="published"),
    )
    assert complete(database, claim(database, goal_id, "a")).backlog
    assert not complete(database, claim(database, goal_id, "b")).backlog
    assert not complete(database, claim(database, goal_id, "elsewhere")).backlog


def test_the_last_leaf_ends_the_goal(database):
    goal_id = submit_dag(database, {"a": (), "b": ("a",), "c": ("a",)})
    assert not run(database, goal_id, "a").goal_ended
    assert not run(database, goal_id, "c").goal_ended
    assert run(database, goal_id, "b").goal_ended
    goal = goals.get(database, goal_id)
    assert (goal.state, goal.error, goal.leaves_left) == ("done", None, 0)
    assert goal.ended_at is not None


def test_output_that_postgres_cannot_store_changes_nothing(database):
    goal_id = submit_dag(database, {"a": (), "b": ("a",)})
    claimed = claim(database, goal_id, "a")
    with pytest.raises(Exception, match="unsupported Unicode"):
        complete(database, claimed, '{"x": "\\u0000"}')
    assert states_of(database, goal_id) == {"a": "claimed", "b": "waiting"}
    assert complete(database, claimed).verdict == "accepted"
