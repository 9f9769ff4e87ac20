"""Stages that are more, or less, than one task, as rows: whoever dies, comes late or acts at the same time."""

from __future__ import annotations

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

from loomq.errors import DatabaseUnavailableError
from loomq.ids import uuid7
from loomq.runs.about import about
from loomq.runs.opening import FanOut, opening
from loomq.services.submit import submit_goal
from loomq.store import goals, letters, openings, stages
from loomq.store.engine import Database
from loomq.store.stages import StageKey
from loomq.store.survey import survey

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


# Skips and failures that a goal survives


def test_a_chain_of_skips_ends_its_goal_and_a_late_message_finds_nothing(database):
    names = ["a", "b", "c"]
    goal = submit(
        database,
        *(
            new_stage(
                name, state="waiting" if at else "ready", waits_for=min(at, 1), children=tuple(names[at + 1 : at + 2])
            )
            for at, name in enumerate(names)
        ),
    )
    for name in names:
        found = openings.skip(database, StageKey(goal, name), None, "no need")
        assert (found.verdict, found.goal_ended) == ("accepted", name == "c")
        assert openings.skip(database, StageKey(goal, name), None, "no need").verdict == "fenced"
        assert stages.claim(database, StageKey(goal, name), uuid7(), PLACE, 15) is None
    assert (goals.get(database, goal).state, goals.get(database, goal).leaves_left) == ("done", 0)


def test_a_stage_is_skipped_by_whoever_is_first_its_messages_taker_or_its_parents_process(crowd):
    for _ in range(10):
        goal = submit(crowd, new_stage("a"), new_stage("b"))
        key, token = StageKey(goal, "a"), uuid7()

        def taken(key=key, token=token):
            return stages.claim(crowd, key, token, PLACE, 15) and openings.skip(crowd, key, token, "no")

        verdicts = [
            found.verdict for found in at_once(lambda key=key: openings.skip(crowd, key, None, "no"), taken) if found
        ]
        assert verdicts.count("accepted") == 1
        assert goals.get(crowd, goal).leaves_left == 1


@pytest.mark.parametrize("leaves", [True, False])
def test_stages_that_fail_at_once_let_the_goal_go_on_without_waiting_for_each_other(crowd, leaves):
    for _ in range(6):
        names = ["a", "b", "c", "d"]
        below = () if leaves else ("join", "other")
        rest = [] if leaves else [new_stage(name, state="waiting", waits_for=4) for name in below]
        goal = submit(crowd, *(new_stage(name, children=below) for name in names), *rest, on_failure="continue_partial")
        held = [claim(crowd, goal, name) for name in names]
        begun = time.monotonic()
        works = [lambda one=one: lose(crowd, one) for one in held[:3]]
        found = at_once(*works, lambda one=held[3]: complete(crowd, one))
        assert time.monotonic() - begun < 0.9, "somebody waited for a deadlock"
        assert {outcome.verdict for outcome in found} == {"continued", "accepted"}
        assert [outcome.goal_ended for outcome in found].count(True) == leaves
        assert [set(outcome.held) for outcome in found].count(set(below)) == (4 if leaves else 1)
        assert goals.get(crowd, goal).error["type"] == NO["type"]


def test_a_goal_that_went_on_has_failed_if_none_of_its_leaves_has_a_result(database):
    goal = submit(
        database,
        new_stage("a", children=("b",)),
        new_stage("b", state="waiting", waits_for=1),
        on_failure="continue_partial",
    )
    lose(database, claim(database, goal, "a"))
    assert openings.skip(database, StageKey(goal, "b"), None, "it needs a").goal_ended
    assert goals.get(database, goal).state == "failed"


