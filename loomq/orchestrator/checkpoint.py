"""Checkpoints: where the compressed memory of a long goal is kept, in Postgres or in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from loomq.messages import CheckpointState
from loomq.store import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from loomq.queues.broker import Broker
    from loomq.store.engine import Database

T = TypeVar("T")

_PREFIX = "loomq-checkpoint:"
# One that is as far or further stays: whoever was held up for long must not undo what came after.
_SAVE = """
local old = redis.call('GET', KEYS[1])
if old and cjson.decode(old)['checkpoint_number'] >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""


class CheckpointStore(Protocol):
    """Where checkpoints are kept; losing one costs the calls that made it, and nothing else."""

    def latest(self, goal_id: UUID) -> CheckpointState | None:
        """Give a goal's newest checkpoint that has not expired.

        Raises:
            EnvironmentNotReadyError: The server does not answer.
        """

    def save(self, state: CheckpointState, ttl_s: float) -> None:
        """Keep a checkpoint for so long, unless there is one with the same number or a higher one; errors as above."""

    def forget(self, goal_id: UUID) -> None:
        """Forget a goal's checkpoints; errors as above."""


class Persist(Protocol):
    """Make a call, maybe more than once until it is answered."""

    def __call__(self, work: Callable[[], T], /) -> T:
        """Make it."""


def _once(work: Callable[[], T], /) -> T:
    return work()


class PostgresCheckpoints:
    """Checkpoints in the database: they last as long as the goal, and are there for people to look at.

    Args:
        persist: Makes each call; by itself it is made once.
    """

    def __init__(self, database: Database, persist: Persist = _once) -> None:
        self._database = database
        self._persist = persist

    def latest(self, goal_id: UUID) -> CheckpointState | None:
        """Give the newest."""
        found = self._persist(lambda: checkpoints.latest(self._database, goal_id))
        return CheckpointState.model_validate(found) if found is not None else None

    def save(self, state: CheckpointState, ttl_s: float) -> None:
        """Keep one."""
        said = state.model_dump_json()
        self._persist(lambda: checkpoints.save(self._database, state.goal_id, state.checkpoint_number, said, ttl_s))

    def forget(self, goal_id: UUID) -> None:
        """Forget all of a goal's."""
        self._persist(lambda: checkpoints.forget(self._database, goal_id))


class RedisCheckpoints:
    """Checkpoints in Redis: the newest of each goal, under a key that expires."""

    def __init__(self, server: Broker) -> None:
        self._server = server

    def latest(self, goal_id: UUID) -> CheckpointState | None:
        """Give the newest."""
        found = self._server.run(lambda producer: producer.channel.client.get(_PREFIX + str(goal_id)))
        return CheckpointState.model_validate_json(found) if found is not None else None

    def save(self, state: CheckpointState, ttl_s: float) -> None:
        """Keep one."""
        key, said = _PREFIX + str(state.goal_id), state.model_dump_json()
        wanted = (state.checkpoint_number, said, max(1, round(ttl_s * 1000)))
        self._server.run(lambda producer: producer.channel.client.eval(_SAVE, 1, key, *wanted))

    def forget(self, goal_id: UUID) -> None:
        """Forget a goal's."""
        self._server.run(lambda producer: producer.channel.client.delete(_PREFIX + str(goal_id)))
