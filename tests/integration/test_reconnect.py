"""How a node comes back to a broker that was away."""

from __future__ import annotations

import pytest
from kombu.exceptions import OperationalError
from kombu.utils import functional

from loomq.queues.transport import GuardedConnection


def test_a_lost_broker_is_tried_again_every_two_seconds_at_most_however_long_it_was_away(monkeypatch):
    monkeypatch.setattr(functional, "sleep", lambda _: None)
    pauses: list[float] = []
    connection = GuardedConnection("redis://127.0.0.1:1/0")  # nobody listens there
    with pytest.raises(OperationalError):
        connection.ensure_connection(lambda _, pause: pauses.append(pause), 20)
    assert len(pauses) == 20
    assert max(pauses) == 2
