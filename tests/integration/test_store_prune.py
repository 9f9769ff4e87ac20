"""What prune takes and what it leaves, whoever submits, replays or prunes at the same time."""

from datetime import timedelta
from uuid import UUID

import pytest
from rows import at_once, claim, new_goal, new_stage, run, submit, submit_dag, submit_row

from loomq.ids import uuid7
from loomq.store import goals, letters, malformed, prune, results, stages
from loomq.store.engine import Database
from loomq.store.stages import StageKey

ERROR = {"type": "PipelineWorkerError", "message": "no", "retryable": False}
OLD, OLDER = 40, 100  # days; the first is past the bound of goals, the second past that of dead letters


def cutoffs(database, *, most=100, goals_days=30.0):
    return prune.cutoffs(database, goals=timedelta(days=goals_days), letters=timedelta(days=90), most_letters=most)


def pruned(database, **given):
    """Prune goals, and count goals, stages, dead letters."""
    until = cutoffs(database, **given)
    planned = prune.count_goals(database, until)
    found = list(prune.goals(database, until, actor="ann"))
    total = tuple(sum(getattr(one, name) for one in found) for name in ("goals", "stages", "letters"))
    assert total == (planned.goals, planned.stages, planned.letters)
    return total


def rows(database, what, **given):
    until = cutoffs(database, **given)
    planned = prune.count_rows(database, what, until)
    assert sum(prune.rows(database, what, until)) == planned
    return planned


def age(database, goal_id, days):
    """Let a goal have ended so many days ago, and its stages too."""
    for table, key in (("goals", "id"), ("stages", "goal_id")):
        database.call(
            f"UPDATE {table} SET ended_at = now() - make_interval(days => %(days)s) WHERE {key} = %(id)s",
            {"id": goal_id, "days": days},
        )


def done(database, days=OLD, **goal):
    goal_id = submit(database, new_stage("a"), **goal)
    run(database, goal_id, "a")
    age(database, goal_id, days)
    return goal_id


def dead(database, days=OLD, **goal):
    goal_id = submit(database, new_stage("a"), **goal)
    held = claim(database, goal_id, "a")
    stages.fail(database, held.key, held.token, error=ERROR, retryable=False)
    age(database, goal_id, days)
    return goal_id


def count(database, table):
    return database.call(f"SELECT count(*) FROM {table}", {})[0][0]


def left(database) -> set[UUID]:
    return {row[0] for row in database.call("SELECT id FROM goals", {})}


def test_goals_that_ended_long_ago_go_with_all_that_is_theirs(database):
    kept = {done(database, 20), submit(database, new_stage("a")), submit_dag(database, {"a": (), "b": ("a",)})}
    age(database, max(kept), OLD)  # it is open, whatever its times say
    done(database, key="k")
    cancelled = submit_dag(database, {"a": (), "b": ("a",)})
    goals.end(database, cancelled, "cancelled", {"message": "enough"})
    age(database, cancelled, OLD)

    assert pruned(database) == (2, 3, 0)
    assert left(database) == kept
    assert (count(database, "stages"), count(database, "idempotency_keys")) == (4, 0)
    assert pruned(database) == (0, 0, 0)
    _, created = submit_row(database, new_goal(), [new_stage("a")], key="k")
    assert created


def test_goals_with_dead_letters_stay_longer_and_the_audit_trail_says_that_they_went(database):
    kept = dead(database)
    dropped = dead(database)
    letters.drop(database, StageKey(dropped, "a"), actor="ann", request=uuid7())
    dead(database, OLDER)
    overdue = submit(database, new_stage("a"))  # failed, and nothing of it to replay
    goals.end(database, overdue, "failed", ERROR)
    age(database, overdue, OLD)

    assert pruned(database) == (3, 3, 1)
    assert left(database) == {kept}
    notes = database.call("SELECT actor, action, detail FROM audit WHERE action = 'prune'", {})
    assert [tuple(note) for note in notes] == [("ann", "prune", {"goals": 3, "letters": 1})]


def test_no_more_dead_letters_stay_than_were_asked_for_and_the_oldest_go(database):
    by_age = [dead(database, days) for days in (5, 4, 3, 2, 1)]
    assert pruned(database, most=5) == (0, 0, 0)
    assert pruned(database, most=2) == (3, 3, 3)
    assert left(database) == set(by_age[3:])
    assert pruned(database, most=0) == (2, 2, 2)


def test_a_goal_stays_while_a_worker_has_a_stage_of_it_or_its_continuation_is_to_be_sent(database):
    goal_id = submit(database, new_stage("a"))
    claim(database, goal_id, "a")
    goals.end(database, goal_id, "cancelled", {"message": "enough"})
    age(database, goal_id, OLD)
    done(database, task_id="t", canvas={"link": [{"task": "x"}]})
    assert pruned(database) == (0, 0, 0)


def test_many_goals_go_in_batches_whoever_else_prunes(database_url, monkeypatch):
    monkeypatch.setattr(prune, "BATCH", 7)
    database = Database(database_url, pool_size=8)
    for _ in range(30):
        done(database)
    until = cutoffs(database)
    found = at_once(*[lambda: [one.goals for one in prune.goals(database, until, actor="x")]] * 3)
    assert sum(map(sum, found)) == 30
    assert max(map(max, filter(None, found))) <= 7
    assert (count(database, "goals"), count(database, "stages")) == (0, 0)
    database.close()


