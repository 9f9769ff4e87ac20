"""Messages that no task can be made of, in a live queue: each is kept, none stops the node or sends it into a loop."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
import zlib
from uuid import uuid4

import amqp
import psutil
import pytest
from celery import Celery
from celery.exceptions import NotRegistered

from loomq.messages import TaskStatus
from loomq.queues.names import StageMessage
from loomq.services.submit import submit_task
from loomq.store import malformed
from loomq.testing import wait_until

NODE = ("-c", "2")
QUEUE = "echo.local"
GOAL = str(uuid4())
BODY = b'[[{"n": 1}], {}, null]'


def stock(project):
    """Write the one worker of this module."""
    project.worker("echo")


class Bomb:
    """An object whose unpickling opens a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def envelope(body="W10=", **over):
    """A message as kombu writes it to a Redis list; ``None`` leaves a part of the properties out."""
    properties = {
        "body_encoding": "base64",
        "delivery_tag": str(uuid4()),
        "delivery_info": {"exchange": "loomq", "routing_key": QUEUE},
        **over.pop("properties", {}),
    }
    found = {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "loomq.worker.echo", "id": str(uuid4())},
        "properties": {name: value for name, value in properties.items() if value is not None},
        **over,
    }
    return json.dumps({name: value for name, value in found.items() if value is not None}).encode()


def items():
    """What a Redis list may hold instead of a message, with a part of the reason for each."""
    return {
        "is not JSON: Expecting value": b"\x00not { JSON",
        "codec can't decode byte 0xff": b"\xff" + envelope(),
        "must be an object, not int 7": b"7",
        "must be an object, not null": b"null",
        "must be an object, not a list of 2": b"[1, 2]",
        "is nested too deeply": b"[" * 100_000 + b"]" * 100_000,
        "nested more than 200": envelope(x=json.loads("[" * 400 + "]" * 400)),
        "codec can't decode byte 0x80": b"\x80\x07\xfe\xff" * 250_000,
        "at most 16,777,216 are read": b'"' + b"x" * 17_000_000 + b'"',
        "body of the envelope is missing": envelope(body=None),
        "the body of the envelope must be a text, not int 7": envelope(body=7),
        "the properties of the envelope is missing": b'{"body": "W10=", "headers": {}}',
        "delivery_info of the envelope is missing": envelope(properties={"delivery_info": None}),
        "the exchange in the envelope's delivery_info is missing": envelope(
            properties={"delivery_info": {"routing_key": QUEUE}}
        ),
        "delivery_tag of the envelope is missing": envelope(properties={"delivery_tag": None}),
        "delivery_tag of the envelope must be a text, not an object of 1": envelope(
            properties={"delivery_tag": {"a": 1}}
        ),
        "headers of the envelope must be an object, not a list of 1": envelope(headers=["task"]),
        "is not base64": envelope(body="abc"),
        "must be base64 or utf-8, not str 'rot13'": envelope(properties={"body_encoding": "rot13"}),
        "badly formed hexadecimal UUID": envelope(x={"__type__": "uuid", "__value__": {"hex": "?"}}),
    }


