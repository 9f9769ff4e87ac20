"""Celery's own results, and chords that are full exactly once."""

import threading

import psycopg
import pytest
from rows import at_once, claim, complete, heard, new_stage, submit

from loomq.store import goals, results, stages
from loomq.store.engine import Database
from loomq.store.stages import Part
from loomq.testing import wait_until

BODY = {"task": "x", "args": [1]}


def _part(database, number, group="g", state="SUCCESS"):
    return results.add_part(database, group, f"t{number}", number, state, {"n": number})


def test_a_result_is_stored_replaced_and_forgotten(database):
    assert results.get(database, "t") is None
    results.put(database, "t", "FAILURE", {"n": 1})
    results.put(database, "t", "SUCCESS", {"n": 2})
    assert results.get(database, "t") == {"n": 2}
    results.drop(database, "t")
    assert results.get(database, "t") is None


def test_a_first_success_is_never_overwritten(database):
    results.put(database, "t", "SUCCESS", {"n": 1})
    results.put(database, "t", "FAILURE", {"n": 2})
    results.put(database, "t", "SUCCESS", {"n": 3})
    assert results.get(database, "t") == {"n": 1}


def test_a_result_wakes_those_who_wait(database):
    with database.listen("loomq_ended") as listener:
        results.put(database, "task-1", "SUCCESS", {})
        assert heard(listener, last="task-1") == ["- task-1"]


def test_a_chord_is_full_with_the_last_of_its_parts_in_the_headers_order(database):
    results.open_chord(database, "g", BODY)
    assert not results.size_chord(database, "g", 3)
    assert [_part(database, number) for number in (2, 0, 1)] == [False, False, True]
    assert results.chord_parts(database, "g") == [(f"t{n}", "SUCCESS", {"n": n}) for n in range(3)]
    assert results.full_chords(database, 0) == [("g", BODY)]


def test_parts_may_come_before_the_chords_size(database):
    results.open_chord(database, "g", BODY)
    assert [_part(database, number) for number in range(3)] == [False, False, False]
    assert results.full_chords(database, 0) == []
    assert results.size_chord(database, "g", 3)


def test_parts_may_come_before_the_chord_itself(database):
    assert not _part(database, 0)
    results.open_chord(database, "g", BODY)
    assert not results.size_chord(database, "g", 2)
    assert _part(database, 1)
    assert results.full_chords(database, 0) == [("g", BODY)]


def test_a_part_that_comes_twice_counts_once(database):
    results.size_chord(database, "g", 2)
    assert [_part(database, 0), _part(database, 0)] == [False, False]
    assert results.full_chords(database, 0) == []
    assert [_part(database, 1), _part(database, 1)] == [True, False]
    assert len(results.chord_parts(database, "g")) == 2


def test_a_chord_says_its_size_its_body_and_whether_that_was_sent(database):
    assert results.read_chord(database, "g") == (None, None, False)
    results.open_chord(database, "g", BODY)
    assert results.read_chord(database, "g") == (None, BODY, False)
    results.size_chord(database, "g", 2)
    results.mark_dispatched(database, "g")
    assert results.read_chord(database, "g") == (2, BODY, True)


def test_chords_do_not_mix(database):
    for group in ("g", "h"):
        results.size_chord(database, group, 2)
    assert [_part(database, 0, "g"), _part(database, 0, "h"), _part(database, 1, "g")] == [False, False, True]


@pytest.mark.parametrize("width", [2, 10])
def test_parts_that_come_at_once_fill_the_chord_exactly_once(database_url, width):
    database = Database(database_url, pool_size=10)
    for number in range(8):
        group = f"g{number}"
        results.size_chord(database, group, width)
        answers = at_once(*[lambda n=n, group=group: _part(database, n, group) for n in range(width)])
        assert sum(answers) == 1
    database.close()


def test_a_size_that_comes_with_the_parts_fills_the_chord_exactly_once(database_url):
    database = Database(database_url, pool_size=10)
    for number in range(30):
        group = f"g{number}"
        results.open_chord(database, group, BODY)
        answers = at_once(
            lambda group=group: results.size_chord(database, group, 3),
            *[lambda n=n, group=group: _part(database, n, group) for n in range(3)],
        )
        assert sum(answers) == 1
    database.close()


def test_the_size_sees_a_part_that_was_being_counted(database):
    plain = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    results.open_chord(database, "g", BODY)
    found = []
    with psycopg.connect(plain) as counting:
        (full,) = counting.execute("SELECT loomq_chord_part('g', 't0', 0, 'SUCCESS', '1')").fetchone()
        thread = threading.Thread(target=lambda: found.append(results.size_chord(database, "g", 1)))
        thread.start()
        waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        wait_until(lambda: database.call(waits, {}), "the size to wait for the part")
        counting.commit()
        thread.join(10)
    assert [full, *found] == [False, True]


def _call(database, number, group="g"):
    canvas = {"group_id": group, "group_index": number, "chord": BODY}
    goal_id = submit(database, new_stage("a", max_retries=0), kind="worker", task_id=f"t{number}", canvas=canvas)
    return claim(database, goal_id, "a")


def test_a_workers_part_is_counted_with_its_result(database):
    results.size_chord(database, "g", 2)
    first, second = _call(database, 0), _call(database, 1)
    assert not complete(database, second, '{"n": 1}', part=Part("g", 1)).chord_full
    assert complete(database, first, '{"n": 0}', part=Part("g", 0)).chord_full
    assert complete(database, first, '{"n": 0}', part=Part("g", 0)).verdict == "repeated"
    assert results.chord_parts(database, "g") == [("t0", "SUCCESS", {"n": 0}), ("t1", "SUCCESS", {"n": 1})]


def test_a_fenced_completion_is_no_part(database):
    claimed = _call(database, 0)
    stages.release(database, claimed.key, claimed.token, "shutdown")
    assert complete(database, claimed, part=Part("g", 0)).verdict == "fenced"
    assert results.chord_parts(database, "g") == []


def test_a_worker_that_failed_for_good_is_a_failed_part(database):
    results.open_chord(database, "g", BODY)
    results.size_chord(database, "g", 2)
    first, second = _call(database, 0), _call(database, 1)
    complete(database, first, "{}", part=Part("g", 0))
    error = {"type": "PipelineWorkerError", "message": "no"}
    stages.fail(database, second.key, second.token, error=error, retryable=False)
    assert results.chord_parts(database, "g")[1] == ("t1", "FAILURE", error)
    assert results.full_chords(database, 0) == [("g", BODY)]


def test_a_cancelled_call_is_a_failed_part(database):
    claimed = _call(database, 0)
    goals.end(database, claimed.key.goal_id, "cancelled", {"message": "enough"})
    assert results.chord_parts(database, "g") == [("t0", "FAILURE", {"message": "enough"})]


def test_only_full_old_and_unsent_chords_are_for_the_sweeper(database):
    results.open_chord(database, "full", BODY)
    results.size_chord(database, "full", 1)
    _part(database, 0, "full")
    results.open_chord(database, "half", BODY)
    results.size_chord(database, "half", 2)
    _part(database, 0, "half")
    assert results.full_chords(database, 60) == []
    assert results.full_chords(database, 0) == [("full", BODY)]
    results.mark_dispatched(database, "full")
    assert results.full_chords(database, 0) == []
