"""What becomes of a claimed stage that does not complete: failed, released, or its lease extended."""

from datetime import timedelta

import pytest
from rows import PLACE, alter, claim, complete, new_stage, row, run, states_of, submit, submit_dag

from loomq.ids import uuid7
from loomq.store import goals, stages
from loomq.store.stages import Place, StageKey

ERROR = {"type": "PipelineWorkerError", "message": "no", "retryable": True}


# Fail


def test_a_failure_with_retries_left_makes_the_stage_ready_for_later(database):
    goal_id = submit_dag(database, {"a": (), "b": ("a",)})
    claimed = claim(database, goal_id, "a")
    assert (
        stages.fail(database, claimed.key, claimed.token, error=ERROR, retryable=True, delay_s=3600).verdict
        == "retried"
    )

    written = row(database, goal_id, "a")
    assert (written.state, written.attempt, written.deliveries, written.reason) == ("ready", 2, 0, "retry")
    assert (written.token, written.lease_until, written.published_at) == (None, None, None)
    assert timedelta(seconds=3590) < written.not_before - written.ended_at < timedelta(seconds=3610)
    (entry,) = written.history
    assert (entry["attempt"], entry["delivery"], entry["error"]) == (1, 1, ERROR)
    assert entry["node"] == str(PLACE.node)
    assert entry["started_at"] < entry["ended_at"]
    assert stages.claim(database, StageKey(goal_id, "a"), uuid7(), PLACE, 15) is None
    assert goals.get(database, goal_id).state == "open"


def test_a_stage_that_succeeds_at_its_second_attempt_leads_on(database):
    goal_id = submit_dag(database, {"a": (), "b": ("a",)})
    first = claim(database, goal_id, "a")
    stages.fail(database, first.key, first.token, error=ERROR, retryable=True)
    second = claim(database, goal_id, "a")
    assert (second.attempt, second.deliveries) == (2, 1)
    assert complete(database, second).held == ("b",)
    written = row(database, goal_id, "a")
    assert (written.error, len(written.history)) == (None, 1)


def test_a_failure_without_retries_left_ends_the_goal(database):
    goal_id = submit(
        database,
        new_stage("a", max_retries=1),
        new_stage("over"),
        new_stage("runs"),
        new_stage("sent", state="published"),
        new_stage("b", state="waiting", waits_for=1),
    )
    run(database, goal_id, "over")
    claim(database, goal_id, "runs")
    for verdict in ("retried", "ended"):
        claimed = claim(database, goal_id, "a")
        assert stages.fail(database, claimed.key, claimed.token, error=ERROR, retryable=True).verdict == verdict
    assert states_of(database, goal_id) == {
        "a": "failed",
        "over": "done",
        "runs": "claimed",
        "sent": "cancelled",
        "b": "cancelled",
    }
    goal, written = goals.get(database, goal_id), row(database, goal_id, "a")
    assert (goal.state, goal.error) == ("failed", ERROR)
    assert (written.attempt, written.error, len(written.history)) == (2, ERROR, 2)
    assert written.ended_at is not None


def test_a_failure_that_retries_cannot_help_ends_the_goal_at_once(database):
    goal_id = submit(database, new_stage("a", max_retries=9))
    claimed = claim(database, goal_id, "a")
    assert stages.fail(database, claimed.key, claimed.token, error=ERROR, retryable=False).verdict == "ended"
    assert goals.get(database, goal_id).state == "failed"


def test_a_failure_is_fenced_by_its_token(database):
    goal_id = submit(database, new_stage("a"))
    claimed = claim(database, goal_id, "a")
    assert stages.fail(database, claimed.key, uuid7(), error=ERROR, retryable=False).verdict == "fenced"
    assert stages.fail(database, claimed.key, claimed.token, error=ERROR, retryable=True).verdict == "retried"
    assert stages.fail(database, claimed.key, claimed.token, error=ERROR, retryable=False).verdict == "fenced"
    assert (row(database, goal_id, "a").attempt, goals.get(database, goal_id).state) == (2, "open")


def test_only_the_first_failure_is_the_goals_own(database):
    goal_id = submit(database, new_stage("a"), new_stage("b"))
    first, second = claim(database, goal_id, "a"), claim(database, goal_id, "b")
    stages.fail(database, first.key, first.token, error={**ERROR, "message": "first"}, retryable=False)
    stages.fail(database, second.key, second.token, error={**ERROR, "message": "second"}, retryable=False)
    assert goals.get(database, goal_id).error["message"] == "first"
    assert row(database, goal_id, "b").state == "failed"


