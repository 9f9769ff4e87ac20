"""What the consumer does with messages that get past the checks, and the transports with those that do not reach it."""

from __future__ import annotations

import base64
import json

import pytest
from celery import signals
from kombu import Connection
from kombu.exceptions import DecodeError
from kombu.transport import pyamqp
from kombu.transport import redis as redis_transport

from loomq.queues.consumer import LoomConsumer
from loomq.queues.transport import GuardedConnection, guarded
from loomq.store import malformed

ENVELOPE = {
    "body": base64.b64encode(b"[[], {}, null]").decode(),
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {"task": "mine.task", "id": "an-id"},
    "properties": {
        "body_encoding": "base64",
        "delivery_tag": "a-tag",
        "delivery_info": {"exchange": "", "routing_key": "q"},
    },
}


@pytest.fixture
def message():
    """A good message, from kombu's memory transport."""
    with Connection("memory://") as connection:
        channel = connection.channel()
        found = channel.Message(json.loads(json.dumps(ENVELOPE)), channel=channel)
        found.accept = {"application/json"}
        yield found


@pytest.fixture
def consumer(loom):
    """A consumer that is connected to nothing."""
    found = object.__new__(LoomConsumer)
    found.app, found.quarantine = loom.app, loom.app.quarantine
    found.strategies, found.on_task_message, found.connection_errors = {}, set(), (OSError,)
    found._maximum_prefetch_restored = True
    return found


def raising(error):
    def strategy(*_):
        raise error

    return strategy


def test_an_error_that_nobody_foresaw_costs_one_message_and_not_the_node(consumer, message, database, caplog):
    consumer.strategies["mine.task"] = raising(ZeroDivisionError("by zero"))
    consumer.create_task_handler()(message)
    (found,) = malformed.listed(database, 10)
    assert found.reason == "Celery cannot handle it: ZeroDivisionError: by zero"
    assert found.body == b"[[], {}, null]"
    assert found.properties["headers"] == {"task": "mine.task", "id": "an-id"}
    assert (found.properties["holds"], found.properties["content_type"]) == ("body", "application/json")
    assert found.queue == "q"
    assert message.acknowledged
    assert "ZeroDivisionError" in caplog.text


def test_an_error_of_the_broker_is_celerys_to_deal_with(consumer, message, database):
    consumer.strategies["mine.task"] = raising(ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        consumer.create_task_handler()(message)
    assert malformed.count(database) == 0
    assert not message.acknowledged


def test_what_celery_itself_refuses_is_kept_and_its_signal_sent(consumer, message, database):
    heard = []

    def listener(message, **_):
        heard.append(message)

    signals.task_rejected.connect(listener)
    consumer.on_decode_error(message, DecodeError("torn"))
    consumer.on_invalid_task(None, message, ValueError("odd"))
    consumer.on_unknown_message(None, message)
    consumer.quarantine.close()
    assert {found.reason for found in malformed.listed(database, 10)} == {
        "its body cannot be read: torn",
        "Celery refuses it: odd",
        "it is no task message of Celery's",
    }
    assert heard == [message] * 3


@pytest.mark.parametrize("transport", [redis_transport.Transport, redis_transport.SentinelTransport])
def test_a_message_that_no_redis_channel_can_take_is_handed_over_as_malformed(transport):
    channel = object.__new__(guarded(transport).Channel)
    seen = []

    def original(raw):
        if "loomq-malformed" not in raw["headers"]:
            raise RecursionError("too deep")
        seen.append((channel.delivering, raw["headers"]["loomq-malformed"]))

    channel.deliver("q", False, original, {"headers": {}})
    assert seen == [("q", "kombu cannot handle it: RecursionError('too deep')")]
    with pytest.raises(ConnectionError):
        channel.deliver("q", False, raising(ConnectionError()), {})


@pytest.mark.parametrize(
    "channel", [guarded(redis_transport.Transport).Channel, guarded(pyamqp.Transport).Connection.Channel]
)
def test_a_broadcast_that_makes_no_sense_is_ignored(channel, caplog):
    made = object.__new__(channel)
    assert made.deliver("celeryev", True, raising(KeyError("hostname")), {}) is None
    assert "makes no sense and is ignored" in caplog.text
    with pytest.raises(ConnectionError):
        made.deliver("celeryev", True, raising(ConnectionError()), {})


def test_a_connection_and_its_copies_are_guarded_whatever_the_transport():
    for url, name in (("redis://", "Redis"), ("amqp://", "AMQP"), ("memory://", "Memory")):
        connection = GuardedConnection(url)
        for each in (connection, connection.clone()):
            assert each.get_transport_cls() is guarded(Connection(url).get_transport_cls()), name
    assert guarded(Connection("memory://").get_transport_cls()) is Connection("memory://").get_transport_cls()