@pytest.mark.parametrize(
    ("fallback", "state", "ready"),
    [
        (None, "dead", {("b", -1)}),
        ({"output": {}}, "done", {("b", -1)}),
        ({"worker": "w", "tier": "local", "timeout_s": 1, "max_retries": 0}, "ready", {("a", -1)}),
    ],
)
def test_what_the_sweeper_gives_up_on_goes_the_same_way(database, fallback, state, ready):
    goal = submit(
        database,
        new_stage("a", children=("b",), fallback=fallback),
        new_stage("b", state="waiting", waits_for=1),
        on_failure="continue_partial",
    )
    claim(database, goal, "a")
    found = stages.take_back(database, lease_s=15, max_deliveries=1, node=PLACE.node, gone=[PLACE.pid])
    assert [outcome for _, outcome in found] == ["ended"]
    assert (states_of(database, goal)["a"], due(database, goal)) == (state, ready)


# Goals in goals


def part_of(database, goal, name="a", item=-1, **more):
    return submit(database, new_stage("x"), parent=(goal, name, item), **more)


def test_a_goal_that_is_opened_for_an_ended_or_a_paused_one_shares_its_lot(database):
    goal = submit(database, new_stage("a"))
    claim(database, goal, "a")
    goals.pause(database, goal)
    paused = part_of(database, goal)
    assert (goals.get(database, paused).state, due(database, paused)) == ("open", set())
    goals.resume(database, goal)
    assert due(database, paused) == {("x", -1)}
    goals.end(database, goal, "cancelled", NO)
    assert goals.get(database, paused).state == "cancelled"
    late = part_of(database, goal)
    assert (goals.get(database, late).state, states_of(database, late)) == ("cancelled", {"x": "cancelled"})


def test_ending_a_goal_ends_three_levels_of_its_parts_and_frees_what_they_hold(database):
    top = submit(database, new_stage("a"))
    chain = [top]
    for _ in range(3):
        held = claim(database, chain[-1], "a")
        chain.append(submit(database, new_stage("a"), parent=(chain[-1], "a", -1)))
        assert openings.delegate(database, held.key, held.token, chain[-1]) == "delegated"
        assert openings.delegate(database, held.key, held.token, chain[-1]) == "delegated"
    goals.end(database, top, "cancelled", NO)
    assert {goals.get(database, goal).state for goal in chain} == {"cancelled"}
    assert {states_of(database, goal)["a"] for goal in chain} == {"cancelled"}
    assert openings.unheard(database) == []


def test_a_failed_item_ends_the_goals_that_its_siblings_had_opened(database):
    goal = fan_out(database, 3, goal_is={"on_failure": "continue_partial"})
    bad, other = take_item(database, goal, 0), take_item(database, goal, 1)
    part = part_of(database, goal, "each", 1)
    openings.delegate(database, other.key, other.token, part)
    lose(database, bad)
    assert (goals.get(database, part).state, items(database, goal)) == (
        "cancelled",
        ["failed", "cancelled", "cancelled"],
    )


NESTED = """
- {name: before, worker_type: echo, input_mapping: {n: goal.context.n}}
- {name: inner, pipeline: inner, input_mapping: {n: before.output.got.n}}
"""


@pytest.fixture
def nested(project):
    project.worker("echo")
    project.pipeline(
        "inner",
        "\n- {name: x, worker_type: echo, input_mapping: {n: goal.context.n}}\n",
        extra="max_concurrent_goals: 1\n",
    )
    project.pipeline("outer", NESTED)
    project.pipeline(
        "pairs",
        """
- {name: list, worker_type: echo}
- {name: scale, worker_type: echo}
- name: each
  worker_type: echo
  for_each: list.output.items
  input_mapping: {n: item, by: scale.output.n}
""",
    )
    return project


def _delegated(loom):
    """Bring a goal of ``outer`` to where its stage is left to a goal of ``inner``; gives both."""
    outer = submit_goal("go", pipeline="outer", context={"n": 1}, loom=loom).goal_id
    complete(loom.database, claim(loom.database, outer, "before"), '{"got": {"n": 1}}')
    held = claim(loom.database, outer, "inner")
    inner = submit_goal("go", pipeline="inner", context={"n": 1}, loom=loom).goal_id
    loom.database.call(
        "UPDATE goals SET parent_goal = %(outer)s, parent_stage = 'inner', parent_item = -1 WHERE id = %(inner)s",
        {"outer": outer, "inner": inner},
    )
    assert openings.delegate(loom.database, held.key, held.token, inner) == "delegated"
    return outer, inner