def bodies(bomb):
    """Bodies with their content types that make no call, with a part of the reason for each."""
    pickled = pickle.dumps(((bomb,), {}, {}))
    return {
        "its body must be [args, kwargs, embed], not a list of 1": (b"[1]", {}),
        "its body must be [args, kwargs, embed], not int 5": (b"5", {}),
        "'utf-8' codec can't decode": (b'[["\xff"], {}, null]', {}),
        "its args must be a list, not str 'abc'": (b'["abc", {}, null]', {}),
        "its kwargs must be an object, not a list of 0": (b"[[], [], null]", {}),
        "third part of its body must be an object, not int 3": (b"[[], {}, 3]", {}),
        "its callbacks must be a list of signatures, not a list of 1": (b'[[], {}, {"callbacks": ["x"]}]', {}),
        "its chain must be a list of signatures": (b'[[], {}, {"chain": [{"task": "x"}]}]', {}),
        "its chord must be a signature, not int 5": (b'[[], {}, {"chord": 5}]', {}),
        "maximum recursion depth": (b"[" * 100_000 + b"]" * 100_000, {}),
        "nested more than 200 levels": (b"[[" + b"[" * 300 + b"]" * 300 + b"], {}, null]", {}),
        "content of type pickle": (
            pickled,
            {"content_type": "application/x-python-serialize", "content_encoding": "binary"},
        ),
        "content of type yaml": (b"[[], {}, null]", {"content_type": "application/x-yaml"}),
        "content of type application/x-none": (BODY, {"content_type": "application/x-none"}),
        "unknown encoding: klingon": (BODY, {"content_type": "application/data", "content_encoding": "klingon"}),
        "its body must be [args, kwargs, embed], not bytes": (
            BODY,
            {"content_type": "application/data", "content_encoding": "binary"},
        ),
        "incorrect header check": (b"\xff\x00 no gzip", {"headers": {"compression": "gzip"}}),
        "its body cannot be read: 'zoo'": (BODY, {"headers": {"compression": "zoo"}}),
        "more than 16,777,216 bytes when": (
            zlib.compress(b"[" + b" " * 20_000_000 + b"]"),
            {"headers": {"compression": "gzip"}},
        ),
    }


def headers():
    """Headers that make no task, with a part of the reason for each; ``None`` leaves one out."""
    stage = {"loomq": {"priority": 1}}
    return {
        "its headers name no task": {"task": None},
        "its id is missing": {"id": None},
        "printable characters, not int 5": {"id": 5},
        "printable characters, not str '\\x00'": {"id": "\x00"},
        "printable characters, not a list of 1": {"task": ["loomq.worker.echo"]},
        "a pair of limits in seconds, not str 'x'": {"timelimit": "x"},
        "a pair of limits in seconds, not a list of 2": {"timelimit": ["1", None]},
        "eta must be a time in ISO 8601, not str 'soon'": {"eta": "soon"},
        "a time in ISO 8601, not str '9999-12-31T23:59:59'": {"eta": "9999-12-31T23:59:59"},
        "expires must be a time in ISO 8601, not str 'never'": {"expires": "never"},
        "a time in ISO 8601, not bool False": {"expires": False},
        "retries must be a number, not str 'x'": {"retries": "x"},
        "its header get has the name of something else": {"get": {}},
        "stamped_headers must be a list of texts, not int 5": {"stamped_headers": 5},
        'no worker is called "ecko"': {"task": "loomq.worker.ecko"},
        'no task is called "shop.mail"': {"task": "shop.mail"},
        "is for loomq's workers": {"task": "celery.backend_cleanup", **stage},
        "must be what loomq writes there, not str 'x'": {"loomq": "x"},
        "the priority in its header": {"loomq": {"priority": "high"}},
        "carries goal, stage and item, not [{'n': 1}]": stage,
    }


def stages():
    """Arguments of a stage's message that name no stage, with a part of the reason for each."""
    return {
        "not the goal 'nope'": ["nope", "echo", -1],
        "not the goal 7": [7, "echo", -1],
        "not the stage 5": [GOAL, 5, -1],
        "not the item '0'": [GOAL, "echo", "0"],
        "not the item 3000000000": [GOAL, "echo", 3_000_000_000],
    }


def publish(producer, body=BODY, *, headers=None, queue=QUEUE, **options):
    """Send a message as Celery would, but for what is changed."""
    given = {"task": queue and f"loomq.worker.{queue.partition('.')[0]}", "id": str(uuid4()), **(headers or {})}
    producer.publish(
        body,
        routing_key=queue,
        headers={name: value for name, value in given.items() if value is not None},
        retry=False,
        **{"content_type": "application/json", "content_encoding": "utf-8", **options},
    )


def publish_all(producer, bomb, queue=QUEUE):
    """Send one of each kind that is told from headers and body; gives the reasons, which say the same everywhere."""
    worker = f"loomq.worker.{queue.partition('.')[0]}"
    for body, options in bodies(bomb).values():
        publish(producer, body, queue=queue, **options)
    for changed in headers().values():
        publish(producer, headers={"task": worker, **changed}, queue=queue)
    for args in stages().values():
        publish(producer, json.dumps([args, {}, None]).encode(), headers={"loomq": {"priority": 1}}, queue=queue)
    return [*bodies(bomb), *headers(), *stages()]


