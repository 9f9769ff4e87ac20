"""What a message must look like; the kinds by name are in tests/acceptance/test_malformed.py."""

from __future__ import annotations

import base64
import json
import pickle
from copy import deepcopy

import pytest
from celery import Celery
from celery.worker.request import Request
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from kombu.utils.json import loads

from loomq.queues.guard import bound_decompression
from loomq.queues.shape import envelope_fault, message_fault, task_of
from loomq.queues.transport import wrapped

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("base64"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
GOOD = {
    "body": base64.b64encode(b"[[{}], {}, null]").decode(),
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {"task": "mine.task", "id": "an-id"},
    "properties": {
        "body_encoding": "base64",
        "delivery_tag": "a-tag",
        "delivery_info": {"exchange": "", "routing_key": "q"},
        "priority": 0,
    },
}
PATHS = [
    *[(name,) for name in GOOD],
    *[("properties", name) for name in GOOD["properties"]],
    ("properties", "delivery_info", "exchange"),
    ("properties", "delivery_info", "routing_key"),
]
HEADERS = (
    "id task timelimit eta expires retries group group_index root_id parent_id shadow stamped_headers stamps loomq"
)
app = Celery("shapes", broker="memory://", set_as_current=False)


@app.task(name="mine.task")
def task():
    """Do nothing."""


@pytest.fixture(scope="module")
def channel():
    """A channel of kombu's own, which reads envelopes as Redis' does."""
    with Connection("memory://") as connection:
        yield connection.channel()


def changed(value, path, junk):
    found = deepcopy(value)
    place = found
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = junk
    return found


@given(path=st.sampled_from(PATHS), junk=JUNK)
def test_what_passes_as_an_envelope_is_read_by_kombu(channel, path, junk):
    item = json.dumps(changed(GOOD, path, junk)).encode()
    if envelope_fault(item):
        return
    message = channel.Message(loads(item), channel=channel)
    assert {message.delivery_tag: 1}
    assert "exchange" in message.delivery_info


@given(st.binary(max_size=50) | st.text(max_size=50).map(str.encode))
def test_any_bytes_are_judged_and_come_out_wrapped_as_a_message(channel, item):
    fault = envelope_fault(item)
    assert fault
    message = channel.Message(loads(wrapped(item, fault, "q")), channel=channel)
    assert (message.body or b"") == item
    assert message.headers["loomq-malformed"] == fault
    assert envelope_fault(wrapped(item, fault, "q")) is None


@given(name=st.sampled_from(HEADERS.split()), junk=JUNK, body=st.just([[{}], {}, None]) | JUNK)
def test_what_passes_as_a_message_is_taken_by_celery(channel, name, junk, body):
    sent = {**GOOD["headers"], name: junk}
    payload = json.loads(json.dumps(body))
    if message_fault(sent, {"priority": 0}, payload):
        return
    item = {**GOOD, "headers": sent, "body": base64.b64encode(json.dumps(payload).encode()).decode()}
    message = channel.Message(item, channel=channel)
    message.accept = {"application/json"}
    request = Request(message, app=app, task=task, headers=sent, hostname="h")
    request.revoked()
    hard, soft = request.time_limits
    assert hard is None or hard >= 0
    assert soft is None or soft >= 0
    assert request._context
    assert pickle.dumps(request.request_dict)


def test_a_good_message_of_each_protocol_passes():
    first = {"task": "mine.task", "id": "an-id", "args": [1], "kwargs": {}, "retries": 0, "eta": None}
    assert envelope_fault(json.dumps(GOOD).encode()) is None
    assert message_fault(GOOD["headers"], GOOD["properties"], [[], {}, {"callbacks": None}]) is None
    assert message_fault({}, {}, first) is None
    assert message_fault({"task": "mine.task", "id": "an-id"}, {}, {"args": [1], "kwargs": {}}) is None
    fields, call = task_of({}, first)
    assert fields["id"] == "an-id"
    assert call[:2] == [[1], {}]
    assert message_fault({}, {}, {**first, "timelimit": "x"}).startswith("its timelimit must be a pair")


def test_a_compressed_body_may_grow_no_larger_than_another():
    from bz2 import compress

    from kombu.compression import decompress

    bound_decompression()
    assert decompress(compress(b"x" * 100), "bzip2") == b"x" * 100
    with pytest.raises(ValueError, match="16,777,216 bytes when decompressed"):
        decompress(compress(b"x" * 17_000_000), "bzip2")
