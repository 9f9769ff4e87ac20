"""What the sweeper and the nodes do to rows: take back, pick for publishing, unpublish."""

from collections import Counter

import pytest
from rows import PLACE, alter, at_once, claim, complete, new_stage, row, run, states_of, submit, submit_dag, take

from loomq.ids import uuid7
from loomq.store import backlog, goals, results, stages
from loomq.store.engine import Database
from loomq.store.stages import Place, StageKey
from loomq.store.survey import survey


def _take_back(database, **more):
    return stages.take_back(database, **{"lease_s": 15, "max_deliveries": 5, **more})


# Take back


def test_a_stage_whose_lease_ran_out_is_ready_again_with_its_history(database):
    goal_id = submit(database, new_stage("late"), new_stage("alive"), new_stage("over"))
    claim(database, goal_id, "late", lease_s=0)
    claim(database, goal_id, "alive")
    run(database, goal_id, "over")

    assert _take_back(database) == [(StageKey(goal_id, "late"), "ready")]

    written = row(database, goal_id, "late")
    assert (written.state, written.deliveries, written.attempt, written.reason) == ("ready", 1, 1, "taken back")
    assert (written.token, written.lease_until, written.published_at) == (None, None, None)
    (entry,) = written.history
    assert (entry["delivery"], entry["error"]["type"], entry["node"]) == (1, "WorkerLostError", str(PLACE.node))
    assert states_of(database, goal_id) == {"late": "ready", "alive": "claimed", "over": "done"}
    assert _take_back(database) == []
    assert claim(database, goal_id, "late").deliveries == 2


def test_a_nodes_dead_processes_lose_their_stages_at_once(database):
    node, other = uuid7(), uuid7()
    goal_id = submit(database, *[new_stage(name) for name in ("dead", "alive", "elsewhere")])
    for name, place in [("dead", (node, 1)), ("alive", (node, 2)), ("elsewhere", (other, 1))]:
        claim(database, goal_id, name, place=Place(*place, "m"))
    assert _take_back(database, node=node, gone=[1, 99]) == [(StageKey(goal_id, "dead"), "ready")]
    assert _take_back(database, node=node, gone=[]) == []
    assert states_of(database, goal_id) == {"dead": "ready", "alive": "claimed", "elsewhere": "claimed"}


def test_a_stage_that_was_delivered_too_often_is_dead_and_ends_its_goal(database):
    goal_id = submit_dag(database, {"poison": (), "after": ("poison",)})
    for delivery in (1, 2):
        assert claim(database, goal_id, "poison", lease_s=0).deliveries == delivery
        assert _take_back(database, max_deliveries=3) == [(StageKey(goal_id, "poison"), "ready")]
    claim(database, goal_id, "poison", lease_s=0)
    assert _take_back(database, max_deliveries=3) == [(StageKey(goal_id, "poison"), "ended")]

    written, goal = row(database, goal_id, "poison"), goals.get(database, goal_id)
    assert (written.state, written.deliveries, len(written.history)) == ("dead", 3, 3)
    assert (goal.state, goal.error["type"], goal.error["stage"]) == ("failed", "WorkerLostError", "poison")
    assert states_of(database, goal_id) == {"poison": "dead", "after": "cancelled"}


def test_retries_do_not_count_as_deliveries(database):
    goal_id = submit(database, new_stage("a", max_retries=9))
    for _ in range(6):
        claimed = claim(database, goal_id, "a")
        assert stages.fail(database, claimed.key, claimed.token, error={}, retryable=True).verdict == "retried"
    claim(database, goal_id, "a", lease_s=0)
    assert _take_back(database, max_deliveries=2) == [(StageKey(goal_id, "a"), "ready")]


def _ran(database, *, timeout_s, started_s_ago, last_proof_s_ago, **more):
    goal_id = submit(database, new_stage("a", timeout_s=timeout_s, **more))
    claim(database, goal_id, "a")
    alter(
        database,
        goal_id,
        "a",
        f"started_at = clock_timestamp() - make_interval(secs => {started_s_ago}),"
        f" lease_until = clock_timestamp() - make_interval(secs => {last_proof_s_ago}) + interval '15 seconds'",
    )
    return goal_id