def _sweep(loom):
    return loom.sweeper(uuid7()).sweep()


@pytest.mark.parametrize("ends", ["done", "late"])
def test_a_stage_hears_from_the_sweeper_of_a_goal_whose_process_died_at_its_end(nested, loom, ends):
    outer, inner = _delegated(loom)
    assert openings.unheard(loom.database) == []
    if ends == "done":
        complete(loom.database, claim(loom.database, inner, "x"), '{"got": 1}')
    else:
        loom.database.call("UPDATE goals SET deadline = now() WHERE id = %(goal)s", {"goal": inner})
        goals.end_overdue(loom.database)
    assert openings.unheard(loom.database) == [inner]
    assert survey(loom.database, 5).unheard
    assert _sweep(loom).told == 1
    found = row(loom.database, outer, "inner")
    if ends == "done":
        assert (found.state, found.output, goals.get(loom.database, outer).state) == ("done", {"x": {"got": 1}}, "done")
    else:
        assert (found.state, goals.get(loom.database, outer).state) == ("failed", "failed")
        assert "deadline" in found.error["message"]
        # Replayed, the stage finds that its goal has failed, and opens another one.
        assert letters.replay(loom.database, StageKey(inner, "x"), actor="ann", request=uuid7()).outcome != "replayed"
        assert replay(loom.database, outer, "inner").outcome == "replayed"
        assert openings.newest_child(loom.database, StageKey(outer, "inner")) == (inner, "failed", 1)
    assert not survey(loom.database, 5).unheard


def test_an_outage_while_a_stage_is_told_is_not_its_goals_failure(nested, loom, monkeypatch):
    outer, inner = _delegated(loom)
    complete(loom.database, claim(loom.database, inner, "x"))

    def out(*_):
        raise DatabaseUnavailableError("gone for a moment")

    with monkeypatch.context() as patched:
        patched.setattr(openings, "inputs", out)
        with pytest.raises(DatabaseUnavailableError):
            loom.sequel.close(inner)
    assert row(loom.database, outer, "inner").state == "claimed"
    loom.sequel.close(inner)
    assert goals.get(loom.database, outer).state == "done"


def test_a_fan_out_whose_items_need_another_stage_is_not_skipped_for_want_of_it(nested, loom):
    goal = submit_goal("go", pipeline="pairs", context={}, loom=loom).goal_id
    complete(loom.database, claim(loom.database, goal, "list"), '{"items": [1, 2]}')
    complete(loom.database, claim(loom.database, goal, "scale"), '{"n": 3}')
    held = claim(loom.database, goal, "each")
    plan = loom.plans.get(held.snapshot)
    found = opening(plan.stages["each"], about(goals.get(loom.database, goal)), held.inputs)
    assert isinstance(found, FanOut)
    assert len(found.elements) == 2


# Admission and pause


def _limited(database, n=1, **more):
    return submit(database, new_stage("a"), max_concurrent=n, pipeline="narrow", **more)


def _admitted(database):
    query = "SELECT count(*) FROM goals WHERE state = 'open' AND admitted_at IS NOT NULL"
    return database.call(query, {})[0][0]


def test_never_more_goals_than_allowed_are_under_way_however_they_come_and_end(crowd):
    first = at_once(*[lambda: _limited(crowd, 3)] * 16)
    assert _admitted(crowd) == 3
    seen = []

    def work():
        while goals.count_open(crowd):
            for goal in first:
                if due(crowd, goal):
                    held = stages.claim(crowd, StageKey(goal, "a"), uuid7(), PLACE, 15)
                    seen.append(_admitted(crowd))
                    if held and complete(crowd, held).goal_ended:
                        goals.admit(crowd, "narrow")

    at_once(*[work] * 4)
    assert max(seen) <= 3
    assert {goals.get(crowd, goal).state for goal in first} == {"done"}