def kept(loom, number):
    """Wait until so many messages are kept, and give them."""
    wait_until(lambda: malformed.count(loom.database) >= number, f"{number} kept messages")
    return malformed.listed(loom.database, 10_000)


def forget(loom):
    """Empty the table between the tests of one node."""
    loom.database.call("DELETE FROM malformed", {})


def assert_unharmed(node):
    """Check that a node has neither ended nor lost its broker."""
    assert node.process.poll() is None
    log = node.text()
    assert log.count(" ready.") == 1
    for trouble in ("Connection to broker lost", "Unrecoverable", "broke the consumer", "Traceback"):
        assert trouble not in log


def test_one_of_each_kind_is_kept_with_its_reason_and_the_node_goes_on(shop, tmp_path):
    bomb = Bomb(tmp_path / "opened")
    expected = list(items())
    shop.loom.app.broker.run(lambda producer: producer.channel.client.lpush(QUEUE, *items().values()))
    expected += shop.loom.app.broker.run(lambda producer: publish_all(producer, bomb))
    shop.loom.app.broker.run(lambda producer: publish(producer, priority="urgent"))
    expected.append("its priority must be a number from 0 to 255, not str 'urgent'")

    found = kept(shop.loom, len(expected))

    reasons = [message.reason for message in found]
    assert [part for part in expected if not any(part in reason for reason in reasons)] == []
    assert len(found) == len(expected)
    assert {message.queue for message in found} == {QUEUE}
    assert len({message.node for message in found}) == 1
    assert 'no worker is called "ecko"; did you mean "echo"?' in reasons
    assert not bomb.file.exists()
    assert submit_task("echo", {"n": 1}, loom=shop.loom).result(timeout=30) == {"got": {"n": 1}}
    assert_unharmed(shop.node)
    assert psutil.Process(shop.node.pid).num_threads() == 1, "the parent forks, and a thread would not come along"
    forget(shop.loom)


def test_160_malformed_messages_among_good_ones_cost_them_less_than_two_seconds(shop, tmp_path):
    bomb = Bomb(tmp_path / "opened")
    lists = [
        "is not JSON: Expecting value",
        "must be an object, not int 7",
        "is not base64",
        "the properties of the envelope is missing",
        "is nested too deeply",
    ]
    raw = [next(item for part, item in items().items() if wanted in part) for wanted in lists]
    shaped = {
        "body": [bodies(bomb)[part] for part in list(bodies(bomb))[:6]],
        "headers": [headers()[part] for part in list(headers())[1:6]],
    }
    assert len(raw) + sum(map(len, shaped.values())) == 16

    def send(producer):
        producer.channel.client.lpush(QUEUE, *raw)
        for body, options in shaped["body"]:
            publish(producer, body, **options)
        for changed in shaped["headers"]:
            publish(producer, headers=changed)

    def seconds(work):
        began = time.monotonic()
        handles = []
        for number in range(10):
            shop.loom.app.broker.run(work)
            handles.append(submit_task("echo", {"n": number}, loom=shop.loom))
        assert [handle.result(timeout=30)["got"]["n"] for handle in handles] == list(range(10))
        return time.monotonic() - began

    undisturbed = seconds(lambda _: None)
    took = seconds(send)

    assert len(kept(shop.loom, 160)) == 160
    assert took - undisturbed < 2
    assert_unharmed(shop.node)
    forget(shop.loom)


def test_whoever_waits_for_a_call_that_cannot_be_made_is_told(shop):
    outside = Celery("outside", broker=shop.project.settings_given["broker_url"])
    outside.conf.broker_transport_options = {"queue_order_strategy": "priority", "priority_steps": [0, 3, 6, 9]}
    unknown = outside.send_task("loomq.worker.nope", args=[{}], queue=QUEUE)
    late = outside.send_task("loomq.worker.echo", args=[{}], queue=QUEUE, headers={"eta": "soon"})
    outside.close()

    with pytest.raises(Exception, match="nope") as caught:
        shop.loom.app.AsyncResult(unknown.id).get(timeout=30)
    assert type(caught.value).__name__ == NotRegistered.__name__
    with pytest.raises(Exception, match="eta must be a time in ISO 8601, not str 'soon'"):
        shop.loom.app.AsyncResult(late.id).get(timeout=30)
    assert len(kept(shop.loom, 2)) == 2
    forget(shop.loom)