def test_a_goal_that_is_replayed_while_it_would_be_pruned_is_whole_or_gone(database_url):
    database = Database(database_url, pool_size=4)
    for _ in range(15):
        goal_id = dead(database, OLDER)
        until = cutoffs(database)
        replayed, _ = at_once(
            lambda goal_id=goal_id: (
                letters.replay(database, StageKey(goal_id, "a"), actor="x", request=uuid7()).outcome
            ),
            lambda until=until: list(prune.goals(database, until, actor="x")),
        )
        if replayed == "replayed":
            assert run(database, goal_id, "a").goal_ended
            database.call("DELETE FROM goals", {})
        else:
            assert (replayed, goals.get(database, goal_id), goals.stages_of(database, goal_id)) == ("missing", None, [])
    database.close()


def test_results_and_malformed_messages_go_by_their_age_and_number(database):
    for name in ("old", "new"):
        results.put(database, name, "SUCCESS", {})
    database.call("UPDATE task_results SET created_at = now() - interval '40 days' WHERE task_id = 'old'", {})
    assert rows(database, "results") == 1
    assert results.get(database, "new") is not None

    kept = [malformed.put(database, "q", "why", b"x", {}, None) for _ in range(4)]
    for message, days in zip(kept, (OLDER, OLD, 2, 1), strict=True):
        database.call(
            "UPDATE malformed SET seen_at = now() - make_interval(days => %(days)s) WHERE id = %(id)s",
            {"id": message, "days": days},
        )
    assert rows(database, "malformed") == 1
    malformed.drop(database, kept[1], actor="x", request=uuid7())
    assert rows(database, "malformed") == 1
    assert rows(database, "malformed", most=1) == 1
    assert [found.id for found in malformed.listed(database, 10)] == [kept[3]]


def test_the_audit_trail_outlives_its_goal_by_a_year(database):
    goal_id = dead(database)
    for about in (goal_id, goal_id, dead(database, 1)):
        letters.edit(database, StageKey(about, "a"), actor="x", request=uuid7(), payload="{}")
    assert rows(database, "audit") == 0
    database.call("UPDATE audit SET at = now() - interval '366 days' WHERE goal_id = %(id)s", {"id": goal_id})
    assert rows(database, "audit") == 0
    assert pruned(database, most=0)[0] == 2
    assert rows(database, "audit") == 2
    assert count(database, "audit") == 2  # the younger one, and that of the prune


def test_a_chord_stays_while_a_part_of_it_may_still_come(database):
    canvas = {"group_index": 0, "chord": {"task": "x"}}
    for group, days in (("sent", OLD), ("young", 1), ("replayable", OLD), ("waiting", OLD), ("lost", OLDER)):
        results.open_chord(database, group, {"task": "x"})
        results.add_part(database, group, "t", 0, "SUCCESS", {})
        if group in {"sent", "young", "replayable"}:
            results.mark_dispatched(database, group)
        database.call(
            "UPDATE chords SET created_at = created_at - make_interval(days => %(d)s),"
            " dispatched_at = dispatched_at - make_interval(days => %(d)s) WHERE group_id = %(g)s",
            {"d": days, "g": group},
        )
    dead(database, task_id="t1", canvas={**canvas, "group_id": "replayable"})
    submit(database, new_stage("a"), task_id="t2", canvas={**canvas, "group_id": "waiting"})
    assert rows(database, "chords") == 2
    assert {row[0] for row in database.call("SELECT group_id FROM chords", {})} == {"young", "replayable", "waiting"}
    assert {row[0] for row in database.call("SELECT group_id FROM chord_parts", {})} == {
        "young", "replayable", "waiting"
    }  # fmt: skip


def _submit_with(database, snapshot, known):
    return submit_row(
        database, new_goal(), [new_stage("a")], snapshot=snapshot, body={"s": snapshot}, known_snapshots=known
    )[0]


def _age_specs(database):
    database.call("UPDATE specs SET created_at = now() - interval '2 days'", {})


def test_snapshots_that_no_goal_runs_from_go(database):
    _submit_with(database, "used", set())
    gone = _submit_with(database, "unused", set())
    database.call("DELETE FROM goals WHERE id = %(id)s", {"id": gone})
    assert prune.count_specs(database, cutoffs(database)) == 0  # they are young
    _age_specs(database)
    assert prune.count_specs(database, cutoffs(database)) == 1
    assert sum(prune.specs(database, cutoffs(database))) == 1
    assert goals.read_snapshot(database, "used") == {"s": "used"}
    assert goals.read_snapshot(database, "unused") is None


@pytest.mark.parametrize("knows", [True, False])
def test_a_goal_never_loses_its_snapshot_to_a_prune_at_the_same_time(database_url, knows):
    database = Database(database_url, pool_size=8)
    for _ in range(12):
        gone = _submit_with(database, "s", set())
        database.call("DELETE FROM goals WHERE id = %(id)s", {"id": gone})
        _age_specs(database)
        until = cutoffs(database)
        known = {"s"} if knows else set()
        goal_id, _ = at_once(
            lambda known=known: _submit_with(database, "s", known),
            lambda until=until: list(prune.specs(database, until)),
        )
        assert goals.read_snapshot(database, "s") == {"s": "s"}
        database.call("DELETE FROM goals WHERE id = %(id)s", {"id": goal_id})
    database.close()