def test_the_most_urgent_goal_is_next_and_one_that_is_paused_or_gone_takes_no_place(database):
    first, normal, urgent, paused = (_limited(database, priority=priority) for priority in (1, 1, 2, 3))
    cancelled = _limited(database, priority=3)
    goals.pause(database, paused)
    goals.end(database, cancelled, "cancelled", NO)
    assert goals.admit(database, "narrow") == []
    for now, then in ((first, urgent), (urgent, normal)):
        goals.end(database, now, "cancelled", NO)
        assert goals.admit(database, "narrow") == [then]
        assert due(database, then) == {("a", -1)}
    goals.end(database, normal, "cancelled", NO)
    assert goals.admit(database, "narrow") == []
    assert goals.resume(database, paused)
    assert due(database, paused) == {("a", -1)}


def test_the_sweeper_admits_goals_when_whoever_ended_the_last_one_died(nested, loom):
    first, second = (submit_goal("go", pipeline="inner", context={"n": 1}, loom=loom).goal_id for _ in range(2))
    loom.database.call("UPDATE goals SET deadline = now() + interval '1 hour' WHERE id = %(goal)s", {"goal": second})
    complete(loom.database, claim(loom.database, first, "x"))
    assert survey(loom.database, 5).waiting == ("inner",)
    found = _sweep(loom)
    assert (found.admitted, found.topped_up) == (1, 1)
    assert states_of(loom.database, second) == {"x": "published"}
    assert survey(loom.database, 5).waiting == ()


def test_a_replayed_goal_of_a_limited_pipeline_waits_for_its_turn(database):
    goal, other = _limited(database), _limited(database)
    lose(database, claim(database, goal, "a"))
    assert goals.admit(database, "narrow") == [other]
    assert replay(database, goal, "a").outcome == "replayed"
    assert (due(database, goal), row(database, goal, "a").reason) == (set(), "max_concurrent_goals")
    goals.end(database, other, "cancelled", NO)
    assert goals.admit(database, "narrow") == [goal]
    assert complete(database, claim(database, goal, "a")).goal_ended


def test_what_becomes_ready_while_its_goal_is_paused_waits_until_it_is_resumed(database):
    goal = submit(
        database, new_stage("a", children=("c",)), new_stage("b"), new_stage("c", state="waiting", waits_for=1)
    )
    running, failing = claim(database, goal, "a"), claim(database, goal, "b")
    goals.pause(database, goal)
    complete(database, running)
    lose(database, failing, retryable=True)
    for name in ("b", "c"):
        assert stages.claim(database, StageKey(goal, name), uuid7(), PLACE, 15) is None
        found = row(database, goal, name)
        assert (found.not_before.year, found.reason, found.deliveries) == (NEVER, "paused", 0)
    goals.resume(database, goal)
    assert due(database, goal) == {("b", -1), ("c", -1)}


def test_a_stage_whose_message_is_taken_while_its_goal_is_resumed_is_not_put_away(crowd):
    for turn in range(40):
        goal = submit(crowd, new_stage("a"))
        crowd.call("UPDATE goals SET paused_at = now() WHERE id = %(goal)s", {"goal": goal})
        key = StageKey(goal, "a")
        pause_s = turn % 8 / 4000
        found, _ = at_once(
            lambda key=key: stages.claim(crowd, key, uuid7(), PLACE, 15),
            lambda goal=goal, pause_s=pause_s: (time.sleep(pause_s), goals.resume(crowd, goal)),
        )
        assert found is not None or due(crowd, goal) == {("a", -1)}


# Two versions


def test_a_node_of_before_hands_back_what_it_would_run_wrongly(database):
    call = "SELECT * FROM loomq_claim(%(goal)s, %(name)s, -1, %(token)s, %(node)s, 1, 'm', 15)"
    newer = submit(database, new_stage("a", state="published"), is_newer=True)
    plain = submit(database, new_stage("a", state="published"))
    given = {"name": "a", "token": uuid7(), "node": PLACE.node}
    assert database.call(call, {"goal": newer, **given}) == []
    found = row(database, newer, "a")
    assert (found.state, found.reason, found.deliveries) == ("ready", "for a newer node", 0)
    assert len(database.call(call, {"goal": plain, **given})) == 1
