"""Take messages from the queues without Celery's consumer: what a slot does that is done with its own.

Between the broker and a slot stand kombu's consumer, the pool's pipe and an event for each step; together they take
several times what a small stage takes. The order is Celery's: by priority, and in turn over the queues of one priority.
"""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from loomq.errors import BrokerUnavailableError
from loomq.queues.names import StageMessage
from loomq.queues.scripts import Script
from loomq.store.stages import StageKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kombu import Producer

    from loomq.queues.broker import Broker

logger = logging.getLogger(__name__)

_FETCH = Script("fetch.lua")


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came next.

    Args:
        keys: The stages whose messages were taken from a queue; their rows are not claimed yet.
        is_stopped: Whether something waits that only Celery may take.
        place: The list that held them.
        items: The messages as they lay there.
    """

    keys: tuple[StageKey, ...] = ()
    is_stopped: bool = False
    place: str = ""
    items: tuple[bytes, ...] = ()


NOTHING = Fetched()


class Fetcher:
    """Take from a Redis broker; of another one it is only known that it may hold something.

    A message that was taken is gone from the broker: if the process dies before its row is claimed, the sweeper sends
    it again, as with one that was lost on the way.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._is_refused = False

    def fetch(self, queues: Mapping[str, int]) -> Fetched:
        """Take the most urgent messages of one queue.

        Args:
            queues: How many may be taken of each; 0 of those that only Celery may take from.

        Returns:
            Nothing as well if the broker does not answer, or does not run scripts for us.
        """
        if self._is_refused or not queues:
            return NOTHING
        names = list(queues)
        first = random.randrange(len(names))  # noqa: S311  (a turn is no secret)
        order = names[first:] + names[:first]
        try:
            return self._broker.run(lambda producer: self._ask(producer, order, queues))
        except BrokerUnavailableError:
            return NOTHING

    def _ask(self, producer: Producer, order: Sequence[str], queues: Mapping[str, int]) -> Fetched:
        channel = producer.channel
        steps = [(queue, step) for step in channel.priority_steps for queue in order]
        keys = [channel._q_for_pri(queue, step) for queue, step in steps]  # noqa: SLF001  (no public name for it)
        try:
            stopped, *found = _FETCH.run(channel.client, keys, [queues[queue] for queue, _ in steps])
        except ResponseError as error:
            logger.warning("the broker runs no scripts for us, so slots fetch nothing by themselves: %s", error)
            self._is_refused = True
            return NOTHING
        if not found:
            return Fetched(is_stopped=bool(stopped))
        which, *items = found
        try:
            return Fetched(tuple(map(_stage, items)), place=keys[which], items=tuple(items))
        except ValueError:  # its id is no stage's: Celery's consumer says what is wrong with it
            channel.client.rpush(keys[which], *reversed(items))
            return Fetched(is_stopped=True)

    def put_back(self, fetched: Fetched) -> None:
        """Put what was taken and not claimed where it was: next in turn.

        Raises:
            BrokerUnavailableError: The broker does not answer.
        """
        self._broker.run(lambda producer: producer.channel.client.rpush(fetched.place, *reversed(fetched.items)))


def _stage(item: bytes) -> StageKey:
    """Read which stage a message is for.

    Raises:
        ValueError: It is for none.
    """
    headers: dict[str, Any] = json.loads(item)["headers"]
    message = StageMessage.of_id(headers["id"])
    return StageKey(message.goal_id, message.name, message.item)
