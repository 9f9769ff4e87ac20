"""Many parents, one child: the completing transaction is the barrier, whoever completes at the same time."""

import threading

import psycopg
import pytest
from rows import PLACE, alter, at_once, claim, complete, heard, new_stage, row, run, states_of, submit, submit_dag

from loomq.ids import uuid7
from loomq.store import goals, stages
from loomq.store.engine import Database
from loomq.testing import wait_until

ERROR = {"type": "PipelineWorkerError", "message": "no", "retryable": True}


@pytest.fixture
def crowd(database_url):
    """A database with a connection for each of twenty threads."""
    found = Database(database_url, pool_size=20)
    found.call("SELECT 1", {})
    yield found
    found.close()


def _raw(database_url):
    plain = Database(database_url).url.set(drivername="postgresql")
    return psycopg.connect(plain.render_as_string(hide_password=False))


def _blocked_or_over(database, thread):
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return not thread.is_alive() or bool(database.call(waits, {}))


@pytest.mark.parametrize(("width", "rounds"), [(2, 20), (5, 10), (20, 4)])
def test_parents_that_complete_at_once_make_their_join_ready_exactly_once(crowd, width, rounds):
    parents = {f"p{n}": () for n in range(width)}
    for _ in range(rounds):
        goal_id = submit_dag(crowd, {**parents, "join": tuple(parents)})
        claims = [claim(crowd, goal_id, name) for name in parents]
        outcomes = at_once(*[lambda c=claimed: complete(crowd, c, room={"echo.local": 1}) for claimed in claims])
        assert [outcome.verdict for outcome in outcomes] == ["accepted"] * width
        assert sum(outcome.published == ("join",) for outcome in outcomes) == 1
        assert sum(bool(outcome.published or outcome.held) for outcome in outcomes) == 1
        assert (row(crowd, goal_id, "join").state, row(crowd, goal_id, "join").waits_for) == ("published", 0)


def test_a_completion_sent_many_times_at_once_counts_once(crowd):
    goal_id = submit_dag(crowd, {"a": (), "b": (), "join": ("a", "b")})
    claimed = claim(crowd, goal_id, "a")
    outcomes = at_once(*[lambda: complete(crowd, claimed)] * 10)
    assert sorted(outcome.verdict for outcome in outcomes) == ["accepted"] + ["repeated"] * 9
    assert (row(crowd, goal_id, "join").state, row(crowd, goal_id, "join").waits_for) == ("waiting", 1)


def test_two_joins_over_the_same_parents_never_wait_for_each_other(crowd):
    names = [f"p{n}" for n in range(8)]
    parents = {**dict.fromkeys(names, ()), "y": tuple(names), "x": tuple(names)}
    turned = {name: ("x", "y") if at % 2 else ("y", "x") for at, name in enumerate(names)}
    for _ in range(50):
        goal_id = submit_dag(crowd, parents, children=turned)
        claims = [claim(crowd, goal_id, name) for name in names]
        # A deadlock would be an error here, or a second's wait for Postgres to find it.
        outcomes = at_once(*[lambda c=claimed: complete(crowd, c) for claimed in claims])
        assert sorted(child for outcome in outcomes for child in outcome.held) == ["x", "y"]


def _fence(database):
    """End another goal, so that whatever was said before has been heard when that is."""
    goal_id = submit(database, new_stage("fence"))
    assert goals.await_end(database, goal_id, 10) == ("open", True)
    run(database, goal_id, "fence")
    return f"{goal_id} "


def test_leaves_that_complete_at_once_end_the_goal_exactly_once_and_say_so(crowd):
    with crowd.listen("loomq_ended") as listener:
        for _ in range(5):
            goal_id = submit(crowd, *[new_stage(f"leaf{n}") for n in range(10)], task_id="task-1")
            claims = [claim(crowd, goal_id, f"leaf{n}") for n in range(10)]
            outcomes = at_once(*[lambda c=claimed: complete(crowd, c) for claimed in claims])
            assert sum(outcome.goal_ended for outcome in outcomes) == 1
            assert goals.get(crowd, goal_id).state == "done"
            fence = _fence(crowd)
            assert heard(listener, last=fence) == [f"{goal_id} task-1", fence]


def test_a_failed_goal_is_announced(crowd):
    goal_id = submit(crowd, new_stage("a"), new_stage("b"))
    first, second = claim(crowd, goal_id, "a"), claim(crowd, goal_id, "b")
    with crowd.listen("loomq_ended") as listener:
        stages.fail(crowd, first.key, first.token, error=ERROR, retryable=False)
        stages.fail(crowd, second.key, second.token, error=ERROR, retryable=False)
        fence = _fence(crowd)
        assert heard(listener, last=fence) == [f"{goal_id} ", fence]


def test_nothing_is_announced_before_the_goal_ends(crowd):
    goal_id = submit_dag(crowd, {"a": (), "b": ("a",)})
    goals.await_end(crowd, goal_id, 10)
    with crowd.listen("loomq_ended") as listener:
        claimed = claim(crowd, goal_id, "a")
        stages.fail(crowd, claimed.key, claimed.token, error=ERROR, retryable=True)
        run(crowd, goal_id, "a")
        fence = _fence(crowd)
        run(crowd, goal_id, "b")
        assert heard(listener, last=str(goal_id)) == [fence, f"{goal_id} "]


def test_an_end_that_nobody_waits_for_is_not_announced(crowd):
    goal_id, missed = submit(crowd, new_stage("a")), submit(crowd, new_stage("a"))
    goals.await_end(crowd, missed, 0)
    with crowd.listen("loomq_ended") as listener:
        run(crowd, goal_id, "a")
        run(crowd, missed, "a")
        fence = _fence(crowd)
        assert heard(listener, last=fence) == [fence]


