"""The broker's connection as our workers use it: what kombu's transports cannot read is passed on as such.

kombu 5.7 takes an item of a Redis list for JSON of its own making, and a worker process ends on anything else. Here it
comes out as a message with the header ``loomq-malformed``, which our consumer keeps.
"""

from __future__ import annotations

import base64
import json
import logging
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.transport import pyamqp, virtual
from kombu.transport import redis as redis_transport
from kombu.utils.json import loads
from redis.exceptions import DataError

from loomq.ids import uuid7
from loomq.queues.broker import failures
from loomq.queues.names import HEADER, MALFORMED
from loomq.queues.quarantine import KEPT_BYTES
from loomq.queues.shape import envelope_fault

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


def is_broker_failure(error: BaseException) -> bool:
    """Say whether an error is about the broker, not about a message; kombu counts ``KeyError`` as one, too."""
    return isinstance(error, failures()) and not isinstance(error, DataError)


def wrapped(item: bytes, fault: str, queue: str) -> bytes:
    """Put what is no envelope into one that says why."""
    envelope = {
        "body": base64.b64encode(item[:KEPT_BYTES]).decode(),
        "content-type": "application/data",
        "content-encoding": "binary",
        "headers": {MALFORMED: fault, "holds": "envelope", "size": len(item)},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": str(uuid7()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }
    return json.dumps(envelope).encode()


class _Deliveries:
    """What both channels do around a delivery."""

    delivering = ""  # the queue that the message in hand came by, whatever the message says

    def deliver(self, queue: str, no_ack: bool, original: Any, raw: Any) -> Any:
        """Hand a message over; a broadcast (an event, a remote command) that makes no sense is left alone."""
        self.delivering = queue
        try:
            return original(raw)
        except Exception as error:
            if is_broker_failure(error):
                raise
            if no_ack:
                logger.warning('a broadcast on "%s" makes no sense and is ignored: %r', queue, error)
                return None
            return self.refused(queue, original, raw, error)

    def refused(self, queue: str, original: Any, raw: Any, error: Exception) -> Any:  # noqa: ARG002
        """Deal with a message of a task queue that was not taken."""
        raise error


class _RedisQoS(redis_transport.QoS):  # type: ignore[misc]
    """What a channel has received and not acknowledged.

    kombu writes each message down in Redis, to be delivered again, and takes it out when it is acknowledged. Behind a
    message of ours stands a row, by which the sweeper sends it again: it is noted in this process only, to be put back.
    """

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a message that was received."""
        if HEADER in message.headers:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Forget a message, since a process runs it."""
        if self._own(delivery_tag) is not None:
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back on its queue."""
        message = self._own(tag)
        if message is None:
            super().restore_by_tag(tag, client, leftmost)
            return
        info = message.delivery_info
        with self.pipe_or_acquire(client=client) as pipe:
            self.channel._do_restore_message(  # noqa: SLF001  (kombu has no public name for it)
                message._raw,  # noqa: SLF001
                info["exchange"],
                info["routing_key"],
                pipe,
                leftmost,
            )
            pipe.execute()

    def _own(self, tag: str) -> Any:
        message = self._delivered.get(tag)
        return message if message is not None and HEADER in message.headers else None


class _RedisChannel(_Deliveries):
    """A mixin before one of kombu's Redis channels."""

    QoS = _RedisQoS

    @cached_property
    def client(self) -> Any:
        """The client that fetches messages; kombu reads its replies right away."""
        client = self._create_client(asynchronous=True)
        client.parse_response = partial(self._checked, client.parse_response)
        return client

    _plain: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Give a client; kombu makes one for each message that it sends, which costs a fifth of sending it."""
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]
        if self._plain is None or self._plain.connection_pool is not self.pool:  # type: ignore[attr-defined]
            self._plain = super()._create_client()  # type: ignore[misc]
        return self._plain

    def _checked(self, parse_response: Any, connection: Any, command: str, **options: Any) -> Any:
        reply = parse_response(connection, command, **options)
        if command != "BRPOP" or not reply:
            return reply
        key, item = reply
        fault = envelope_fault(item)
        if fault is None:
            return reply
        return key, wrapped(item, fault, key.decode().rsplit(self.sep, 1)[0])  # type: ignore[attr-defined]

    def refused(self, queue: str, original: Any, raw: Any, error: Exception) -> Any:
        """Hand a message over as one that cannot be read."""
        item = repr(raw).encode("utf-8", "replace")
        return original(loads(wrapped(item, f"kombu cannot handle it: {error!r}", queue)))

    def _receive_one(self, subscription: Any) -> Any:
        try:
            return super()._receive_one(subscription)  # type: ignore[misc]
        except RecursionError:
            logger.warning("a broadcast is nested too deeply and is ignored")
            return None

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Consume from a queue."""
        consumed = super().basic_consume(queue, no_ack, *args, **kwargs)  # type: ignore[misc]
        callbacks = self.connection._callbacks  # type: ignore[attr-defined]  # noqa: SLF001
        callbacks[queue] = partial(self.deliver, queue, no_ack, callbacks[queue])
        return consumed


class _AMQPChannel(_Deliveries, pyamqp.Channel):  # type: ignore[misc]
    def basic_consume(self, queue: str = "", *args: Any, callback: Any = None, **kwargs: Any) -> Any:
        """Consume from a queue."""
        guarded = partial(self.deliver, queue, kwargs.get("no_ack", False), callback)
        return super().basic_consume(queue, *args, callback=guarded, **kwargs)


class _AMQPConnection(pyamqp.Connection):  # type: ignore[misc]
    Channel = _AMQPChannel


@cache
def guarded(transport: Any) -> Any:
    """Make a transport of one of kombu's that survives what it cannot read."""
    if issubclass(transport, redis_transport.Transport):
        channel = type("Channel", (_RedisChannel, transport.Channel), {})
        return type("Transport", (transport,), {"Channel": channel})
    if issubclass(transport, pyamqp.Transport):
        return type("Transport", (transport,), {"Connection": _AMQPConnection})
    return transport


class GuardedConnection(Connection):  # type: ignore[misc]
    """kombu's connection, over a guarded transport."""

    def get_transport_cls(self) -> Any:
        """Give the transport's class."""
        return guarded(super().get_transport_cls())

    while_waiting: Callable[[], None] | None = None

    def ensure_connection(self, *args: Any, callback: Callable[[], None] | None = None, **kwargs: Any) -> Any:
        """Connect, trying again every two seconds at most; kombu's pauses grow to 30 s, which outlast an outage.

        The worker's event loop stands still meanwhile: ``while_waiting`` is called in its place.
        """

        def wait() -> None:
            for each in (self.while_waiting, callback):
                if each is not None:
                    each()

        pauses = {"interval_start": 1, "interval_step": 1, "interval_max": 2}
        return super().ensure_connection(*args, **{**pauses, **kwargs, "callback": wait})


class GuardedAMQP(AMQP):  # type: ignore[misc]
    """Celery's way to its broker, over guarded connections."""

    Connection = GuardedConnection
    BrokerConnection = GuardedConnection
