"""The journal of calls to models: kept for who holds the stage, counted in any case, allowed by budgets."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from rows import alter, at_once, claim, complete, new_stage, row, submit

from loomq.ids import uuid7
from loomq.store import details, journal, prune, spending
from loomq.store.stages import StageKey


def _call(at_round=0, request="r", prompt=10, answer=5, cost=0.5, **more):
    said = {
        "round": at_round, "worker": "echo", "tier": "local", "provider": "openai", "model": "m", "request": request,
        "prompt_tokens": prompt, "completion_tokens": answer, "cost": cost, "state": "done", "cached_tokens": 0,
        "took_ms": 3, "reply": {"content": request},
    }  # fmt: skip
    return json.dumps({**said, **more})


def _keep(database, held, **said):
    return journal.keep_call(database, held.key, held.token, uuid7(), _call(**said))


def _reserve(database, held, prompt=10, answer=5, cost=0.5, call_id=None):
    said = _call(prompt=prompt, answer=answer, cost=cost)
    return journal.reserve(database, held.key, held.token, call_id or uuid7(), said)


@pytest.fixture
def held(database):
    """A claimed stage of a goal without a budget."""
    return claim(database, submit(database, new_stage("a")), "a")


def test_what_was_answered_is_there_for_the_next_delivery(database, held):
    message = {"role": "tool", "content": "x", "tool_call_id": "c1"}
    assert _keep(database, held, at_round=0)
    assert journal.keep_result(database, held.key, held.token, 0, "c", json.dumps(message), 7)
    assert _keep(database, held, at_round=1, request="s")

    found = journal.read(database, held.key)
    assert [(one["round"], one["request"], one["reply"]["content"]) for one in found.calls] == [
        (0, "r", "r"), (1, "s", "s"),
    ]  # fmt: skip
    assert found.results == [{"round": 0, "call": "c", "message": message}]
    assert not found.has_budget
    assert journal.read(database, StageKey(held.key.goal_id, "a", 3)).calls == []


def test_a_late_holder_s_reply_is_paid_for_and_of_no_use(database, held):
    alter(database, held.key.goal_id, "a", "state = 'ready', token = NULL")
    assert not _keep(database, held)
    assert not journal.keep_result(database, held.key, held.token, 0, "c", '{"tool_call_id": "c"}', 1)
    found = journal.read(database, held.key)
    assert (found.calls, found.results) == ([], [])
    assert spending.of_stages(database, held.key.goal_id)["a"].known_cost == 0.5


def test_the_same_call_written_twice_is_one(database, held):
    call_id = uuid7()
    for _ in range(2):
        assert journal.keep_call(database, held.key, held.token, call_id, _call())
    assert spending.of_stages(database, held.key.goal_id)["a"].calls == 1


def test_a_dropped_round_is_forgotten_and_stays_paid_for(database, held):
    for number in range(3):
        _keep(database, held, at_round=number)
        journal.keep_result(database, held.key, held.token, number, "c", json.dumps({"tool_call_id": "c"}), 1)
    journal.drop(database, held.key, held.token, 1)
    found = journal.read(database, held.key)
    assert [one["round"] for one in found.calls] == [0]
    assert [one["round"] for one in found.results] == [0]
    assert spending.of_stages(database, held.key.goal_id)["a"].calls == 3
    journal.drop(database, held.key, uuid7(), 0)  # somebody else's token
    assert journal.read(database, held.key).calls


# Budgets


def _with_budget(database, **budget):
    return claim(database, submit(database, new_stage("a"), budget=budget), "a")


def test_a_call_that_might_break_the_budget_is_refused_with_the_figures(database):
    held = _with_budget(database, max_tokens=40)
    assert journal.read(database, held.key).has_budget
    assert _reserve(database, held)["verdict"] == "granted"
    assert _keep(database, held, prompt=20, answer=5)
    refused = _reserve(database, held)
    assert (refused["verdict"], refused["limit"]) == ("refused", "max_tokens")
    assert (refused["spent"], refused["most"], refused["needs"]) == (40, 40, 15)


def test_what_was_put_aside_is_settled_with_what_was_used(database):
    held, call_id = _with_budget(database, max_cost=1.0), uuid7()
    assert _reserve(database, held, cost=0.9, call_id=call_id)["verdict"] == "granted"
    assert _reserve(database, held, cost=0.9, call_id=call_id)["verdict"] == "granted"  # the same, after a lost answer
    assert _reserve(database, held, cost=0.2)["limit"] == "max_cost"
    journal.keep_call(database, held.key, held.token, call_id, _call(cost=0.1))
    assert _reserve(database, held, cost=0.2)["verdict"] == "granted"


def test_what_nobody_charges_is_given_back_and_what_nobody_saw_the_end_of_stays(database):
    held, given_back = _with_budget(database, max_cost=1.0), uuid7()
    _reserve(database, held, cost=0.6, call_id=given_back)
    journal.unreserve(database, held.key, given_back)
    assert _reserve(database, held, cost=0.6)["verdict"] == "granted"
    assert _reserve(database, held, cost=0.6)["verdict"] == "refused"
    spent = spending.of_stages(database, held.key.goal_id)["a"]
    assert (spent.calls, spent.open_calls, spent.known_cost) == (1, 1, 0.6)


@pytest.mark.parametrize("spent_before", [False, True])
def test_an_unknown_price_cannot_keep_a_limit_on_cost(database, spent_before):
    held = _with_budget(database, max_cost=1.0)
    if spent_before:
        _keep(database, held, cost=None)
    assert _reserve(database, held, cost=0.1 if spent_before else None)["limit"] == "unknown_price"


def test_a_limit_on_tokens_needs_no_price(database):
    assert _reserve(database, _with_budget(database, max_tokens=100), cost=None)["verdict"] == "granted"


def test_of_many_that_ask_at_once_as_many_go_as_fit(database):
    held = _with_budget(database, max_tokens=15 * 7)
    found = at_once(*(lambda: _reserve(database, held)["verdict"] for _ in range(12)))
    assert sorted(found) == ["granted"] * 7 + ["refused"] * 5


def test_a_goal_s_budget_holds_for_the_goals_that_are_its_work(database):
    parent = submit(database, new_stage("p"), budget={"max_tokens": 40})
    children = [
        claim(database, submit(database, new_stage("a"), parent=(parent, "p", -1), pipeline=f"c{n}"), "a")
        for n in range(2)
    ]
    assert _reserve(database, children[0], prompt=30)["verdict"] == "granted"
    refused = _reserve(database, children[1])
    assert (refused["verdict"], refused["goal"]) == ("refused", str(parent))
    assert spending.of_stages(database, parent)["p"].prompt_tokens == 30


def test_who_no_longer_holds_the_stage_may_not_ask(database):
    held = _with_budget(database, max_tokens=100)
    alter(database, held.key.goal_id, "a", "state = 'ready', token = NULL")
    assert _reserve(database, held)["verdict"] == "fenced"


# What it came to


def test_spending_adds_up_by_worker_model_day_and_goal_and_unknown_is_not_zero(database, held):
    _keep(database, held, cost=0.25, cached_tokens=4)
    _keep(database, held, cost=None, model="other")
    _keep(database, held, cost=0.0, state="cached", prompt=0, answer=0)
    ((_, spent),) = spending.by(database, "worker", None, 10)
    assert (spent.calls, spent.cached_calls, spent.unpriced_calls, spent.cached_tokens) == (2, 1, 1, 4)
    assert (spent.known_cost, spent.cost) == (0.25, None)
    models = dict(spending.by(database, "model", timedelta(hours=1), 10))
    assert (models["m"].cost, models["other"].cost) == (0.25, None)
    assert [name for name, _ in spending.by(database, "goal", None, 10)] == [str(held.key.goal_id)]
    for group in spending.GROUPS:
        assert sum(one.calls for _, one in spending.by(database, group, None, 10)) == 2
    database.call("UPDATE llm_calls SET at = now() - interval '2 days'", {})
    assert spending.by(database, "worker", timedelta(days=1), 10) == []


def test_a_goal_s_tokens_are_those_of_its_calls_or_else_of_its_results(database):
    goal = submit(database, new_stage("a"), new_stage("b"))
    one, other = claim(database, goal, "a"), claim(database, goal, "b")
    _keep(database, one, prompt=7, answer=1)
    _keep(database, one, prompt=7, answer=1)
    complete(database, one, token_usage={"prompt_tokens": 7, "completion_tokens": 1})
    complete(database, other, token_usage={"prompt_tokens": 3, "completion_tokens": 2})
    assert details.tokens(database, goal) == {
        "a": {"prompt_tokens": 14, "completion_tokens": 2}, "b": {"prompt_tokens": 3, "completion_tokens": 2},
    }  # fmt: skip


def test_notes_are_kept_with_the_result(database, held):
    assert complete(database, held, notes={"repair": "fenced"}).verdict == "accepted"
    assert row(database, held.key.goal_id, "a").notes == {"repair": "fenced"}


def test_the_cache_gives_an_answer_until_it_expires_and_prune_takes_it_then(database):
    journal.cache(database, "k", "echo", '{"content": "x"}', 60)
    journal.cache(database, "k", "echo", '{"content": "y"}', 60)
    assert journal.cached(database, "k") == {"content": "y"}
    assert journal.cached(database, "other") is None
    database.call("UPDATE llm_cache SET expires_at = now()", {})
    assert journal.cached(database, "k") is None
    until = prune.cutoffs(database, goals=timedelta(days=1), letters=timedelta(days=1), most_letters=9)
    assert sum(prune.rows(database, "answers", until)) == 1


def test_a_goal_that_is_pruned_takes_its_journal_along(database, held):
    _keep(database, held)
    journal.keep_result(database, held.key, held.token, 0, "c", '{"tool_call_id": "c"}', 1)
    complete(database, held)
    until = prune.cutoffs(database, goals=timedelta(0), letters=timedelta(0), most_letters=9)
    assert [batch.goals for batch in prune.goals(database, until, actor="me")] == [1]
    assert database.call("SELECT 1 FROM llm_calls UNION ALL SELECT 1 FROM tool_results", {}) == []
    assert not _keep(database, held)  # nobody's any more, and not written down
    assert spending.by(database, "goal", None, 9) == []
