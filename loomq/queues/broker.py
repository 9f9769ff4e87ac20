"""The broker as loomq sees it: how long its queues are, whether it lost its data, and whether it answers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kombu.exceptions import OperationalError

from loomq.errors import BrokerUnavailableError
from loomq.ids import uuid7

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery import Celery
    from kombu import Connection, Producer

_EPOCH = "loomq-epoch"
_CLOSED_FOR_S = 2.0
_PATIENCE_S = 1.0

T = TypeVar("T")
Lengths = Mapping[str, Mapping[int | None, int]]


@dataclass(frozen=True, slots=True)
class Look:
    """What the broker holds.

    Args:
        mark: What the broker loses with its data; a new one if there was none.
        lengths: How many messages wait on each queue, by broker priority; under ``None`` where only the sum is known.
    """

    mark: str
    lengths: Lengths

    def is_empty(self, queue: str, priority: int) -> bool:
        """Say whether no message of that priority waits on a queue."""
        found = self.lengths[queue]
        return not found.get(priority, found.get(None, 0))


class Broker:
    """Publish to one broker and ask about it, on a connection of its own with short timeouts.

    After a failure it answers ``BrokerUnavailableError`` at once for 2 s, so that nobody queues up behind a dead
    server. A forked child makes its own connection. Safe to share between threads.

    Args:
        app: Who connects.
        is_redis: Whether the broker speaks Redis; RabbitMQ is asked otherwise.
        shown_url: The broker's URL without its password.
        url: Another server than the app's broker.
        name: What error texts call it.
        setting: Which setting names the server, for error texts.
    """

    def __init__(
        self,
        app: Celery,
        *,
        is_redis: bool,
        shown_url: str,
        url: str | None = None,
        name: str = "the broker",
        setting: str = "LOOMQ_BROKER_URL",
    ) -> None:
        self._app = app
        self._is_redis = is_redis
        self._shown_url = shown_url
        self._url = url
        self._name = name
        self._setting = setting
        self._lock = threading.RLock()
        self._in_hand = threading.local()
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._pid = 0
        self._closed_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the next call will be tried at all."""
        return time.monotonic() >= self._closed_until

    def run(self, work: Callable[[Producer], T]) -> T:
        """Do something with the producer; once more on a new connection if the old one turns out to be dead.

        Raises:
            BrokerUnavailableError: The broker does not answer.
        """
        if not self.is_open or not self._lock.acquire(timeout=_PATIENCE_S):
            raise self._closed()
        try:
            if not self.is_open:  # whoever had the lock before us met a dead server
                raise self._closed()
            try:
                was_open = self._producer is not None and self._pid == os.getpid()
                try:
                    return self._lend(work)
                except failures() as error:
                    if not was_open or _is_timeout(error):
                        raise
                    self._drop()
                    return self._lend(work)
            except failures() as error:
                self._drop()
                self._closed_until = time.monotonic() + _CLOSED_FOR_S
                raise self._unavailable(error) from error
        finally:
            self._lock.release()

    def _lend(self, work: Callable[[Producer], T]) -> T:
        before, self._in_hand.producer = self.lent, self._open()
        try:
            return work(self._in_hand.producer)
        finally:
            self._in_hand.producer = before

    @property
    def lent(self) -> Producer | None:
        """The producer, while this thread is within ``run``: what Celery's canvas sends should go through it."""
        return getattr(self._in_hand, "producer", None)

    def _open(self) -> Producer:
        if self._producer is None or self._pid != os.getpid():
            self._connection = self._app.connection_for_write(self._url)
            self._producer = self._app.amqp.Producer(self._connection)
            self._pid = os.getpid()
        return self._producer

    def _drop(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None and self._pid == os.getpid():
            connection.collect(socket_timeout=0.1)

    def _closed(self) -> BrokerUnavailableError:
        return BrokerUnavailableError(f"{self._name} at {self._shown_url} did not answer a moment ago, or is held up")

    def _unavailable(self, error: BaseException) -> BrokerUnavailableError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return BrokerUnavailableError(
            f"{self._name} at {self._shown_url} does not answer: {reason}",
            hint=f"start it, correct {self._setting}, or unset it to use the embedded one",
        )

    def close(self) -> None:
        """Drop the connection; the next use opens another."""
        with self._lock:
            self._drop()

    def ping(self) -> None:
        """Find out whether the broker answers, whatever the last call met.

        Raises:
            BrokerUnavailableError: It does not.
        """
        self._closed_until = 0.0
        self.run(lambda producer: producer.channel.client.ping() if self._is_redis else producer.channel)

    def lengths(self, queues: Sequence[str]) -> Lengths:
        """Count the messages that wait on each queue, as ``Look.lengths``; a queue that does not exist counts 0.

        Raises:
            BrokerUnavailableError: The broker does not answer.
        """
        if not queues:
            return {}
        return self.run(lambda producer: (_redis_lengths if self._is_redis else _amqp_lengths)(producer, queues))

    def look(self, queues: Sequence[str]) -> Look:
        """Read the mark and the queues' lengths; in one round trip on Redis.

        Raises:
            BrokerUnavailableError: The broker does not answer.
        """
        return self.run(lambda producer: (_redis_look if self._is_redis else _amqp_look)(producer, queues))


def failures() -> tuple[type[BaseException], ...]:
    """Name what is raised when a broker is out of reach, or refuses."""
    from amqp.exceptions import AMQPError
    from redis.exceptions import RedisError

    return (OperationalError, RedisError, AMQPError, OSError)


def _is_timeout(error: BaseException) -> bool:
    """Whether the server took too long, which it would again; kombu wraps what its transport raises."""
    from redis.exceptions import TimeoutError as RedisTimeoutError

    return any(isinstance(each, RedisTimeoutError | TimeoutError) for each in (error, error.__cause__))


def _redis_lengths(producer: Producer, queues: Sequence[str]) -> Lengths:
    """Measure the lists that kombu keeps for a queue, one a priority step, in one round trip."""
    with producer.channel.client.pipeline(transaction=False) as pipeline:
        _ask_lengths(pipeline, producer.channel, queues)
        return _told_lengths(pipeline.execute(), producer.channel, queues)


def _ask_lengths(pipeline: Any, channel: Any, queues: Sequence[str]) -> None:
    for queue in queues:
        for step in channel.priority_steps:
            pipeline.llen(channel._q_for_pri(queue, step))  # noqa: SLF001  (kombu has no public name for it)


def _told_lengths(counts: list[int], channel: Any, queues: Sequence[str]) -> Lengths:
    steps = channel.priority_steps
    return {
        queue: dict(zip(steps, counts[index * len(steps) : (index + 1) * len(steps)], strict=True))
        for index, queue in enumerate(queues)
    }


def _redis_look(producer: Producer, queues: Sequence[str]) -> Look:
    channel = producer.channel
    with channel.client.pipeline(transaction=True) as pipeline:  # or the mark could be lost between the two
        pipeline.set(_EPOCH, str(uuid7()), nx=True)
        pipeline.get(_EPOCH)
        _ask_lengths(pipeline, channel, queues)
        _, found, *counts = pipeline.execute()
    mark = found.decode() if isinstance(found, bytes) else str(found)
    return Look(mark, _told_lengths(counts, channel, queues))


def _amqp_length(producer: Producer, queue: str) -> int:
    from amqp.exceptions import NotFound

    try:
        # A channel of its own: asking for a queue that is not there closes the channel.
        with producer.connection.channel() as channel:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)
    except NotFound:
        return 0


def _amqp_lengths(producer: Producer, queues: Sequence[str]) -> Lengths:
    return {queue: {None: _amqp_length(producer, queue)} for queue in queues}


def _amqp_look(producer: Producer, queues: Sequence[str]) -> Look:
    return Look(_amqp_mark(producer), _amqp_lengths(producer, queues))


def _amqp_mark(producer: Producer) -> str:
    """RabbitMQ has no keys: a queue holds the mark as its one message, which is put back after each look."""
    with producer.connection.SimpleQueue(_EPOCH) as marker:
        try:
            message = marker.get(block=False)
        except marker.Empty:
            fresh = str(uuid7())
            marker.put(fresh)
            return fresh
        message.requeue()
        return str(message.payload)
