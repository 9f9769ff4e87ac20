"""A worker must outlive its broker: the mend for a crash of kombu 5.7 when Redis goes away.

The consumer closes its connection and then gives its unacknowledged messages back through it; kombu follows a client
that is ``None`` by then, and the worker process exits. Nothing is lost by not giving them back: loomq acknowledges
early, and what was running is known to Postgres.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from kombu.transport import redis as redis_transport


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
