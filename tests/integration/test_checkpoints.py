"""One suite for every store of checkpoints."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest
from rows import new_stage, submit

from loomq.errors import BrokerUnavailableError
from loomq.messages import CheckpointState
from loomq.orchestrator.checkpoint import PostgresCheckpoints, RedisCheckpoints
from loomq.testing import wait_until


@pytest.fixture(params=["postgres", "redis"])
def kept(request, loom):
    """A store, and a goal that it may keep checkpoints of."""
    goal_id = submit(loom.database, new_stage("a"))
    if request.param == "postgres":
        return PostgresCheckpoints(loom.database), goal_id
    if not loom.app.is_redis:
        pytest.skip("the broker is no Redis")
    return RedisCheckpoints(loom.app.limiter.server), goal_id


def state(goal_id, number=1, summary="what was", **more):
    return CheckpointState(
        goal_id=goal_id,
        original_instruction="go · 行く",
        executive_summary=summary,
        checkpoint_number=number,
        completed_tasks=({"task": "a", "status": "completed"},),
        open_issues=("one",),
        **more,
    )


def test_a_goal_without_a_checkpoint_has_none(kept):
    store, goal_id = kept
    assert store.latest(goal_id) is None
    store.forget(goal_id)


def test_the_newest_checkpoint_comes_back_as_it_was(kept):
    store, goal_id = kept
    first, second = state(goal_id), state(goal_id, 2, covers=9, until=12)
    store.save(first, 60)
    assert store.latest(goal_id) == first
    store.save(second, 60)
    assert store.latest(goal_id) == second
    store.forget(goal_id)
    assert store.latest(goal_id) is None


def test_whoever_comes_late_undoes_nothing(kept):
    store, goal_id = kept
    second = state(goal_id, 2)
    store.save(state(goal_id, 1), 60)
    store.save(second, 60)
    store.save(state(goal_id, 1, "too late"), 60)
    store.save(state(goal_id, 2, "another"), 60)
    assert store.latest(goal_id) == second


def test_an_expired_checkpoint_is_gone_and_makes_room_for_another(kept):
    store, goal_id = kept
    store.save(state(goal_id), 0.05)
    wait_until(lambda: store.latest(goal_id) is None, "the end of its time")
    store.save(state(goal_id, 1, "anew"), 60)
    assert store.latest(goal_id).executive_summary == "anew"


def test_goals_are_kept_apart(kept):
    store, goal_id = kept
    store.save(state(goal_id), 60)
    assert store.latest(uuid4()) is None


def test_redis_keeps_nothing_without_an_end(loom):
    if not loom.app.is_redis:
        pytest.skip("the broker is no Redis")
    store, goal_id = RedisCheckpoints(loom.app.limiter.server), uuid4()
    store.save(state(goal_id), 500)
    keys = loom.app.broker.run(lambda producer: producer.channel.client.keys("loomq-checkpoint:*"))
    assert len(keys) == 1
    assert 0 < loom.app.broker.run(lambda producer: producer.channel.client.ttl(keys[0])) <= 500
    assert json.loads(loom.app.broker.run(lambda producer: producer.channel.client.get(keys[0])))["goal_id"]


def test_a_redis_that_is_away_says_so(project):
    loom = project.loom(redis_url="redis://127.0.0.1:1")
    try:
        with pytest.raises(BrokerUnavailableError):
            RedisCheckpoints(loom.app.limiter.server).latest(uuid4())
    finally:
        loom.close()


def test_a_checkpoint_of_a_goal_that_is_gone_is_not_kept_in_postgres(loom):
    store = PostgresCheckpoints(loom.database)
    gone = uuid4()
    store.save(state(gone), 60)
    assert store.latest(gone) is None
