"""Malformed messages in Postgres, and the quarantine that brings them there."""

from __future__ import annotations

import json
import logging
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import heard

from loomq.ids import uuid7
from loomq.inline import inline_json
from loomq.queues import quarantine
from loomq.queues.quarantine import KEPT_BYTES, Quarantine, storable_properties
from loomq.store import letters, malformed, results

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes() | st.decimals(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.binary(), inner, max_size=3),
    max_leaves=10,
)


def test_a_message_is_kept_with_its_bytes_and_read_again(database):
    node = uuid7()
    first = malformed.put(database, "a.local", "no task", b"\x00\xff" * 1000, {"size": 2000, "headers": {}}, node)
    second = malformed.put(database, "b.local", "no id", b"", {}, None)

    found = malformed.get(database, first)
    assert (found.queue, found.reason, found.body, found.node) == ("a.local", "no task", b"\x00\xff" * 1000, node)
    assert found.properties == {"size": 2000, "headers": {}}
    assert [message.id for message in malformed.listed(database, 10)] == [second, first]
    assert [message.body for message in malformed.listed(database, 1, queue="a.local")] == [b"\x00\xff" * 128]
    newest = malformed.listed(database, 1)[0]
    assert [message.id for message in malformed.listed(database, 10, before=newest.seen_at)] == [first]
    assert malformed.get(database, uuid7()) is None
    assert malformed.count(database) == 2


def test_a_message_is_dropped_once_by_somebody_who_is_named(database):
    message, request = malformed.put(database, "q", "r", b"", {}, None), uuid7()
    assert malformed.drop(database, message, actor="ann", request=request)
    assert not malformed.drop(database, message, actor="bob", request=uuid7())
    assert not malformed.drop(database, uuid7(), actor="bob", request=uuid7())
    assert malformed.listed(database, 10) == []
    assert [each.id for each in malformed.listed(database, 10, dropped=True)] == [message]
    assert [(deed.actor, deed.action) for deed in letters.trail(database, message=message)] == [("ann", "drop")]


def test_the_same_messages_given_twice_are_kept_once_and_their_caller_is_told_once(database):
    failure = ("task-1", {"status": "FAILURE", "result": None})
    message = malformed.NewMalformed(uuid7(), "q", "r", b"x", {}, age_s=3600, failure=failure)
    with database.listen("loomq_ended") as listener:
        malformed.put_all(database, [message, message])
        malformed.put_all(database, [message])
        malformed.put(database, "q", "r", b"", {}, None)
        results.put(database, "last", "SUCCESS", {})
        assert heard(listener, last="last") == ["- task-1", "- last"]
    newest, oldest = malformed.listed(database, 10)
    assert newest.seen_at - oldest.seen_at > timedelta(minutes=59)
    assert results.get(database, "task-1") == failure[1]


def test_a_result_that_is_there_stays(database):
    results.put(database, "task-1", "SUCCESS", {"n": 1})
    late = malformed.NewMalformed(uuid7(), "q", "r", b"", {}, failure=("task-1", {"n": 2}))
    malformed.put_all(database, [late])
    assert results.get(database, "task-1") == {"n": 1}


@pytest.fixture
def held(database):
    """A quarantine whose Postgres does not have the table for now."""
    database.call("ALTER TABLE malformed RENAME TO elsewhere", {})
    return Quarantine(database)


def back(database):
    """Give the table back."""
    database.call("ALTER TABLE elsewhere RENAME TO malformed", {})


def test_the_first_message_is_written_at_once_and_those_after_it_together(database):
    found = Quarantine(database)
    found.keep("q", "r", b"1", {})
    assert malformed.count(database) == 1
    for number in range(quarantine._BATCH - 1):
        found.keep("q", "r", b"%d" % number, {})
    assert malformed.count(database) == 1
    found.keep("q", "r", b"the last of a batch", {})
    assert malformed.count(database) == 1 + quarantine._BATCH
    found.keep("q", "r", b"x", {})
    found.close()
    assert malformed.count(database) == 2 + quarantine._BATCH


