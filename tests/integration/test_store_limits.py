"""Slots, keys and turns in the rows: who may be claimed, who waits, and in which order what waits is sent."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from rows import (
    NO,
    PLACE,
    alter,
    at_once,
    claim,
    complete,
    fan_out,
    lose,
    new_stage,
    row,
    states_of,
    submit,
    take,
    take_item,
)

from loomq.ids import uuid7
from loomq.store import backlog, goals, limits, stages
from loomq.store.backlog import Fairness
from loomq.store.engine import Database
from loomq.store.limits import Share
from loomq.store.stages import Place, StageKey
from loomq.store.survey import survey

FAIR = Fairness(3600, 0.0)


def _try(database, goal, name="a", of="echo", **more):
    said = json.dumps({"name": of, "worker": None, "tiers": {}, "override": None, "moved": {}, **more})
    return stages.claim(database, StageKey(goal, name), uuid7(), PLACE, 15, said)


# Slots


def test_a_worker_has_so_many_slots_over_all_nodes_and_tiers(database):
    found = [submit(database, new_stage("a", tier=tier)) for tier in ("local", "standard", "local")]
    other = submit(database, new_stage("a", worker="other"))
    held = [_try(database, goal, worker=2) for goal in found]
    assert [one is not None for one in held] == [True, True, False]
    assert _try(database, other, of="other", worker=1) is not None
    waits = row(database, found[2], "a")
    assert (waits.state, waits.deliveries, waits.published_at) == ("ready", 0, None)
    assert waits.reason == "worker echo has 2 at work, its max_concurrent"
    complete(database, held[0])
    assert _try(database, found[2], worker=2).deliveries == 1


def test_a_tier_has_so_many_slots_over_all_workers_that_the_router_sends_there(database):
    moved = {"moved": "frontier", "away": "local"}
    stages_ = [
        ("echo", "frontier"),
        ("moved", "local"),
        ("away", "frontier"),
        ("echo", "frontier"),
        ("moved", "standard"),
    ]
    found = [submit(database, new_stage("a", worker=worker, tier=tier)) for worker, tier in stages_]
    held = [
        _try(database, goal, tiers={"frontier": 2}, override=moved.get(worker), moved=moved)
        for goal, (worker, _) in zip(found, stages_, strict=True)
    ]
    assert [one is not None for one in held] == [True, True, True, False, False]
    assert "tier frontier has 2 at work" in row(database, found[3], "a").reason


def test_a_slot_comes_back_when_its_holder_fails_dies_is_released_or_held(database):
    goals_ = [submit(database, new_stage("a", max_retries=0)) for _ in range(5)]
    one = _try(database, goals_[0], worker=1)
    assert _try(database, goals_[1], worker=1) is None
    lose(database, one)
    two = _try(database, goals_[1], worker=1)
    assert two is not None
    alter(database, goals_[1], "a", "lease_until = clock_timestamp() - interval '1 second'")
    assert _try(database, goals_[2], worker=1) is None, "not before somebody has taken it back"
    stages.take_back(database, lease_s=15, max_deliveries=5)
    three = _try(database, goals_[2], worker=1)
    stages.release(database, three.key, three.token, "handed back")
    four = _try(database, goals_[3], worker=1)
    limits.hold(database, four.key, four.token, "waits")
    assert _try(database, goals_[4], worker=1) is not None


def test_a_claim_that_is_made_again_keeps_its_slot(database):
    goal = submit(database, new_stage("a"))
    key, token, said = StageKey(goal, "a"), uuid7(), json.dumps({"name": "echo", "worker": 1, "tiers": {"local": 1}})
    first, second = (stages.claim(database, key, token, PLACE, 15, said) for _ in range(2))
    assert (first.token, second.token, second.deliveries) == (token, token, 1)


def test_a_stage_that_fanned_out_holds_no_slot_and_its_items_do(database):
    goal = fan_out(database, 3)
    said = json.dumps({"name": "echo", "worker": 2, "tiers": {}})
    held = [stages.claim(database, StageKey(goal, "each", item), uuid7(), PLACE, 15, said) for item in range(3)]
    assert [one is not None for one in held] == [True, True, False]


def test_many_claims_at_once_never_take_more_slots_than_there_are(database_url):
    database = Database(database_url, pool_size=8)
    found = [submit(database, new_stage("a")) for _ in range(40)]
    held = at_once(
        *[
            lambda part=found[n::8]: [_try(database, goal, worker=5, tiers={"local": 7}) for goal in part]
            for n in range(8)
        ]
    )
    assert sum(one is not None for part in held for one in part) == 5
    assert Counter(states_of(database, goal)["a"] for goal in found) == {"claimed": 5, "ready": 35}
    database.close()


def test_a_claim_tells_which_rates_were_set_by_hand(database):
    goal = submit(database, new_stage("a"), new_stage("b"))
    assert _try(database, goal).rates == {}
    limits.override(database, "worker:echo", "5/s", "ann")
    limits.override(database, "worker:echo", "7/s", "bob")
    limits.override(database, "tier:local", "0", "ann")
    assert _try(database, goal, "b").rates == {"worker:echo": "7/s", "tier:local": "0"}
    assert [(one.name, one.rate, one.set_by) for one in limits.overrides(database)] == [
        ("tier:local", "0", "ann"),
        ("worker:echo", "7/s", "bob"),
    ]
    assert (limits.reset(database, "worker:echo"), limits.reset(database, "worker:echo")) == (True, False)


# Held


def test_what_a_limit_holds_keeps_its_place_and_is_not_counted(database):
    goal = submit(database, new_stage("a"), new_stage("b"))
    before = row(database, goal, "a").ready_at
    held = claim(database, goal, "a")
    assert limits.hold(database, held.key, held.token, "waits for the rate of worker echo (1/s)")
    waits = row(database, goal, "a")
    assert (waits.state, waits.ready_at, waits.deliveries, waits.attempt) == ("ready", before, 0, 1)
    assert (waits.not_before, waits.started_at, waits.token) == (None, None, None)
    assert waits.reason == "waits for the rate of worker echo (1/s)"
    assert not limits.hold(database, held.key, held.token, "again")
    assert [stage.key.name for stage in take(database, 2)] == ["a", "b"]


def test_what_is_held_for_a_while_is_not_due_meanwhile(database):
    goal = submit(database, new_stage("a"))
    held = claim(database, goal, "a")
    limits.hold(database, held.key, held.token, "no Redis", 3600)
    assert take(database, 5) == []
    assert survey(database, 0).ready == set()


def test_what_is_held_ends_with_its_goal(database):
    goal = submit(database, new_stage("a"))
    held = claim(database, goal, "a")
    database.call("SELECT loomq_end_goal(%(goal)s, 'cancelled', '{}')", {"goal": goal})
    assert limits.hold(database, held.key, held.token, "waits")
    assert states_of(database, goal) == {"a": "cancelled"}


# Keys


def _enter(database, held, name="customer:7", slots=1):
    return limits.enter(database, held.key, held.token, name, slots)


def test_a_key_lets_so_many_in_and_wakes_the_next_when_one_ends(database):
    found = [submit(database, new_stage("a", priority=priority)) for priority in (1, 1, 0, 2)]
    held = [claim(database, goal, "a") for goal in found]
    assert [_enter(database, one) for one in held] == ["entered", "held", "held", "held"]
    assert _enter(database, held[0]) == "entered", "the same call again"
    waits = row(database, found[1], "a")
    assert (waits.state, waits.deliveries, waits.reason) == ("ready", 0, 'waits for its concurrency key, "customer:7"')
    assert take(database, 9) == []
    assert limits.keys(database) == [("customer:7", 1, 1, 3)]

    assert complete(database, held[0]).backlog
    assert [stage.key.goal_id for stage in take(database, 9)] == [found[3]]  # the most urgent
    again = claim(database, found[3], "a")
    assert _enter(database, again) == "entered"
    complete(database, again)
    assert [stage.key.goal_id for stage in take(database, 9)] == [found[1]]  # then the oldest


def test_who_waits_for_a_key_whose_holder_died_is_found(database):
    one, two = (submit(database, new_stage("a")) for _ in range(2))
    held, waits = claim(database, one, "a", lease_s=0), claim(database, two, "a")
    assert (_enter(database, held), _enter(database, waits)) == ("entered", "held")
    assert survey(database, 0).keys
    assert limits.wake(database) == 0
    stages.take_back(database, lease_s=0, max_deliveries=5)
    assert limits.wake(database) == 1
    assert limits.wake(database) == 0
    assert not survey(database, 0).keys
    assert {stage.key.goal_id for stage in take(database, 9)} == {one, two}


def test_a_stage_that_pauses_before_its_next_attempt_is_not_woken_by_its_key(database):
    goal = submit(database, new_stage("a"))
    held = claim(database, goal, "a")
    assert _enter(database, held) == "entered"
    assert stages.fail(database, held.key, held.token, error=NO, retryable=True, delay_s=3600).verdict == "retried"
    assert limits.wake(database) == 0
    assert take(database, 5) == []


def test_a_paused_goal_is_not_woken_by_its_key_and_goes_on_when_it_is_resumed(database):
    one, two = (submit(database, new_stage("a")) for _ in range(2))
    held, waits = claim(database, one, "a"), claim(database, two, "a")
    assert (_enter(database, held), _enter(database, waits)) == ("entered", "held")
    goals.pause(database, two)
    complete(database, held)
    assert limits.wake(database) == 0
    assert goals.resume(database, two)
    assert _enter(database, claim(database, two, "a")) == "entered"


def test_a_key_that_somebody_else_has_taken_back_is_not_entered(database):
    goal = submit(database, new_stage("a"))
    held = claim(database, goal, "a", lease_s=0)
    stages.take_back(database, lease_s=0, max_deliveries=5)
    assert _enter(database, held) == "fenced"
    other = submit(database, new_stage("a"))
    blocker = claim(database, other, "a")
    assert _enter(database, blocker) == "entered"
    assert _enter(database, held) == "fenced"


def test_many_at_once_never_hold_a_key_that_has_two_slots(database_url):
    database = Database(database_url, pool_size=8)
    held = [claim(database, submit(database, new_stage("a")), "a") for _ in range(16)]
    said = at_once(*[lambda part=held[n::8]: [_enter(database, one, "k", 2) for one in part] for n in range(8)])
    assert Counter(word for part in said for word in part) == {"entered": 2, "held": 14}
    database.close()


# Turns


def test_a_goals_first_message_goes_before_the_others_of_those_that_have_some(database):
    crowd = submit(database, *[new_stage(f"s{n:02}") for n in range(20)])
    first = take(database, 10)
    assert [stage.bulk for stage in first] == [False] + [True] * 9
    late = submit(database, new_stage("x"))
    assert [(stage.key.goal_id == late, stage.bulk) for stage in take(database, 3)] == [
        (True, False),
        (False, True),
        (False, True),
    ]
    for _ in range(2):  # the first of the crowd is claimed: it has its next turn
        claim(database, crowd, "s00") if states_of(database, crowd)["s00"] == "published" else None
    assert [stage.bulk for stage in take(database, 2)] == [False, True]


def test_goals_take_turns_though_each_take_is_for_one_alone(database):
    found = [submit(database, *[new_stage(f"s{n}") for n in range(10)]) for _ in range(3)]
    order = []
    for _ in range(9):
        (stage,) = take(database, 1)
        order.append(found.index(stage.key.goal_id))
        complete(database, claim(database, stage.key.goal_id, stage.key.name))
    assert order == [0, 1, 2] * 3
    late = submit(database, new_stage("x"))
    following = [take(database, 1)[0].key.goal_id for _ in range(4)]
    assert late in following, "a new goal waits for one turn of each, and no longer"


def test_single_goals_go_in_the_order_in_which_they_came(database):
    found = [submit(database, new_stage("a")) for _ in range(30)]
    order = [stage.key.goal_id for _ in range(10) for stage in take(database, 3)]
    assert order == found


def test_a_full_queue_takes_what_is_more_urgent_and_the_first_of_others(database):
    crowd = submit(database, *[new_stage(f"s{n}") for n in range(5)])
    small, urgent = submit(database, new_stage("x")), submit(database, new_stage("y", priority=3))
    only_urgent = [0, 0, 0, 0, 0, 0, 5, 5]
    assert [stage.key.goal_id for stage in take(database, 5, free=only_urgent)] == [urgent]
    only_firsts = [0, 5, 0, 5, 0, 5, 0, 5]
    assert {stage.key.goal_id for stage in take(database, 5, free=only_firsts)} == {crowd, small}
    assert take(database, 5, free=only_firsts) == []
    assert len(take(database, 2, free=[5] * 8)) == 2


def test_the_turns_of_goals_long_done_are_forgotten(database):
    def turns():
        return database.call("SELECT count(*) FROM turns", {})[0][0]

    submit(database, *[new_stage(f"s{n}") for n in range(5)])
    take(database, 2)
    limits.prune_turns(database, 0)
    assert turns() == 1, "it would be the first again, before those that wait for their turn"
    take(database, 3)
    limits.prune_turns(database, 3600)
    assert turns() == 1
    limits.prune_turns(database, 0)
    assert turns() == 0


def test_a_small_goal_has_its_turn_though_more_goals_than_are_looked_at_stand_before_it(database):
    for _ in range(150):
        submit(database, *[new_stage(f"s{n}") for n in range(4)])
    small = submit(database, new_stage("x"))
    taken = [take(database, 1)[0].key.goal_id for _ in range(160)]
    assert small in taken, "after one turn of each, not after all that they have"


def test_what_may_be_raised_is_counted_over_all_routes_of_a_call(database):
    routes = [(f"w{n}", "local") for n in range(8)]
    low = [submit(database, new_stage("l", worker=worker, priority=0)) for worker, _ in routes]
    for goal in low:
        _age(database, goal, 100)
    for worker, _ in routes:
        for _ in range(4):
            submit(database, new_stage("u", worker=worker, priority=3))
    taken = backlog.take_ready(database, routes, [[32] * 8] * 8, 8, Fairness(60, 1 / 8))
    assert len(taken) == 8
    assert sum(stage.key.goal_id in low for stage in taken) <= 1


def test_what_was_raised_and_then_held_waits_with_its_own_priority_again(database):
    low = submit(database, new_stage("l", priority=0))
    _age(database, low, 100)
    submit(database, new_stage("u", priority=3))
    assert {stage.priority for stage in take(database, 2, age_s=60, share=1.0)} == {3}
    held = claim(database, low, "l")
    limits.hold(database, held.key, held.token, "waits")
    stage = row(database, low, "l")
    assert (stage.state, stage.priority, stage.raised_from) == ("ready", 0, None)


def test_children_that_become_ready_together_take_their_places_by_priority(database):
    below = tuple(f"c{n}" for n in range(4))
    goal = submit(
        database,
        new_stage("root", children=below),
        *[new_stage(name, state="waiting", waits_for=1, priority=3 if name == "c3" else 1) for name in below],
    )
    outcome = complete(database, claim(database, goal, "root"), room={"echo.local.1": 2, "echo.local.3": 1})
    assert set(outcome.published) == {"c0", "c1", "c3"}
    assert (outcome.held, outcome.bulk) == (("c2",), {"c1"})


# What waits long


def _age(database, goal, seconds):
    database.call(
        "UPDATE stages SET ready_at = clock_timestamp() - make_interval(secs => %(s)s) WHERE goal_id = %(goal)s",
        {"s": seconds, "goal": goal},
    )


def test_what_waited_long_goes_along_with_what_is_most_urgent(database):
    low = submit(database, *[new_stage(f"l{n}", priority=0) for n in range(10)])
    _age(database, low, 100)
    urgent = [submit(database, new_stage("u", priority=3)) for _ in range(16)]
    taken = take(database, 8, age_s=60, share=0.25)
    raised = [stage.priority for stage in taken if stage.key.goal_id == low]
    assert raised in ([3, 3], [3, 3, 3])
    assert taken[0].key.goal_id == urgent[0], "what is urgent by itself goes first"


@pytest.mark.parametrize(("age_s", "others"), [(1000, 3), (60, 0)])
def test_nothing_is_raised_that_is_young_or_has_nobody_before_it(database, age_s, others):
    low = submit(database, new_stage("l", priority=0))
    _age(database, low, 100)
    for _ in range(others):
        submit(database, new_stage("u", priority=3))
    for _ in range(5):
        take(database, 1, age_s=age_s, share=1.0)
    assert row(database, low, "l").priority == 0


def test_low_work_is_done_while_urgent_work_never_ends(database):
    low = submit(database, *[new_stage(f"l{n}", priority=0) for n in range(5)])
    _age(database, low, 100)
    seen = Counter()
    for _ in range(200):
        submit(database, new_stage("u", priority=3))
        for stage in take(database, 1, age_s=60, share=1 / 8):
            seen[stage.key.goal_id == low] += 1
            complete(database, claim(database, stage.key.goal_id, stage.key.name))
    assert seen[True] == 5
    kinds = database.call("SELECT count(*) FROM events WHERE goal_id = %(g)s AND kind = 'stage_promoted'", {"g": low})
    assert kinds == [(5,)]


# Feeding


def _feed(database, limit=100, **more):
    routes = more.pop("routes", [("echo", "local")])
    plain = {
        "name": "worker:echo",
        "routes": routes,
        "free": [[100] * 8 for _ in routes],
        "grants": [None] * len(routes),
        "slots": [None] * len(routes),
        "tier": None,
        "tier_grants": None,
        "tier_slots": None,
        "moved": "{}",
    }
    return limits.feed(database, Share(**{**plain, **more}), limit, FAIR)


def test_as_much_is_fed_as_may_start_and_what_was_fed_counts(database):
    submit(database, *[new_stage(f"s{n}") for n in range(20)])
    assert len(_feed(database, grants=[3])) == 3
    assert _feed(database, grants=[3]) == []
    assert len(_feed(database, grants=[5])) == 2
    assert len(_feed(database, slots=[8], grants=[None])) == 3
    assert len(_feed(database)) == 12


def test_those_that_run_count_for_slots_and_not_for_rates(database):
    goal = submit(database, *[new_stage(f"s{n}") for n in range(20)])
    fed = _feed(database, slots=[4])
    for stage in fed[:2]:
        claim(database, goal, stage.key.name)
    assert _feed(database, slots=[4]) == []
    assert len(_feed(database, grants=[4])) == 2
    assert len(_feed(database, slots=[7])) == 1


def test_a_tiers_limits_are_shared_by_urgency_over_its_workers(database):
    routes = [("a", "frontier"), ("b", "frontier"), ("moved", "local")]
    many = submit(database, *[new_stage(f"s{n}", worker="a", tier="frontier") for n in range(10)])
    urgent = submit(database, new_stage("u", worker="b", tier="frontier", priority=3))
    small = submit(database, new_stage("m", worker="moved"))
    shared = {"routes": routes, "name": "tier:frontier", "tier": "frontier", "moved": '{"moved": "frontier"}'}
    fed = _feed(database, **shared, tier_grants=3)
    assert [stage.key.goal_id for stage in fed] == [urgent, many, small]
    claim(database, urgent, "u")
    assert len(_feed(database, **shared, tier_slots=5)) == 2
    assert _feed(database, **shared, tier_slots=5) == []


def test_one_worker_of_a_tier_may_be_slower_than_the_tier(database):
    routes = [("a", "local"), ("b", "local")]
    for worker, _ in routes:
        submit(database, *[new_stage(f"s{n}", worker=worker) for n in range(10)])
    fed = _feed(database, routes=routes, name="tier:local", tier="local", grants=[1, None], tier_grants=6)
    assert Counter(stage.worker for stage in fed) == {"a": 1, "b": 5}


def test_messages_that_wait_for_busy_nodes_do_not_keep_other_workers_of_the_tier_waiting(database):
    routes = [("a", "local"), ("b", "local")]
    for worker, _ in routes:
        submit(database, *[new_stage(f"s{n}", worker=worker) for n in range(10)])
    shared = {"routes": routes, "name": "tier:local", "tier": "local", "tier_slots": 4}
    only_a = [[100] * 8, [0] * 8]
    assert {stage.worker for stage in _feed(database, **shared, free=only_a)} == {"a"}
    fed = _feed(database, **shared)
    assert [stage.worker for stage in fed] == ["b"]
    assert _feed(database, **shared) == []
    claim(database, fed[0].key.goal_id, fed[0].key.name)
    assert [stage.worker for stage in _feed(database, **shared)] == ["b"]


def test_two_that_feed_at_once_never_feed_more_than_may_start(database_url):
    database = Database(database_url, pool_size=4)
    submit(database, *[new_stage(f"s{n}") for n in range(100)])
    for _ in range(10):
        fed = at_once(*[lambda: _feed(database, grants=[10])] * 4)
        assert sum(map(len, fed)) in (0, 10)
        backlog.unpublish_all(database)
    database.close()


def test_who_has_work_that_is_due_is_hungry(database):
    submit(database, new_stage("a"), new_stage("b", worker="later"))
    alter(
        database,
        submit(database, new_stage("c", worker="late")),
        "c",
        "not_before = clock_timestamp() + interval '1 h'",
    )
    routes = [("echo", "local"), ("late", "local"), ("nobody", "local")]
    assert limits.hungry(database, routes) == {("echo", "local")}


def test_standings_count_what_there_is_and_what_ended_lately(database):
    goal = submit(database, *[new_stage(f"s{n}") for n in range(6)])
    alter(database, goal, "s5", "not_before = clock_timestamp() + interval '1 hour'")
    take(database, 2)
    complete(database, claim(database, goal, "s2"))
    lose(database, claim(database, submit(database, new_stage("x", max_retries=0)), "x"))
    old = submit(database, new_stage("y"))
    complete(database, claim(database, old, "y"))
    alter(database, old, "y", "ended_at = clock_timestamp() - interval '2 minutes'")
    claim(database, goal, "s3", place=Place(uuid7(), 1, "m"))
    (found,) = limits.standings(database)
    assert (found.waiting, found.later, found.sent, found.running, found.done_a_minute) == (1, 1, 2, 1, 2)
    assert found.oldest is not None


def test_an_item_that_waits_for_a_key_is_fed_when_it_is_free(database):
    goal = fan_out(database, 2)
    one, two = (take_item(database, goal, item) for item in range(2))
    assert (_enter(database, one), _enter(database, two)) == ("entered", "held")
    stages.fail(database, one.key, one.token, error=NO, retryable=True)
    assert limits.wake(database, "customer:7") == 1