# What comes back to a goal that has ended meanwhile


def _end_meanwhile(database, **place):
    goal_id = submit(database, new_stage("a", max_retries=5))
    claimed = claim(database, goal_id, "a", **place)
    assert goals.end(database, goal_id, "cancelled", {"message": "enough"})
    return goal_id, claimed


def test_a_retry_in_a_goal_that_has_ended_is_cancelled(database):
    goal_id, claimed = _end_meanwhile(database)
    stages.fail(database, claimed.key, claimed.token, error=ERROR, retryable=True)
    assert row(database, goal_id, "a").state == "cancelled"


def test_a_stage_taken_back_in_a_goal_that_has_ended_is_cancelled(database):
    goal_id, _ = _end_meanwhile(database, lease_s=0)
    stages.take_back(database, lease_s=15, max_deliveries=5)
    assert row(database, goal_id, "a").state == "cancelled"


def test_a_stage_released_in_a_goal_that_has_ended_is_cancelled(database):
    goal_id, claimed = _end_meanwhile(database)
    stages.release(database, claimed.key, claimed.token, "shutdown")
    assert row(database, goal_id, "a").state == "cancelled"


# Release


def test_a_released_stage_is_ready_again_and_its_delivery_is_not_counted(database):
    goal_id = submit(database, new_stage("a", state="published"))
    claimed = claim(database, goal_id, "a")
    assert stages.release(database, claimed.key, claimed.token, "shutdown")
    written = row(database, goal_id, "a")
    assert (written.state, written.deliveries, written.attempt, written.reason) == ("ready", 0, 1, "shutdown")
    assert (written.token, written.lease_until, written.published_at) == (None, None, None)
    assert not stages.release(database, claimed.key, claimed.token, "shutdown")
    assert complete(database, claimed).verdict == "fenced"
    assert claim(database, goal_id, "a").deliveries == 1


def test_only_the_token_releases(database):
    goal_id = submit(database, new_stage("a"))
    claimed = claim(database, goal_id, "a")
    assert not stages.release(database, claimed.key, uuid7(), "shutdown")
    assert row(database, goal_id, "a").state == "claimed"
    complete(database, claimed)
    assert not stages.release(database, claimed.key, claimed.token, "shutdown")
    assert row(database, goal_id, "a").state == "done"


# Extend


def test_a_node_extends_the_leases_of_its_own_live_processes_only(database):
    mine, other = uuid7(), uuid7()
    goal_id = submit(database, *[new_stage(name) for name in ("mine", "second", "dead_child", "other", "idle")])
    for name, node, pid in [("mine", mine, 1), ("second", mine, 2), ("dead_child", mine, 3), ("other", other, 1)]:
        claim(database, goal_id, name, place=Place(node, pid, "m"), lease_s=0)
    before = {name: row(database, goal_id, name).lease_until for name in ("mine", "second", "dead_child", "other")}

    assert stages.extend(database, mine, [1, 2], 30, 5) == 2

    extended = {name for name, until in before.items() if row(database, goal_id, name).lease_until > until}
    assert extended == {"mine", "second"}
    assert row(database, goal_id, "mine").lease_until - before["mine"] >= timedelta(seconds=30)
    assert sorted(held.pid for held in stages.held_by(database, mine)) == [1, 2, 3]
    assert stages.extend(database, mine, [], 30, 5) == 0


@pytest.mark.parametrize(("ran_for_s", "extended"), [(0, 1), (64.5, 1), (65.5, 0), (600, 0)])
def test_no_lease_is_extended_past_the_deadline_and_its_grace(database, ran_for_s, extended):
    goal_id = submit(database, new_stage("a", timeout_s=60))
    claim(database, goal_id, "a")
    alter(database, goal_id, "a", f"started_at = clock_timestamp() - make_interval(secs => {ran_for_s})")
    assert stages.extend(database, PLACE.node, [PLACE.pid], 15, 5) == extended


def test_a_stage_that_is_over_has_no_lease_to_extend(database):
    goal_id = submit(database, new_stage("a"))
    run(database, goal_id, "a")
    assert stages.extend(database, PLACE.node, [PLACE.pid], 15, 5) == 0
    assert stages.held_by(database, PLACE.node) == []
