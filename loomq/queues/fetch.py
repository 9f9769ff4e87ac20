"""Take messages from the queues without Celery's consumer: what a slot does that is done with its own.

Between the broker and a slot stand kombu's consumer, the pool's pipe and an event for each step; together they take
several times what a small stage takes. As with Celery the most urgent is first; among queues whose first messages are
equally urgent chance decides, where Celery takes turns.
"""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, ResponseError

from loomq.errors import BrokerUnavailableError
from loomq.queues.names import StageMessage, broker_priority
from loomq.queues.scripts import Script
from loomq.store.stages import StageKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kombu import Producer

    from loomq.queues.broker import Broker

logger = logging.getLogger(__name__)

_FETCH = Script("fetch.lua")
_NEVER = ("unknown command", "CROSSSLOT")


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
    """Take from a Redis broker.

    A message that was taken is gone from the broker: if the process dies before its row is claimed, the sweeper sends
    it again, as with one that was lost on the way.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._is_refused = False

    def fetch(self, queues: Mapping[str, int], least: int = 0) -> Fetched:
        """Take the most urgent messages of one queue.

        Args:
            queues: How many may be taken of each; 0 of those that only Celery may take from.
            least: Nothing is looked at that is less urgent than this (``names.urgency``).

        Returns:
            Nothing as well if the broker does not answer, or does not run scripts for us.
        """
        if self._is_refused or not queues:
            return NOTHING
        order = list(queues)
        random.shuffle(order)
        last = broker_priority(least, low_is_urgent=True)
        try:
            return self._broker.run(lambda producer: self._ask(producer, order, queues, last))
        except BrokerUnavailableError:
            return NOTHING

    def _ask(self, producer: Producer, order: Sequence[str], queues: Mapping[str, int], last: int) -> Fetched:
        channel = producer.channel
        steps = [(queue, step) for step in channel.priority_steps if step <= last for queue in order]
        keys = [channel._q_for_pri(queue, step) for queue, step in steps]  # noqa: SLF001  (no public name for it)
        try:
            stopped, *found = _FETCH.run(channel.client, keys, [queues[queue] for queue, _ in steps])
        except ResponseError as error:
            if not isinstance(error, NoPermissionError) and not str(error).startswith(_NEVER):
                raise
            logger.warning("the broker runs no scripts for us, so slots fetch nothing by themselves: %s", error)
            self._is_refused = True
            return NOTHING
        if not found:
            return Fetched(is_stopped=bool(stopped))
        which, *items = found
        try:
            return Fetched(tuple(map(_stage, items)), place=keys[which], items=tuple(items))
        except (ValueError, RecursionError):  # it is for no stage: Celery's consumer says what is wrong with it
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
        RecursionError: It is nested too deeply.
    """
    headers: dict[str, Any] = json.loads(item)["headers"]
    message = StageMessage.parse(StageMessage.of_id(headers["id"]).args)
    return StageKey(message.goal_id, message.name, message.item)
