"""Rounds in the database: a window of tasks that is never exceeded, never stuck, and pruned with its orchestrator."""

import random
import threading
from datetime import timedelta
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import NO, PLACE, at_once, claim, new_stage, run, submit

from loomq.ids import uuid7
from loomq.store import goals, prune, rounds, stages
from loomq.store.stages import StageKey


def submit_round(database, parents, window, *, priorities=None, **goal):
    """Write a round of that DAG, its first tasks let go."""
    begun = 0
    tasks = []
    for place, (name, above) in enumerate(parents.items()):
        lets = not above and begun < window
        begun += lets
        tasks.append(
            new_stage(
                name,
                state="ready" if lets else "waiting",
                waits_for=len(above),
                children=tuple(child for child in parents if name in parents[child]),
                place=place,
                max_parallel=window,
                priority=(priorities or {}).get(name, 1),
            )
        )
    return submit(database, *tasks, kind="round", on_failure="continue_partial", is_newer=True, **goal)


def states(database, goal_id):
    return dict(database.call("SELECT name, state FROM stages WHERE goal_id = %(g)s", {"g": goal_id}))


def test_the_next_task_is_let_go_when_one_has_ended_the_urgent_first_and_then_in_the_order_of_the_plan(database):
    flat = dict.fromkeys(("z", "y", "x", "w"), ())
    goal_id = submit_round(database, flat, 1, priorities={"w": 3})
    order = []
    for _ in flat:
        (ready,) = [name for name, state in states(database, goal_id).items() if state == "ready"]
        order.append(ready)
        run(database, goal_id, ready)
        rounds.let_go(database, goal_id)
    assert order == ["z", "w", "y", "x"]
    assert goals.state_of(database, goal_id) == "done"


def test_a_task_whose_parents_are_done_waits_for_the_window_too(database):
    goal_id = submit_round(database, {"a": (), "b": (), "c": ("a",)}, 1)
    held = claim(database, goal_id, "a")
    outcome = stages.complete(database, held.key, held.token, output="{}", room={"echo.local.1": 5})

    assert (outcome.published, outcome.held) == ((), ())
    assert rounds.let_go(database, goal_id) == ["b"]
    assert states(database, goal_id) == {"a": "done", "b": "ready", "c": "waiting"}
    assert rounds.let_go(database, goal_id) == []
    run(database, goal_id, "b")
    assert rounds.let_go(database, goal_id) == ["c"]


def test_a_paused_or_ended_round_lets_nobody_go(database):
    goal_id = submit_round(database, {"a": (), "b": ()}, 1)
    run(database, goal_id, "a")
    goals.pause(database, goal_id)
    assert rounds.let_go(database, goal_id) == []
    assert rounds.stuck(database) == []
    goals.resume(database, goal_id)
    assert rounds.stuck(database) == [goal_id]
    goals.end(database, goal_id, "cancelled", NO)
    assert rounds.let_go(database, goal_id) == []
    assert states(database, goal_id) == {"a": "done", "b": "cancelled"}
    assert rounds.stuck(database) == []


def test_a_round_of_which_more_could_be_under_way_is_found(database):
    goal_id = submit_round(database, {"a": (), "b": (), "c": ()}, 2)
    assert rounds.stuck(database) == []
    run(database, goal_id, "a")  # and then its process died
    assert rounds.stuck(database) == [goal_id]
    assert rounds.let_go(database, goal_id) == ["c"]
    assert rounds.stuck(database) == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whoever_ends_tasks_at_once_the_window_holds_and_every_task_ends_once(database, data):
    names = [f"t{number}" for number in range(data.draw(st.integers(1, 14)))]
    parents = {
        name: tuple(sorted(data.draw(st.sets(st.sampled_from(names[:at]), max_size=2)) if at else ()))
        for at, name in enumerate(names)
    }
    window = data.draw(st.integers(1, 4))
    goal_id = submit_round(database, parents, window, id=uuid7())
    seen, lock, faults = [], threading.Lock(), []

    def work():
        chance = random.Random()
        while goals.state_of(database, goal_id) == "open":
            now = states(database, goal_id)
            busy = [name for name, state in now.items() if state in {"ready", "published", "claimed"}]
            if len(busy) > window:
                faults.append(busy)
            ready = [name for name, state in now.items() if state == "ready"]
            if not ready:
                rounds.let_go(database, goal_id)
                continue
            name = chance.choice(ready)
            held = stages.claim(database, StageKey(goal_id, name), uuid7(), PLACE, 15)
            if held is None:
                continue
            with lock:
                seen.append(name)
            stages.complete(database, held.key, held.token, output="{}")
            rounds.let_go(database, goal_id)

    at_once(*[work] * 3)
    assert faults == []
    assert sorted(seen) == sorted(names)
    assert all(seen.index(above) < seen.index(name) for name in names for above in parents[name])


