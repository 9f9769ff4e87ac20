"""Mends for kombu 5.7 and py-amqp 5.4: a worker must outlive its broker, and whatever comes from it.

When Redis goes away, the consumer closes its connection and then gives its unacknowledged messages back through it;
kombu follows a client that is ``None`` by then, and the worker process exits. Nothing is lost by not giving them back:
loomq acknowledges early, and what was running is known to Postgres.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from functools import partial, wraps
from typing import Any

from kombu import compression
from kombu.transport import redis as redis_transport

from loomq.queues.names import MALFORMED
from loomq.queues.shape import LARGEST_BYTES

_READ_BYTES = 4096
_DECOMPRESSORS = (
    ("application/x-gzip", zlib.compress, zlib.decompressobj),
    ("application/x-bz2", bz2.compress, bz2.BZ2Decompressor),
    ("application/x-lzma", lzma.compress, lzma.LZMADecompressor),
)


def outlive_the_broker() -> None:
    """Install the guard, once a process."""
    original = redis_transport.QoS.restore_unacked
    if getattr(original, "guarded_by_loomq", False):
        return

    @wraps(original)
    def restore_unacked(self: Any, client: Any = None) -> Any:
        connection = self.channel.connection
        if connection is None or getattr(connection, "client", None) is None:
            return None
        return original(self, client)

    restore_unacked.guarded_by_loomq = True  # type: ignore[attr-defined]
    redis_transport.QoS.restore_unacked = restore_unacked


def read_any_properties() -> None:
    """Let a message through whose AMQP properties cannot be parsed, once a process.

    Such an error ends the connection or the worker, and RabbitMQ delivers the message again to the next one.
    """
    from amqp.serialization import GenericContent

    original = GenericContent._load_properties  # noqa: SLF001  (py-amqp has no public place for it)
    if getattr(original, "guarded_by_loomq", False):
        return

    @wraps(original)
    def load_properties(self: Any, class_id: int, buf: Any, offset: int) -> Any:
        try:
            return original(self, class_id, buf, offset)
        except Exception as error:  # noqa: BLE001  (whatever the bytes make of the parser)
            fault = f"its AMQP properties cannot be read: {type(error).__name__}: {error}"
            unread = bytes(buf[offset : offset + _READ_BYTES]).hex()
            self.properties = {"application_headers": {MALFORMED: fault, "holds": "body", "unread": unread}}
            return offset

    load_properties.guarded_by_loomq = True  # type: ignore[attr-defined]
    GenericContent._load_properties = load_properties  # noqa: SLF001


def bound_decompression() -> None:
    """Let a compressed body grow no larger than one that is not: a megabyte could take all of a machine's memory."""
    for content_type, encoder, make in _DECOMPRESSORS:
        compression.register(encoder, partial(_decompressed, make), content_type)


def _decompressed(make: Any, body: bytes) -> bytes:
    decompressor = make()
    found: bytes = decompressor.decompress(body, LARGEST_BYTES)
    if not decompressor.eof:
        raise ValueError(f"it is cut off, or takes more than {LARGEST_BYTES:,} bytes when decompressed")
    return found
