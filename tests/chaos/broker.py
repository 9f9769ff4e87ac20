"""The run's queues as an enemy sees them: count, empty, double and soil what is on them."""

from __future__ import annotations

import base64
import json
import random
from contextlib import suppress
from typing import Any, Protocol
from uuid import uuid4

import redis

_NOT_QUEUES = ("unacked", "_kombu")


class Queues(Protocol):
    """What each kind of broker lets one do."""

    def total(self) -> int:
        """Count all queued messages."""

    def flush(self) -> None:
        """Lose them all."""

    def double(self, rng: random.Random) -> int:
        """Send each a second time; gives how many there were."""

    def send_malformed(self, rng: random.Random) -> int:
        """Send a few messages that no task can be made of; gives how many."""

    def disconnect(self) -> bool:
        """Close every connection of others."""


class RedisQueues:
    """The queues of kombu's Redis transport: a list for each priority.

    Args:
        socket: Where Redis listens.
    """

    def __init__(self, socket: str, names: list[str]) -> None:
        self._client = redis.Redis(unix_socket_path=socket, socket_timeout=2)
        self._names = names

    def _lists(self) -> list[bytes]:
        return [
            key
            for key in sorted(self._client.keys("*"))
            if not key.decode().startswith(_NOT_QUEUES) and self._client.type(key) == b"list"
        ]

    def total(self) -> int:
        """Count all queued messages; none if Redis is down."""
        with suppress(redis.RedisError):
            return sum(self._client.llen(key) for key in self._lists())
        return 0

    def flush(self) -> None:
        """FLUSHALL."""
        with suppress(redis.RedisError):
            self._client.flushall()

    def double(self, rng: random.Random) -> int:
        """Push a copy of each message with a delivery tag of its own, before or behind the others."""
        count = 0
        with suppress(redis.RedisError):
            for key in self._lists():
                push = rng.choice([self._client.lpush, self._client.rpush])
                for raw in self._client.lrange(key, 0, -1):
                    with suppress(ValueError, TypeError, KeyError):  # a malformed one
                        message = json.loads(raw)
                        message["properties"]["delivery_tag"] = str(uuid4())
                        push(key, json.dumps(message))
                        count += 1
        return count

    def send_malformed(self, rng: random.Random) -> int:
        """Push one message of each of a few kinds."""
        chosen = rng.sample(sorted(MALFORMED), 4)
        count = 0
        with suppress(redis.RedisError):
            for kind in chosen:
                self._client.rpush(rng.choice(self._names), _raw(kind))
                count += 1
        return count

    def disconnect(self) -> bool:
        """Close every connection but this one."""
        try:
            return bool(self._client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
        except redis.RedisError:
            return False


_BODY = [["not-a-goal", "s0", -1], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
# kind: (headers over the good ones, the body, other properties); a string stands for all of the message
MALFORMED: dict[str, Any] = {
    "not json": "this is not JSON",
    "a number": "17",
    "bad base64": ({}, "%%%not base64%%%", {}),
    "body of the wrong shape": ({}, {"what": "is this"}, {}),
    "args of the wrong shape": ({}, [5, {}, {}], {}),
    "absurd time limit": ({"timelimit": "x"}, _BODY, {}),
    "no id": ({"id": None}, _BODY, {}),
    "no headers": (None, _BODY, {}),
    "unknown task": ({"task": "no.such.task"}, _BODY, {}),
    "a pickle": ({}, _BODY, {"content-type": "application/x-python-serialize"}),
    "bad eta": ({"eta": "tomorrow"}, _BODY, {}),
    "unknown goal": ({"loomq": {"priority": 1}}, _BODY, {}),
}


def parts_of(kind: str) -> tuple[dict[str, Any], str, str]:
    """Give the headers, the body (not yet base64) and the content type of one kind; not for the strings."""
    over, body, properties = MALFORMED[kind]
    name = str(uuid4())
    good = {"lang": "py", "task": "loomq.worker.step", "id": name, "root_id": name, "argsrepr": "", "kwargsrepr": "{}"}
    headers = {} if over is None else {key: value for key, value in {**good, **over}.items() if value is not None}
    text = body if isinstance(body, str) else json.dumps(body)
    return headers, text, properties.get("content-type", "application/json")


def _raw(kind: str) -> str:
    """Give a message as kombu keeps it in Redis."""
    if isinstance(MALFORMED[kind], str):
        return MALFORMED[kind]
    headers, text, content_type = parts_of(kind)
    return json.dumps(
        {
            "body": text if text.startswith("%") else base64.b64encode(text.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": content_type,
            "headers": headers,
            "properties": {
                "correlation_id": headers.get("id"),
                "reply_to": str(uuid4()),
                "delivery_mode": 2,
                "delivery_info": {"exchange": "loomq", "routing_key": "step.local"},
                "priority": 6,
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
            },
        }
    )
