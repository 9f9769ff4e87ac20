"""Goals in Postgres: written once whatever is doubled, ended once, found again."""

from datetime import UTC, datetime, timedelta

import pytest
from psycopg import Error
from rows import at_once, claim, complete, new_goal, new_stage, row, run, states_of, submit, submit_dag, submit_row

from loomq.ids import uuid7
from loomq.store import goals
from loomq.store.engine import Database


def _submit(database, goal, *new_stages, **more):
    given = {"snapshot": "h", "body": {"format": 1}, "known_snapshots": set(), **more}
    return submit_row(database, goal, new_stages, **given)


def _count(database, table):
    return database.call(f"SELECT count(*) FROM {table}", {})[0][0]


def test_a_goal_is_written_with_all_that_was_said(database):
    session, deadline = uuid7(), datetime.now(UTC) + timedelta(hours=1)
    goal = new_goal(
        instruction="do 'it' %s {} \\",
        context={"text": 'ünï "quoted" %(x)s', "none": None, "deep": [1, {"a": 1.5}]},
        request_id="r-1",
        session_id=session,
        deadline=deadline,
        budget={"tokens": 5},
        task_id="task-1",
        canvas={"group_id": "g"},
        priority=3,
    )
    stage = new_stage("only", reads=("a",), timeout_s=1.5, max_retries=0, priority=2)
    goal_id, created = _submit(database, goal, stage, key="k")
    assert (goal_id, created) == (goal.id, True)

    found = goals.get(database, goal_id)
    for name in (
        "pipeline",
        "kind",
        "instruction",
        "context",
        "priority",
        "leaves_left",
        "request_id",
        "session_id",
        "deadline",
        "budget",
        "task_id",
        "canvas",
    ):
        assert getattr(found, name) == getattr(goal, name), name
    assert (found.state, found.snapshot, found.idempotency_key, found.ended_at) == ("open", "h", "k", None)
    written = row(database, goal_id, "only")
    assert (written.worker, written.tier, written.priority, written.reads) == ("echo", "local", 2, ["a"])
    assert (written.timeout_s, written.max_retries, written.attempt, written.deliveries) == (1.5, 0, 1, 0)
    assert (written.state, written.item, written.history, written.output) == ("ready", -1, [], None)


def test_the_times_of_a_new_stage_say_how_far_it_is(database):
    goal_id = submit(
        database,
        new_stage("waits", state="waiting", waits_for=1),
        new_stage("ready"),
        new_stage("sent", state="published"),
    )
    times = {name: row(database, goal_id, name) for name in ("waits", "ready", "sent")}
    assert [times["waits"].ready_at, times["waits"].published_at] == [None, None]
    assert times["ready"].ready_at is not None
    assert times["ready"].published_at is None
    assert times["sent"].ready_at is not None
    assert times["sent"].published_at is not None


def test_the_same_key_is_the_same_goal(database):
    first, created = _submit(database, new_goal(), new_stage("a"), key="k")
    again, created_again = _submit(database, new_goal(), new_stage("a"), new_stage("b"), key="k")
    assert (created, created_again) == (True, False)
    assert again == first == goals.find_by_key(database, "k")
    assert (_count(database, "goals"), _count(database, "stages")) == (1, 1)
    assert goals.find_by_key(database, "other") is None


def test_the_same_call_again_after_its_answer_was_lost_is_answered_as_the_first(database):
    goal = new_goal()
    assert [_submit(database, goal, new_stage("a"), key="k") for _ in range(2)] == [(goal.id, True)] * 2
    assert (_count(database, "goals"), _count(database, "stages")) == (1, 1)


def test_without_a_key_each_goal_is_its_own(database):
    assert submit(database, new_stage("a")) != submit(database, new_stage("a"))
    assert _count(database, "goals") == 2


def test_fifty_submits_with_one_key_make_one_goal(database_url):
    database = Database(database_url, pool_size=10)
    database.call("SELECT 1", {})
    outcomes = at_once(*[lambda: _submit(database, new_goal(), new_stage("a"), key="k")] * 50)
    assert len({goal_id for goal_id, _ in outcomes}) == 1
    assert sum(created for _, created in outcomes) == 1
    assert (_count(database, "goals"), _count(database, "stages"), _count(database, "specs")) == (1, 1, 1)
    database.close()


def test_a_snapshot_is_stored_once_and_then_known(database):
    known = set()
    _submit(database, new_goal(), new_stage("a"), known_snapshots=known)
    assert known == {"h"}
    # Known by its address, so its body is neither sent nor looked at again.
    _submit(database, new_goal(), new_stage("a"), known_snapshots=known, body={"other": object()})
    assert goals.read_snapshot(database, "h") == {"format": 1}
    assert goals.read_snapshot(database, "nobody's") is None
    assert _count(database, "specs") == 1


def test_a_snapshot_that_this_process_knows_and_the_database_does_not_is_stored_again(database):
    goal_id, created = _submit(database, new_goal(), new_stage("a"), known_snapshots={"h"}, key="k")
    assert created
    assert goals.read_snapshot(database, "h") == {"format": 1}
    assert goals.get(database, goal_id).snapshot == "h"