def test_a_stage_that_was_alive_past_its_deadline_is_timed_out(database):
    goal_id = _ran(database, timeout_s=10, started_s_ago=60, last_proof_s_ago=49)
    assert _take_back(database) == [(StageKey(goal_id, "a"), "retried")]
    written = row(database, goal_id, "a")
    assert (written.attempt, written.deliveries, written.error["type"]) == (2, 0, "PipelineTimeoutError")
    assert written.not_before is not None


def test_a_stage_that_was_lost_before_its_deadline_is_not_timed_out_however_late_that_is_noticed(database):
    goal_id = _ran(database, timeout_s=10, started_s_ago=60, last_proof_s_ago=51)
    assert _take_back(database) == [(StageKey(goal_id, "a"), "ready")]
    written = row(database, goal_id, "a")
    assert (written.attempt, written.deliveries, written.error["type"]) == (1, 1, "WorkerLostError")


@pytest.mark.parametrize(("ran_s", "kind"), [(11, "PipelineTimeoutError"), (9, "WorkerLostError")])
def test_a_process_that_its_node_found_dead_was_alive_until_now(database, ran_s, kind):
    goal_id = _ran(database, timeout_s=10, started_s_ago=ran_s, last_proof_s_ago=0)
    assert len(_take_back(database, node=PLACE.node, gone=[PLACE.pid])) == 1
    assert row(database, goal_id, "a").error["type"] == kind


def test_a_timeout_without_retries_left_fails_the_goal_and_is_no_dead_letter(database):
    goal_id = _ran(database, timeout_s=10, started_s_ago=60, last_proof_s_ago=40, max_retries=0)
    assert _take_back(database, max_deliveries=1) == [(StageKey(goal_id, "a"), "ended")]
    assert row(database, goal_id, "a").state == "failed"
    assert goals.get(database, goal_id).error["type"] == "PipelineTimeoutError"


def test_two_sweepers_never_take_the_same_stage_back(database_url):
    database = Database(database_url, pool_size=4)
    goal_id = submit(database, *[new_stage(f"s{n}") for n in range(60)])
    for n in range(60):
        claim(database, goal_id, f"s{n}", lease_s=0)
    taken = at_once(*[lambda: _take_back(database)] * 4)
    names = Counter(key.name for part in taken for key, _ in part)
    assert set(names.values()) == {1}
    assert len(names) == 60
    assert {row.deliveries for row in goals.stages_of(database, goal_id)} == {1}
    database.close()


def test_a_stage_that_another_sweeper_holds_is_left_to_it(database):
    goal_id = submit(database, new_stage("held"), new_stage("free"))
    for name in ("held", "free"):
        claim(database, goal_id, name, lease_s=0)
    with database.begin() as other:
        other.exec_driver_sql("SELECT 1 FROM stages WHERE name = 'held' FOR UPDATE")
        assert [key.name for key, _ in _take_back(database)] == ["free"]
    assert [key.name for key, _ in _take_back(database)] == ["held"]


def test_no_more_is_taken_back_than_asked(database):
    goal_id = submit(database, *[new_stage(f"s{n}") for n in range(5)])
    for n in range(5):
        claim(database, goal_id, f"s{n}", lease_s=0)
    assert [len(_take_back(database, limit=2)) for _ in range(4)] == [2, 2, 1, 0]


# Take ready


def _names(due):
    return [stage.key.name for stage in due]


def test_what_is_taken_for_publishing_brings_what_its_message_needs(database):
    goal_id = submit(database, new_stage("a", priority=2), task_id="t", canvas={"group_id": "g"})
    (due,) = take(database, 10)
    assert (due.key, due.priority, due.task_id, due.canvas) == (StageKey(goal_id, "a"), 2, "t", {"group_id": "g"})
    written = row(database, goal_id, "a")
    assert written.state == "published"
    assert written.published_at is not None
    assert take(database, 10) == []