def test_a_stages_message_for_a_worker_that_the_node_does_not_know_goes_back(shop):
    shop.project.worker("newer")
    ahead = shop.project.loom()
    handle = submit_task("newer", {}, loom=ahead)
    (stage,) = handle.stages()
    message = StageMessage(handle.goal_id, stage.name)

    def send(producer):
        publish(
            producer,
            json.dumps([message.args, {}, None]).encode(),
            headers={"task": "loomq.worker.newer", "id": message.id, "loomq": {"priority": 1}},
        )

    ahead.app.broker.run(send)
    wait_until(lambda: f"{message.id} is for a worker that this node does not know" in shop.node.text(), "its return")
    assert malformed.count(shop.loom.database) == 0
    assert handle.status() is TaskStatus.PENDING
    ahead.close()


@pytest.fixture
def rabbit(project):
    """A project whose broker is RabbitMQ, with a queue of its own."""
    url = os.environ.get("LOOMQ_TEST_AMQP_URL")
    if url is None:
        pytest.skip("LOOMQ_TEST_AMQP_URL names no RabbitMQ")
    worker = f"echo_{uuid4().hex[:8]}"
    project.worker(worker)
    project.settings_given["broker_url"] = url
    loom = project.loom()
    yield loom, worker
    loom.app.broker.run(lambda producer: producer.channel.queue_delete(f"{worker}.local"))
    loom.close()


def test_on_rabbitmq_each_is_kept_and_none_comes_again(rabbit, start_node, tmp_path):
    loom, worker = rabbit
    queue, bomb = f"{worker}.local", Bomb(tmp_path / "opened")
    node = start_node()
    expected = loom.app.broker.run(lambda producer: publish_all(producer, bomb, queue))
    expected += publish_unreadable(loom, queue)

    found = kept(loom, len(expected))

    reasons = [message.reason for message in found]
    assert [part for part in expected if not any(part in reason for reason in reasons)] == []
    assert len(found) == len(expected)
    assert {message.queue for message in found} == {queue}
    assert not bomb.file.exists()
    assert submit_task(worker, {"n": 1}, loom=loom).result(timeout=30) == {"got": {"n": 1}}
    assert malformed.count(loom.database) == len(expected)
    assert_unharmed(node)


def publish_unreadable(loom, queue):
    """Send messages whose AMQP properties py-amqp cannot parse, as other clients might."""
    nested = b""
    for _ in range(3000):
        nested = b"A" + (len(nested)).to_bytes(4, "big") + nested
    tables = {"OSError: ": b"\x01a" + b"T" + b"\x7f" * 8, "RecursionError: ": b"\x01a" + nested}

    def send(producer):
        for table in tables.values():
            message = Unreadable(BODY)
            message.table = table
            producer.channel.basic_publish(message, "", queue)

    loom.app.broker.run(send)
    return [f"its AMQP properties cannot be read: {part}" for part in tables]


class Unreadable(amqp.Message):
    """A message whose headers are given as bytes."""

    table = b""

    def _serialize_properties(self):
        return b"\x20\x00" + len(self.table).to_bytes(4, "big") + self.table


def test_a_node_that_stops_writes_down_what_it_still_holds(shop):
    node, database = shop.node, shop.loom.database  # the last test of this module: it ends the node
    database.call("ALTER TABLE malformed RENAME TO elsewhere", {})
    shop.loom.app.broker.run(lambda producer: producer.channel.client.lpush(QUEUE, *map(str, range(20))))
    wait_until(lambda: "must be an object, not int 19" in node.text(), "the messages to be held")
    database.call("ALTER TABLE elsewhere RENAME TO malformed", {})

    node.process.send_signal(signal.SIGTERM)
    node.process.wait(30)

    assert malformed.count(database) == 20
    assert node.process.returncode == 0
