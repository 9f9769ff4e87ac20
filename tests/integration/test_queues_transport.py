"""Messages that a node has received and not run yet: which of them Redis keeps, and which are put back."""

from __future__ import annotations

from contextlib import contextmanager
from uuid import uuid4

import pytest
from kombu import Consumer

from loomq.services.submit import submit_task

QUEUE = "echo.local"


@pytest.fixture
def shop(project):
    project.worker("echo")
    return project


@pytest.fixture
def app(shop, loom):
    if not loom.app.is_redis:
        pytest.skip("RabbitMQ keeps what is not acknowledged by itself")
    return loom.app


def of_ours(app, loom):
    submit_task("echo", {}, loom=loom)


def of_others(app, loom):
    app.send_task("their.task", args=[1], queue=QUEUE, task_id=str(uuid4()))


@contextmanager
def received(app):
    """Take one message as a node does; gives it while the connection lasts."""
    found = []
    with app.connection_for_read() as connection, connection.channel() as channel:
        queue = app.amqp.queues[QUEUE]
        with Consumer(channel, [queue], callbacks=[lambda _body, message: found.append(message)], accept=["json"]):
            connection.drain_events(timeout=5)
            (message,) = found
            yield message


def waiting(app):
    return sum(app.broker.lengths([QUEUE])[QUEUE].values())


def written_down(app):
    return app.broker.run(lambda producer: producer.channel.client.hlen("unacked"))


@pytest.mark.parametrize(("send", "kept"), [(of_ours, 0), (of_others, 1)])
def test_only_what_no_row_stands_for_is_written_down_until_it_runs(app, loom, send, kept):
    send(app, loom)
    with received(app) as message:
        assert (waiting(app), written_down(app)) == (0, kept)
        message.ack()
        assert written_down(app) == 0
    assert (waiting(app), written_down(app)) == (0, 0)


@pytest.mark.parametrize("send", [of_ours, of_others])
def test_what_a_node_has_and_does_not_run_is_put_back_when_it_leaves(app, loom, send):
    send(app, loom)
    with received(app) as message:
        assert waiting(app) == 0
        first = message.headers["id"]
    assert (waiting(app), written_down(app)) == (1, 0)
    with received(app) as message:
        assert message.headers["id"] == first
        assert message.delivery_info["redelivered"]
        message.ack()


@pytest.mark.parametrize("send", [of_ours, of_others])
@pytest.mark.parametrize("requeue", [True, False])
def test_what_a_node_refuses_is_put_back_if_it_says_so(app, loom, send, requeue):
    send(app, loom)
    with received(app) as message:
        message.reject(requeue=requeue)
        assert (waiting(app), written_down(app)) == (int(requeue), 0)
    assert (waiting(app), written_down(app)) == (int(requeue), 0)