def test_only_due_stages_of_the_route_are_taken(database):
    goal_id = submit(
        database,
        new_stage("mine"),
        new_stage("later"),
        new_stage("tier", tier="frontier"),
        new_stage("worker", worker="other"),
        new_stage("waits", state="waiting", waits_for=1),
        new_stage("sent", state="published"),
    )
    alter(database, goal_id, "later", "not_before = clock_timestamp() + interval '1 hour'")
    assert set(survey(database, 0).published) == {("echo", "local", 3)}
    assert survey(database, 0).ready == {("echo", "local"), ("echo", "frontier"), ("other", "local")}
    assert _names(take(database, 10)) == ["mine"]
    assert survey(database, 0).ready == {("echo", "frontier"), ("other", "local")}
    alter(database, goal_id, "later", "not_before = clock_timestamp() - interval '1 second'")
    assert ("echo", "local") in survey(database, 0).ready
    assert _names(take(database, 10)) == ["later"]


def test_the_more_urgent_is_taken_first_and_no_more_than_asked(database):
    goal_id = submit(database, *[new_stage(f"s{n}", priority=n % 4) for n in range(12)])
    taken = [{row(database, goal_id, name).priority for name in _names(take(database, 3))} for _ in range(4)]
    assert taken == [{3}, {2}, {1}, {0}]


def test_urgency_comes_before_fairness(database):
    urgent = submit(database, *[new_stage(f"u{n}", priority=3) for n in range(4)])
    submit(database, *[new_stage(f"s{n}") for n in range(4)])
    assert {stage.key.goal_id for stage in take(database, 4)} == {urgent}