def test_whoever_waits_is_told_how_the_goal_is_and_whether_its_end_will_be_announced(crowd):
    goal_id = submit(crowd, new_stage("a"))
    assert goals.await_end(crowd, goal_id, 10) == ("open", True)
    written = "SELECT xmin::text FROM goals WHERE id = %(goal)s"
    before = crowd.call(written, {"goal": goal_id})
    assert goals.await_end(crowd, goal_id, 10) == ("open", True)
    assert crowd.call(written, {"goal": goal_id}) == before, "it was asked a moment ago"
    with crowd.begin() as other:
        other.exec_driver_sql("SELECT 1 FROM goals WHERE id = %(goal)s FOR UPDATE", {"goal": goal_id})
        assert goals.await_end(crowd, goal_id, 100) == ("open", False), "who holds it may be ending it"
    run(crowd, goal_id, "a")
    assert goals.await_end(crowd, goal_id, 10)[0] == "done"
    assert goals.await_end(crowd, uuid7(), 10) == (None, False)


def test_no_end_is_missed_by_those_who_ask_while_it_comes(crowd):
    for _ in range(40):
        goal_id = submit(crowd, new_stage("a"))
        claimed = claim(crowd, goal_id, "a")
        with crowd.listen("loomq_ended") as listener:
            (state, is_asked), _ = at_once(
                lambda g=goal_id: goals.await_end(crowd, g, 10), lambda c=claimed: complete(crowd, c)
            )
            if state == "open" and is_asked:
                assert heard(listener, last=str(goal_id))


def test_a_goal_that_fails_while_its_other_stages_complete_ends_without_a_deadlock(crowd):
    names = [f"p{n}" for n in range(6)]
    below = [f"c{n}" for n in reversed(range(6))]
    parents = {**dict.fromkeys(names, ()), **dict.fromkeys(below, tuple(names))}
    for _ in range(25):
        goal_id = submit_dag(crowd, parents)
        claims = [claim(crowd, goal_id, name) for name in names]
        verdicts = at_once(
            lambda c=claims[0]: stages.fail(crowd, c.key, c.token, error=ERROR, retryable=False).verdict,
            *[lambda c=claimed: complete(crowd, c).verdict for claimed in claims[1:]],
        )
        assert verdicts == ["ended"] + ["accepted"] * 5
        assert set(states_of(crowd, goal_id).values()) == {"failed", "done", "cancelled"}


def test_completing_and_taking_back_at_once_has_one_winner(crowd):
    for _ in range(15):
        goal_id = submit_dag(crowd, {"a": (), "b": ("a",)})
        claimed = claim(crowd, goal_id, "a", lease_s=0)
        outcome, taken = at_once(
            lambda c=claimed: complete(crowd, c),
            lambda: stages.take_back(crowd, lease_s=15, max_deliveries=5),
        )
        assert (outcome.verdict, len(taken)) in {("accepted", 0), ("fenced", 1)}
        expected = {"a": "done", "b": "ready"} if not taken else {"a": "ready", "b": "waiting"}
        assert states_of(crowd, goal_id) == expected


def _fail(database, claimed):
    stages.fail(database, claimed.key, claimed.token, error=ERROR, retryable=True)


def _release(database, claimed):
    stages.release(database, claimed.key, claimed.token, "shutdown")


def _take_back(database, claimed):
    alter(database, claimed.key.goal_id, "a", "lease_until = clock_timestamp() - interval '1 second'")
    stages.take_back(database, lease_s=15, max_deliveries=5)


@pytest.mark.parametrize("come_back", [_fail, _release, _take_back], ids=["fail", "release", "take_back"])
def test_no_stage_is_left_ready_in_a_goal_that_ends_at_the_same_time(crowd, database_url, come_back):
    goal_id = submit(crowd, new_stage("a"), new_stage("b"))
    claimed = claim(crowd, goal_id, "a", place=PLACE)
    with _raw(database_url) as ending:
        ending.execute("SELECT loomq_end_goal(%s, 'cancelled', '{}')", [goal_id])
        thread = threading.Thread(target=come_back, args=(crowd, claimed))
        thread.start()
        wait_until(lambda: _blocked_or_over(crowd, thread), "the stage to come back, or to wait")
        ending.commit()
        thread.join(10)
    assert states_of(crowd, goal_id) == {"a": "cancelled", "b": "cancelled"}


def test_ending_a_goal_and_completing_a_stage_take_their_locks_in_one_order(crowd, database_url):
    below = ("z", "a", "m")
    goal_id = submit_dag(crowd, {"other": (), "p": (), **dict.fromkeys(below, ("other", "p"))})
    claimed = claim(crowd, goal_id, "p")
    found = []
    with _raw(database_url) as first:
        # Holds the second of three locks, so that both get into the middle of theirs.
        first.execute("SELECT 1 FROM stages WHERE goal_id = %s AND name = 'm' FOR UPDATE", [goal_id])
        works = (lambda: complete(crowd, claimed).verdict, lambda: goals.end(crowd, goal_id, "cancelled", {}))
        threads = []
        for number, work in enumerate(works, 1):
            threads.append(threading.Thread(target=lambda work=work: found.append(work())))
            threads[-1].start()
            wait_until(lambda number=number: _waiting(crowd) == number, f"{number} to wait")
        first.commit()
        for thread in threads:
            thread.join(10)
    assert set(found) == {"accepted", True}
    assert states_of(crowd, goal_id) == {"p": "done", **dict.fromkeys(("other", *below), "cancelled")}


def _waiting(database):
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return database.call(waits, {})[0][0]