def test_messages_wait_for_postgres_and_keep_the_time_at_which_they_came(database, held, caplog):
    held.node = uuid7()
    held.keep("q", "r", b"1", {})
    held.keep("q", "r", b"2", {})
    held.flush(at_once=True)
    assert "2 malformed messages are held" in caplog.text
    back(database)
    held.flush()
    assert malformed.count(database) == 0, "the next try is not due"
    held.flush(at_once=True)
    assert {(message.body, message.node) for message in malformed.listed(database, 10)} == {
        (b"1", held.node),
        (b"2", held.node),
    }


def test_what_is_too_much_to_hold_is_counted_and_logged(database, held, caplog, monkeypatch):
    monkeypatch.setattr(quarantine, "_MOST", 3)
    for number in range(5):
        held.keep("q", "r", b"%d" % number, {})
    assert "2 dropped so far" in caplog.text
    back(database)
    held.close()
    assert {message.body for message in malformed.listed(database, 10)} == {b"0", b"1", b"2"}
    assert "2 malformed messages were not written down" in caplog.text


def test_what_cannot_be_written_before_the_end_is_said_to_be_lost(held, caplog):
    held.keep("q", "r", b"1", {})
    held.close()
    assert "1 malformed messages were not written down" in caplog.text


def test_a_large_body_is_cut_and_says_how_large_it_was(database):
    Quarantine(database).keep("q", "r", b"x" * (KEPT_BYTES + 1), {"holds": "body"})
    (message,) = malformed.listed(database, 1)
    assert len(malformed.get(database, message.id).body) == KEPT_BYTES
    assert message.properties == {"holds": "body", "size": KEPT_BYTES + 1}


def test_one_that_postgres_cannot_take_does_not_hold_up_the_others(database, held, caplog, monkeypatch):
    monkeypatch.setattr(quarantine, "storable_text", lambda text: text)
    for queue in ("a", "b\x00", "c"):
        held.keep(queue, "r", b"", {})
    back(database)
    held.close()
    assert {message.queue for message in malformed.listed(database, 10)} == {"a", "c"}
    assert "a malformed message cannot be written down" in caplog.text


@settings(max_examples=60)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_any_properties_can_be_written_down(properties):
    text = inline_json(storable_properties(properties), what="it", limit_bytes=80_000)
    assert json.loads(text) == storable_properties(properties)


def test_postgres_takes_the_oddest_properties_and_reasons(database):
    odd = {
        "nul": "a\x00b",
        "surrogate": "\ud800",
        "nan": float("nan"),
        "bytes": b"\xff",
        "deep": json.loads("[" * 150 + "]" * 150),
        "huge": 10**4000,
        "\x00": {"\x00": 1},
    }
    Quarantine(database).keep("q\x00", "r\x00\ud800", b"", odd)
    Quarantine(database).keep("q", "r", b"", {"long": {str(n): "x" * 100 for n in range(5000)}, "small": 1})
    second, first = malformed.listed(database, 10)
    assert first.properties["surrogate"] == "?"
    assert first.properties["huge"] == 10**4000
    assert set(second.properties) == {"size", "small", "cut"}


def test_the_log_quotes_no_secret_and_nothing_that_steers_a_terminal(database, caplog):
    caplog.set_level(logging.WARNING)
    secret = "sk-ant-api03-" + "a1B2" * 10
    encoded = json.dumps({"body": "c2stYW50LWFwaTAzLWExQjJhMUIyYTFCMmExQjJhMUIyYTFCMmExQjJhMUIy"})
    found = Quarantine(database)
    found.keep("q", f"its header is str '{secret}'", f"\x1b[31m{secret}\nforged line".encode(), {})
    found.keep("q", "r", encoded.encode(), {"headers": {"argsrepr": secret}})
    assert secret not in caplog.text
    assert "c2stYW50" not in caplog.text
    assert "\x1b" not in caplog.text
    assert len(caplog.messages) == 2
    assert all("\n" not in message for message in caplog.messages)
    found.close()
    kept = malformed.listed(database, 10)
    assert len(kept) == 2
    assert all(secret not in f"{message.reason} {message.properties}" for message in kept)