@pytest.mark.parametrize("limit", [30, 6])
def test_three_goals_share_a_queue_evenly_whoever_came_first(database, limit):
    found = [submit(database, *[new_stage(f"s{n}") for n in range(100)]) for _ in range(3)]
    for _ in range(3):
        taken = Counter(stage.key.goal_id for stage in take(database, limit))
        assert taken == dict.fromkeys(found, limit // 3)


def test_of_one_goal_the_oldest_goes_first(database):
    goal_id = submit_dag(database, {"root": (), "old": ("root",), "young": ("root", "old")})
    run(database, goal_id, "root")
    second = submit(database, new_stage("x"))
    alter(database, goal_id, "old", "ready_at = clock_timestamp() - interval '1 minute'")
    assert _names(take(database, 1)) == ["old"]
    assert _names(take(database, 1)) == ["x"]
    assert row(database, second, "x").state == "published"


def test_takers_at_once_never_take_the_same_stage_and_leave_none_behind(database_url):
    database = Database(database_url, pool_size=4)
    for _ in range(2):
        submit(database, *[new_stage(f"s{n}") for n in range(100)])
    seen = Counter()
    while taken := [stage for part in at_once(*[lambda: take(database, 20)] * 4) for stage in part]:
        seen.update(stage.key for stage in taken)
    assert set(seen.values()) == {1}
    assert len(seen) == 200
    database.close()


def test_what_was_delayed_is_taken_by_its_priority_and_age_when_its_time_has_come(database):
    goal_id = submit(database, new_stage("now"), new_stage("urgent", priority=3), new_stage("old"), new_stage("later"))
    for name, due in [("urgent", "- interval '1 second'"), ("old", "- interval '1 second'"), ("later", "+ '1 hour'")]:
        alter(database, goal_id, name, f"not_before = clock_timestamp() {due}")
    alter(database, goal_id, "old", "ready_at = clock_timestamp() - interval '1 minute'")
    assert _names(take(database, 10)) == ["urgent", "old", "now"]


def test_work_that_is_ready_later_is_no_backlog(database):
    goal_id = submit(database, new_stage("a"), new_stage("b"), new_stage("later"))
    alter(database, goal_id, "later", "not_before = clock_timestamp() + interval '1 hour'")
    assert run(database, goal_id, "a").backlog is True
    assert run(database, goal_id, "b").backlog is False
    alter(database, goal_id, "later", "not_before = clock_timestamp() - interval '1 second'")
    again = submit(database, new_stage("c"))
    assert run(database, again, "c").backlog is True


def test_a_goal_with_thousands_of_ready_items_keeps_no_other_goal_waiting(database):
    crowd = submit(database, new_stage("a"))
    database.call(
        "INSERT INTO stages (goal_id, name, item, worker, tier, priority, state, waits_for, children, reads, timeout_s,"
        " max_retries, attempt, deliveries, history, ready_at)"
        " SELECT %(goal)s, 'a', n, 'echo', 'local', 1, 'ready', 0, '{}', '{}', 60, 0, 1, 0, '[]', clock_timestamp()"
        " FROM generate_series(0, 4999) AS n",
        {"goal": crowd},
    )
    late = submit(database, new_stage("a"))
    taken = [due.key.goal_id for due in take(database, 10)]
    assert (len(taken), taken.count(late), taken.count(crowd)) == (10, 1, 9)


def _plans(database, statement):
    with database.begin() as connection:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        return "\n".join(line for (line,) in connection.exec_driver_sql(f"EXPLAIN {statement}"))


def test_what_waits_is_read_in_the_order_of_an_index_and_never_sorted(database):
    ready = "SELECT goal_id FROM stages WHERE state = 'ready' AND worker = 'a' AND tier = 'b'"
    for statement in (
        f"{ready} AND not_before IS NULL ORDER BY priority DESC, goal_id LIMIT 1",
        f"{ready} AND not_before IS NULL AND priority = 1 AND goal_id = '{uuid7()}' ORDER BY ready_at LIMIT 64",
        f"{ready} AND not_before <= now() ORDER BY not_before LIMIT 2000",
        """SELECT ready_at FROM stages WHERE state = 'ready' AND not_before IS NULL AND worker || '.' || tier = 'a.b'
        ORDER BY ready_at LIMIT 1""",
        """SELECT worker FROM stages WHERE state = 'published' AND (worker, tier, priority, bulk) > ('a', 'b', 1, false)
        ORDER BY worker, tier, priority, bulk, published_at LIMIT 1""",
        "SELECT id FROM goals WHERE state = 'open' AND deadline < now() ORDER BY deadline LIMIT 100",
    ):
        plan = _plans(database, statement)
        assert "Index" in plan, plan
        assert "Sort" not in plan, plan
        # The oldest of all goals are in an index of their own, which no search for one goal's stages may take.
        assert ("expr_ready_at" in plan) == ("||" in statement), plan


# Survey


def test_a_survey_names_each_route_once_and_only_what_is_due(database):
    first = submit(database, *[new_stage(f"s{n}", worker=f"w{n % 3}", priority=n % 2) for n in range(12)])
    submit(database, *[new_stage(f"p{n}", worker=f"w{n % 2}", priority=n % 4, state="published") for n in range(12)])
    delayed = submit(database, new_stage("later", worker="x"), new_stage("due", worker="y"))
    alter(database, delayed, "later", "not_before = clock_timestamp() + interval '1 hour'")
    alter(database, delayed, "due", "not_before = clock_timestamp() - interval '1 hour'")
    alter(database, first, "s0", "state = 'published', published_at = clock_timestamp() - interval '1 minute'")
    found = survey(database, 0)
    assert found.ready == {("w0", "local"), ("w1", "local"), ("w2", "local"), ("y", "local")}
    assert found.published.keys() == {("w0", "local", 1), ("w0", "local", 5), ("w1", "local", 3), ("w1", "local", 7)}
    assert 59 < found.published["w0", "local", 1] < 90
    assert max(found.published["w0", "local", 5], found.published["w1", "local", 3]) < 30
    assert (found.expired, found.overdue, found.chords, found.calls) == (False, False, False, False)


def test_a_survey_says_what_else_there_is_to_do(database):
    goal_id = submit(database, new_stage("a"), new_stage("b"), canvas={"link": ["x"]}, task_id="t")
    claim(database, goal_id, "a", lease_s=0)
    assert survey(database, 0).expired
    database.call("UPDATE goals SET deadline = clock_timestamp() - interval '1 second'", {})
    assert survey(database, 0).overdue
    assert goals.end_overdue(database) == [goal_id]
    results.open_chord(database, "g", {})
    found = survey(database, 0)
    assert (found.overdue, found.calls, found.chords) == (False, True, True)
    later = survey(database, 60)
    assert (later.calls, later.chords) == (False, False)


# Unpublish


def test_what_did_not_reach_the_broker_is_ready_again(database):
    goal_id = submit(database, *[new_stage(name, state="published") for name in ("a", "b", "claimed")])
    claimed = claim(database, goal_id, "claimed")
    backlog.unpublish(database, [StageKey(goal_id, name) for name in ("a", "claimed", "nobody")])
    assert states_of(database, goal_id) == {"a": "ready", "b": "published", "claimed": "claimed"}
    assert row(database, goal_id, "a").published_at is None
    assert complete(database, claimed).verdict == "accepted"
    backlog.unpublish(database, [])
    assert states_of(database, goal_id)["b"] == "published"


def test_a_lost_broker_makes_everything_published_ready_again(database):
    goal_id = submit(
        database,
        new_stage("a", state="published"),
        new_stage("b", state="published", worker="other"),
        new_stage("waits", state="waiting", waits_for=1),
        new_stage("claimed", state="published"),
    )
    claim(database, goal_id, "claimed")
    assert backlog.unpublish_all(database) == 2
    assert states_of(database, goal_id) == {"a": "ready", "b": "ready", "waits": "waiting", "claimed": "claimed"}
    assert row(database, goal_id, "a").reason == "message lost"
    assert backlog.unpublish_all(database) == 0


def test_one_routes_old_messages_are_unpublished_and_no_others(database):
    goal_id = submit(
        database,
        new_stage("old", state="published"),
        new_stage("young", state="published"),
        new_stage("tier", state="published", tier="frontier"),
        new_stage("worker", state="published", worker="other"),
    )
    for name in ("old", "tier", "worker"):
        alter(database, goal_id, name, "published_at = clock_timestamp() - interval '1 minute'")
    assert backlog.unpublish_all(database, route=("echo", "local", 3), older_s=30) == 1
    assert states_of(database, goal_id) == {
        "old": "ready",
        "young": "published",
        "tier": "published",
        "worker": "published",
    }


def _sent(database, *, ago_s, state="published", **more):
    """A stage that was published so long ago, and perhaps claimed since."""
    goal_id = submit(database, new_stage("a", state="published", **more))
    alter(database, goal_id, "a", f"published_at = clock_timestamp() - make_interval(secs => {ago_s})")
    if state == "claimed":
        claim(database, goal_id, "a")
    return goal_id


@pytest.mark.parametrize(
    ("later", "is_lost"),
    [
        ({}, True),
        ({"priority": 0}, True),
        ({"priority": 2}, False),  # the more urgent goes first
        ({"tier": "frontier"}, False),
        ({"worker": "other"}, False),
        ({"ago_s": 8}, False),  # not so much later that the order of sending would be certain
        ({"state": "published"}, False),
    ],
)
def test_a_message_is_lost_that_a_later_one_of_its_queue_has_overtaken(database, later, is_lost):
    early = _sent(database, ago_s=10)
    _sent(database, **{"ago_s": 2, "state": "claimed", **later})
    assert backlog.unpublish_overtaken(database, 5) == is_lost
    written = row(database, early, "a")
    assert (written.state, written.reason) == (("ready", "message lost") if is_lost else ("published", None))


def test_a_message_that_somebody_claims_just_now_is_not_found_lost(database):
    goal_id = _sent(database, ago_s=60)
    _sent(database, ago_s=1, state="claimed")
    with database.begin() as other:
        other.exec_driver_sql("SELECT 1 FROM stages WHERE goal_id = %(goal)s FOR UPDATE", {"goal": goal_id})
        assert backlog.unpublish_overtaken(database, 5) == 0
        assert backlog.unpublish_all(database, older_s=30) == 0
