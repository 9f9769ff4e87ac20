"""The same enemy on RabbitMQ: through its own protocol, and ``rabbitmqctl`` where there is one."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import amqp
from amqp.exceptions import AMQPError

from tests.chaos.broker import MALFORMED, parts_of

_EPOCH = "loomq-epoch"
_CTL_S = 20


def own_vhost(url: str) -> str | None:
    """Make a virtual host for this run and give its URL, or ``None`` if that is not for us to do."""
    parts, name = urlsplit(url), f"loomq-chaos-{uuid4().hex[:8]}"
    if (
        _ctl("add_vhost", name) is None
        or _ctl("set_permissions", "-p", name, parts.username or "guest", *[".*"] * 3) is None
    ):
        return None
    return parts._replace(path=f"/{name}").geturl()


def drop_vhost(url: str) -> None:
    """Remove a run's virtual host with all that is in it."""
    _ctl("delete_vhost", urlsplit(url).path[1:])


def _ctl(*words: str) -> str | None:
    program = shutil.which("rabbitmqctl")
    if program is None:
        return None
    done = subprocess.run([program, "-q", *words], capture_output=True, text=True, timeout=_CTL_S, check=False)
    return done.stdout if done.returncode == 0 else None


class RabbitQueues:
    """The queues of one virtual host.

    Args:
        names: Our queues; they are removed in the end.
    """

    def __init__(self, url: str, names: list[str]) -> None:
        parts = urlsplit(url)
        self._given: dict[str, Any] = {
            "host": f"{parts.hostname}:{parts.port or 5672}",
            "userid": parts.username or "guest",
            "password": parts.password or "guest",
            "virtual_host": parts.path[1:] or "/",
            "connect_timeout": 2,
        }
        self._names = names

    @contextmanager
    def _channel(self) -> Iterator[amqp.Channel]:
        with amqp.Connection(**self._given) as connection:
            yield connection.channel()

    def _count(self, channel: amqp.Channel, name: str) -> int:
        return channel.queue_declare(queue=name, passive=True).message_count

    def total(self) -> int:
        """Count all queued messages."""
        with suppress(AMQPError, OSError), self._channel() as channel:
            return sum(self._count(channel, name) for name in self._names)
        return 0

    def flush(self) -> None:
        """Purge our queues and the mark by which loomq knows the broker's data."""
        with suppress(AMQPError, OSError), self._channel() as channel:
            for name in [*self._names, _EPOCH]:
                channel.queue_purge(name)

    def double(self, rng: random.Random) -> int:
        """Take each message and send it back twice."""
        count = 0
        with suppress(AMQPError, OSError), self._channel() as channel:
            for name in self._names:
                for _ in range(self._count(channel, name)):
                    message = channel.basic_get(name)
                    if message is None:
                        break
                    for _ in range(2):
                        copy = amqp.Message(message.body, **message.properties)
                        channel.basic_publish(copy, exchange="", routing_key=name)
                    channel.basic_ack(message.delivery_tag)
                    count += 1
        return count

    def send_malformed(self, rng: random.Random) -> int:
        """Send one message of each of a few kinds."""
        chosen = rng.sample(sorted(MALFORMED), 4)
        with suppress(AMQPError, OSError), self._channel() as channel:
            for kind in chosen:
                channel.basic_publish(_message(kind), exchange="", routing_key=rng.choice(self._names))
        return len(chosen)

    def disconnect(self) -> bool:
        """Let the server close every connection to the virtual host."""
        return _ctl("close_all_connections", "--vhost", self._given["virtual_host"], "chaos") is not None

    def remove(self) -> None:
        """Remove our queues, on a virtual host that is not the run's own."""
        with suppress(AMQPError, OSError), self._channel() as channel:
            for name in [*self._names, _EPOCH, "loomq.control"]:
                channel.queue_delete(name)


def _message(kind: str) -> amqp.Message:
    if isinstance(MALFORMED[kind], str):
        return amqp.Message(MALFORMED[kind], content_type="application/json", content_encoding="utf-8")
    headers, text, content_type = parts_of(kind)
    return amqp.Message(
        text, content_type=content_type, content_encoding="utf-8", application_headers=json.loads(json.dumps(headers))
    )