def test_a_node_of_the_release_before_leaves_rounds_and_orchestrators_to_newer_ones(database):
    for kind in ("round", "orchestrator"):
        goal_id = submit(database, new_stage("a", state="published"), kind=kind)
        old = database.call(
            "SELECT * FROM loomq_claim_4(%(g)s, 'a', -1, %(t)s, %(t)s, 1, 'm', 15, NULL)", {"g": goal_id, "t": uuid4()}
        )
        assert old == []
        ((state, reason),) = database.call("SELECT state, reason FROM stages WHERE goal_id = %(g)s", {"g": goal_id})
        assert (state, reason) == ("ready", "for a newer node")


def test_a_round_is_kept_as_long_as_the_goal_that_it_is_part_of(database):
    whole = submit(database, new_stage("tasks_1"), kind="orchestrator")
    part = submit_round(database, {"a": ()}, 1, parent=(whole, "tasks_1", -1))
    database.call(
        "INSERT INTO checkpoints (goal_id, number, state, expires_at) VALUES (%(g)s, 1, '{}', now())", {"g": whole}
    )
    run(database, part, "a")

    def pruned():
        until = prune.cutoffs(database, goals=timedelta(0), letters=timedelta(0), most_letters=10)
        return sum(batch.goals for batch in prune.goals(database, until, actor="ann"))

    assert pruned() == 0
    run(database, whole, "tasks_1")
    assert pruned() + pruned() == 2
    assert (goals.state_of(database, whole), goals.state_of(database, part)) == (None, None)
    assert database.call("SELECT count(*) FROM checkpoints", {})[0][0] == 0


def test_a_goal_and_its_rounds_are_kept_for_a_rerun_that_has_taken_them_over(database):
    first = submit(database, new_stage("tasks_1"), kind="orchestrator")
    part = submit_round(database, {"a": ()}, 1, parent=(first, "tasks_1", -1))
    again = submit(database, new_stage("synthesis"), kind="orchestrator", rerun_of=first)
    for goal_id, name in ((part, "a"), (first, "tasks_1")):
        run(database, goal_id, name)

    def pruned():
        until = prune.cutoffs(database, goals=timedelta(0), letters=timedelta(0), most_letters=10)
        return sum(batch.goals for batch in prune.goals(database, until, actor="ann"))

    assert pruned() == 0
    run(database, again, "synthesis")
    assert [pruned() for _ in range(3)].count(0) < 3
    assert database.call("SELECT count(*) FROM goals", {})[0][0] == 0


def test_rounds_are_found_by_the_stage_whose_work_they_are_or_by_what_a_rerun_took_over(database):
    first = submit(database, new_stage("tasks_1"), kind="orchestrator")
    part = submit_round(database, {"a": (), "b": ()}, 2, parent=(first, "tasks_1", -1))
    assert [(row.stage, row.goal_id) for row in rounds.of_goal(database, first)] == [("tasks_1", part)]
    run(database, part, "a")
    assert [(task.name, task.state) for task in rounds.tasks(database, [part])] == [("a", "done"), ("b", "ready")]
    assert rounds.counts(database, part) == {"done": 1, "ready": 1}

    held = claim(database, first, "tasks_1")
    stages.complete(database, held.key, held.token, output=f'{{"goal_id": "{part}"}}')
    again = submit(database, new_stage("tasks_1", state="done"), new_stage("synthesis"), kind="orchestrator",
                   rerun_of=first)  # fmt: skip
    assert [row.goal_id for row in rounds.of_goal(database, again)] == [part]


@pytest.mark.parametrize("column", ["place", "max_parallel"])
def test_what_a_window_needs_is_written_for_rounds_alone(database, column):
    pipeline = submit(database, new_stage("a", place=1, max_parallel=2))
    ((found,),) = database.call(f"SELECT {column} FROM stages WHERE goal_id = %(g)s", {"g": pipeline})
    assert found is None