@pytest.mark.parametrize(
    "bad",
    [
        {"state": "dreaming"},
        {"worker": None},
        {"timeout_s": 0},
        {"not_before": "when pigs fly"},
        {"name": "fine"},
    ],
    ids=lambda bad: next(iter(bad)),
)
def test_one_bad_stage_leaves_nothing_of_its_goal(database, bad):
    broken = new_stage("bad").to_json() | bad
    name = broken.pop("name")
    with pytest.raises(Error):
        _submit(database, new_goal(), new_stage("fine"), new_stage(name, **broken), key="k")
    assert [_count(database, table) for table in ("goals", "stages", "idempotency_keys", "specs")] == [0, 0, 0, 0]


def test_as_many_retries_as_a_worker_file_may_say_can_be_stored(database):
    goal_id = submit(database, new_stage("a", max_retries=1_000_000))
    assert row(database, goal_id, "a").max_retries == 1_000_000


def test_a_goal_ends_once_and_takes_along_what_waits(database):
    goal_id = submit(
        database,
        new_stage("first", children=("last",)),
        new_stage("sent", state="published", children=("last",)),
        new_stage("runs", children=("last",)),
        new_stage("over", children=("last",)),
        new_stage("last", state="waiting", waits_for=4),
    )
    run(database, goal_id, "over")
    running = claim(database, goal_id, "runs")

    assert goals.end(database, goal_id, "cancelled", {"message": "enough"})
    assert not goals.end(database, goal_id, "failed", {"message": "too late"})

    goal = goals.get(database, goal_id)
    assert (goal.state, goal.error) == ("cancelled", {"message": "enough"})
    assert goal.ended_at is not None
    assert states_of(database, goal_id) == {
        "first": "cancelled",
        "sent": "cancelled",
        "runs": "claimed",
        "over": "done",
        "last": "cancelled",
    }
    assert row(database, goal_id, "last").reason == "goal cancelled"
    assert complete(database, running).verdict == "accepted"
    assert goals.get(database, goal_id).state == "cancelled"


def test_only_open_goals_past_their_deadline_are_ended(database):
    now = datetime.now(UTC)
    late = submit(database, new_stage("a"), deadline=now - timedelta(seconds=1))
    in_time = submit(database, new_stage("a"), deadline=now + timedelta(hours=1))
    without = submit(database, new_stage("a"))
    ended = submit(database, new_stage("a"), deadline=now - timedelta(seconds=1))
    run(database, ended, "a")

    assert goals.end_overdue(database) == [late]
    assert goals.end_overdue(database) == []
    assert [goals.get(database, goal).state for goal in (late, in_time, without, ended)] == [
        "failed",
        "open",
        "open",
        "done",
    ]
    assert goals.get(database, late).error["type"] == "PipelineTimeoutError"
    assert goals.count_open(database) == 2


def test_a_raw_calls_continuation_is_looked_after_until_it_is_sent(database):
    followed = [submit(database, new_stage("a"), canvas={key: [1]}) for key in ("chain", "link", "link_error")]
    plain = [submit(database, new_stage("a"), canvas={"group_id": "g"}), submit(database, new_stage("a"))]
    assert goals.unfollowed(database, 0) == []
    for goal_id in [*followed, *plain]:
        run(database, goal_id, "a")
    assert goals.unfollowed(database, 0) == followed
    assert goals.unfollowed(database, 60) == []
    goals.mark_followed(database, followed[1])
    assert goals.unfollowed(database, 0) == [followed[0], followed[2]]


def test_goals_are_listed_newest_first_with_what_became_of_their_stages(database):
    older = submit_dag(database, {"a": (), "b": ("a",), "c": ("a",)})
    run(database, older, "a")
    claim(database, older, "b")
    newer = submit(database, new_stage("x"), pipeline="other")

    listed = goals.listed(database)
    assert [found.id for found in listed] == [newer, older]
    assert [(found.stages_total, found.stages_done, found.stages_running) for found in listed] == [(1, 0, 0), (3, 1, 1)]
    assert [found.id for found in goals.listed(database, limit=1)] == [newer]
    assert [found.id for found in goals.listed(database, pipeline="demo")] == [older]
    run(database, newer, "x")
    assert [found.id for found in goals.listed(database, state="done")] == [newer]
    assert goals.listed(database, state="failed") == []


def test_goals_are_found_by_how_their_id_begins(database):
    found = sorted(submit(database, new_stage("a")) for _ in range(12))
    assert goals.find_by_prefix(database, str(found[3])) == [found[3]]
    assert (
        goals.find_by_prefix(database, str(found[3])[:8])
        == sorted((goal for goal in found if str(goal)[:8] == str(found[3])[:8]), reverse=True)[:10]
    )
    assert goals.find_by_prefix(database, "") == found[::-1][:10]
    assert goals.find_by_prefix(database, "ffff") == []


def test_the_states_of_a_goal_come_in_one_look(database):
    goal_id = submit_dag(database, {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")})
    assert goals.states(database, goal_id) == ("open", {"ready", "waiting"})
    run(database, goal_id, "a", "b")
    assert goals.states(database, goal_id) == ("open", {"done", "ready", "waiting"})
    assert goals.states(database, uuid7()) is None


def test_stages_come_in_the_order_in_which_they_became_ready(database):
    goal_id = submit_dag(database, {"z": (), "m": ("z",), "a": ("m",), "b": ("a",)})
    run(database, goal_id, "z", "m")
    found = goals.stages_of(database, goal_id)
    assert [stage.name for stage in found] == ["z", "m", "a", "b"]
    assert found[0].output == {"by": "z"}
    assert not hasattr(goals.stages_of(database, goal_id, outputs=False)[0], "output")
