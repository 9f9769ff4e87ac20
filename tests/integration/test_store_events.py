"""A goal's events: one order, numbers without gaps, and nothing that appears behind what was read."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace

import psycopg
import pytest
import rows
from rows import at_once, claim, complete, new_stage, submit

from loomq.errors import DatabaseUnavailableError, GoalNotFoundError, WaitTimeoutError
from loomq.ids import uuid7
from loomq.services import events
from loomq.store import goals, prune, stages
from loomq.testing import wait_until


@pytest.fixture
def loom(database):
    """As much of a Loom as reading needs."""
    return SimpleNamespace(database=database, settings=SimpleNamespace(listen_url=None))


@contextmanager
def _open_transaction(database):
    """A transaction of somebody else, committed at the end of the block."""
    plain = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        yield connection


def _tell(where, goal_id, kind, stage=None):
    where.execute("SELECT loomq_tell(%s, %s, %s, -1, NULL)", [goal_id, kind, stage])


def _tell_now(database, goal_id, kind):
    database.call("SELECT loomq_tell(%(goal)s, %(kind)s, NULL, NULL, NULL)", {"goal": goal_id, "kind": kind})


def _numbered(found):
    return [(event.seq, event.kind) for event in found]


def test_a_reader_that_comes_late_gets_everything_and_then_ends(database, loom):
    goal_id = submit(database, new_stage("a", children=("b",)), new_stage("b", state="waiting", waits_for=1))
    rows.run(database, goal_id, "a", "b")
    expected = [
        (1, "goal_submitted", None),
        (2, "stage_started", "a"),
        (3, "stage_completed", "a"),
        (4, "stage_started", "b"),
        (5, "stage_completed", "b"),
        (6, "goal_completed", None),
    ]
    assert [(event.seq, event.kind, event.stage) for event in events.followed(loom, goal_id)] == expected
    assert _numbered(events.followed(loom, goal_id, after=4)) == [(5, "stage_completed"), (6, "goal_completed")]
    assert list(events.followed(loom, goal_id, after=6)) == []
    assert list(events.followed(loom, goal_id, after=99)) == []
    with pytest.raises(GoalNotFoundError):
        next(events.followed(loom, uuid7()))


def test_what_commits_late_is_never_read_out_of_order_nor_lost(database, loom):
    goal_id = submit(database, new_stage("a"))
    with _open_transaction(database) as slow:
        _tell(slow, goal_id, "slow")
        _tell_now(database, goal_id, "fast")
        reader = events.EventReader(loom, goal_id)
        assert _numbered(reader.step(10)) == [(1, "goal_submitted")]
        assert reader.step(0) == []
        goals.end(database, goal_id, "cancelled", {})
        assert reader.step(0) == []
        assert not reader.is_over  # the end is written, and something older may still come
        slow.commit()
    kinds = ["goal_submitted", "slow", "fast", "goal_cancelled"]
    assert _numbered(reader.step(10)) == list(enumerate(kinds[1:], start=2))
    assert reader.is_over
    assert _numbered(events.followed(loom, goal_id)) == list(enumerate(kinds, start=1))


def test_events_of_an_hour_ago_wait_for_no_transaction(database, loom):
    goal_id = submit(database, new_stage("a"))
    with _open_transaction(database) as slow:
        _tell(slow, goal_id, "slow")
        _tell_now(database, goal_id, "fast")
        database.call("UPDATE events SET at = at - interval '2 hours'", {})
        assert _numbered(events.EventReader(loom, goal_id).step(10)) == [(1, "goal_submitted"), (2, "fast")]


def test_events_that_came_with_another_server_s_dump_stay_before_those_of_this_one(database, loom):
    goal_id = submit(database, new_stage("a"))
    _tell_now(database, goal_id, "before")
    reader = events.EventReader(loom, goal_id)
    assert [event.kind for event in _read(reader, 2)] == ["goal_submitted", "before"]
    database.call("UPDATE events SET xid = xid + 1000000", {})
    _tell_now(database, goal_id, "after")
    whole = ["goal_submitted", "before", "after"]
    assert _numbered(_read(events.EventReader(loom, goal_id), 3)) == list(enumerate(whole, start=1))
    assert _numbered(_read(events.EventReader(loom, goal_id, after=2), 1)) == [(3, "after")]
    reader._lost = DatabaseUnavailableError("it has been another server since")
    assert _numbered(_read(reader, 1)) == [(3, "after")]


def _read(reader, count):
    found = []
    wait_until(lambda: found.extend(reader.present()) or len(found) >= count, f"{count} events", timeout_s=10)
    return found


def test_two_who_follow_see_five_hundred_events_of_many_writers_in_one_order(database, loom):
    goal_id = submit(database, new_stage("a"))

    def write():
        for number in range(100):
            _tell_now(database, goal_id, f"event {number}")

    def follow():
        found = []
        for event in events.followed(loom, goal_id, timeout=20):
            found.append((event.seq, event.kind))
            if len(found) == 501:
                goals.end(database, goal_id, "cancelled", {})
        return found

    one, other, *_ = at_once(follow, follow, write, write, write, write, write)
    assert one == other
    assert [seq for seq, _ in one] == list(range(1, 503))
    assert one == _numbered(events.told(loom, goal_id))


def test_who_follows_is_woken_and_does_not_only_poll(database, loom, monkeypatch):
    monkeypatch.setattr(events, "_POLL_S", 30.0)
    goal_id = submit(database, new_stage("a"))
    reader = events.EventReader(loom, goal_id, after=1, timeout=20)
    watched = "SELECT 1 FROM goals WHERE watched_until > now()"

    def write():
        wait_until(lambda: database.call(watched, {}), "the reader")
        _tell_now(database, goal_id, "news")

    found, _ = at_once(lambda: reader.step(20), write)
    assert _numbered(found) == [(2, "news")]
    assert not database.call("SELECT 1 FROM goals WHERE watched_until > now() + interval '31 s'", {})


def test_reading_goes_on_where_it_was_when_every_connection_has_been_ended(database, loom):
    goal_id = submit(database, new_stage("a"))
    found = []
    began = threading.Event()

    def follow():
        for event in events.followed(loom, goal_id, timeout=20):
            found.append((event.seq, event.kind))
            began.set()

    def disturb():
        began.wait(10)
        for number in range(3):
            with _open_transaction(database) as killer:
                killer.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                _tell(killer, goal_id, f"news {number}")
            wait_until(lambda number=number: len(found) == number + 2, "the news")
        with _open_transaction(database) as killer:
            killer.execute("SELECT loomq_end_goal(%s, 'cancelled', '{}')", [goal_id])

    at_once(follow, disturb)
    assert found == list(enumerate(["goal_submitted", "news 0", "news 1", "news 2", "goal_cancelled"], start=1))


def test_patience_ends_if_nothing_happens_and_if_postgres_stays_away(database, loom):
    goal_id = submit(database, new_stage("a"))
    with pytest.raises(WaitTimeoutError, match=r"nothing has happened to goal .* for 0.2 s"):
        list(events.followed(loom, goal_id, timeout=0.2))
    reader = events.EventReader(loom, goal_id, timeout=1)
    assert _numbered(reader.step(1)) == [(1, "goal_submitted")]
    away = SimpleNamespace(
        database=type(database)("postgresql://nobody@127.0.0.1:1/none"), settings=SimpleNamespace(listen_url=None)
    )
    reader._loom = away
    assert reader.step(0.1) == []
    with pytest.raises(DatabaseUnavailableError):
        wait_until(lambda: reader.step(0.1), "it to give up", timeout_s=5)
    with pytest.raises(DatabaseUnavailableError):
        events.EventReader(away, goal_id).step(1)


def test_a_coroutine_follows_without_blocking_others(database, loom):
    goal_id = submit(database, new_stage("a"))

    async def follow():
        return [(event.seq, event.kind) async for event in events.afollowed(loom, goal_id, timeout=20)]

    async def both():
        reading = asyncio.create_task(follow())
        await asyncio.to_thread(goals.end, database, goal_id, "cancelled", {})
        return await reading

    assert asyncio.run(both()) == [(1, "goal_submitted"), (2, "goal_cancelled")]


def test_a_stage_that_is_handed_back_or_taken_back_is_told(database, loom):
    goal_id = submit(database, new_stage("a"))
    claimed = claim(database, goal_id, "a")
    stages.release(database, claimed.key, claimed.token, "no room")
    claim(database, goal_id, "a", lease_s=-1)
    stages.take_back(database, lease_s=15, max_deliveries=5)
    lost = claim(database, goal_id, "a")
    goals.end(database, goal_id, "cancelled", {})
    stages.fail(database, lost.key, lost.token, error={"type": "E"}, retryable=True)
    kinds = [event.kind for event in events.told(loom, goal_id)][1:]
    assert kinds == [
        "stage_started",
        "stage_released",
        "stage_started",
        "stage_taken_back",
        "stage_started",
        "goal_cancelled",
        "stage_cancelled",
    ]


def test_a_replayed_goal_tells_of_it_once_and_has_more_to_read(database, loom):
    goal_id = submit(database, new_stage("a"))
    failed = claim(database, goal_id, "a")
    stages.fail(database, failed.key, failed.token, error={"type": "E"}, retryable=False)
    before = list(events.followed(loom, goal_id))
    assert before[-1].kind == "goal_failed"
    request = uuid7()
    for _ in range(2):
        database.call(
            "SELECT * FROM loomq_replay(%(goal)s, 'a', -1, NULL, 'me', %(request)s)",
            {"goal": goal_id, "request": request},
        )
    complete(database, claim(database, goal_id, "a"))
    more = list(events.followed(loom, goal_id, after=before[-1].seq))
    assert [event.kind for event in more] == ["goal_replayed", "stage_started", "stage_completed", "goal_completed"]
    assert more[0].detail["by"] == "me"


def test_a_goal_that_an_older_node_ended_without_a_word_has_no_more_to_read(database, loom):
    goal_id = submit(database, new_stage("a"))
    database.call("UPDATE goals SET state = 'done' WHERE id = %(goal)s", {"goal": goal_id})
    assert _numbered(events.followed(loom, goal_id)) == [(1, "goal_submitted")]


def test_a_pruned_goal_takes_its_events_along_and_a_reader_is_told(database, loom):
    goal_id, other = submit(database, new_stage("a")), submit(database, new_stage("a"))
    goals.end(database, goal_id, "cancelled", {})
    now = timedelta(0)
    list(prune.goals(database, prune.cutoffs(database, goals=now, letters=now, most_letters=0), actor="me"))
    assert database.call("SELECT DISTINCT goal_id FROM events", {}) == [(other,)]
    with pytest.raises(GoalNotFoundError):
        list(events.followed(loom, goal_id, after=1))
