"""Names on the broker: queues, tasks, message ids, priorities and the header that marks our messages."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from loomq.messages import TaskPriority

TASK_PREFIX = "loomq.worker."
HEADER = "loomq"
MALFORMED = "loomq-malformed"  # the header by which our transports pass on what they cannot read
STAGE_GROUP = "loomq-stage-"

_LEVELS = {TaskPriority.LOW: 0, TaskPriority.NORMAL: 1, TaskPriority.HIGH: 2, TaskPriority.CRITICAL: 3}
_STEPS = 3  # a Celery user's levels are 0, 3, 6, 9
#: The priorities of Redis queues by urgency, 0 the most urgent. Those of the first release were 9, 6, 3, 0.
_REDIS = (9, 8, 7, 6, 4, 3, 1, 0)
_MOST = 9
_LONGEST_NAME = 100
_ITEMS = 2**31


def queue_name(worker: str, tier: str) -> str:
    """Name the queue of a worker's tier; the same string names the route in the database."""
    return f"{worker}.{tier}"


def task_name(worker: str) -> str:
    """Name the Celery task of a worker."""
    return TASK_PREFIX + worker


def worker_of(task: str | None) -> str | None:
    """Name the worker of a Celery task, or ``None`` if the task is not one of ours."""
    return task[len(TASK_PREFIX) :] if task and task.startswith(TASK_PREFIX) else None


def level(priority: TaskPriority | str) -> int:
    """Give a priority as the number that the database orders by: 0 low to 3 critical."""
    return _LEVELS[TaskPriority(priority)]


def priority_named(number: int) -> TaskPriority:
    """Name a level."""
    return next(name for name, value in _LEVELS.items() if value == number)


def urgency(level: int, *, first: bool = True) -> int:
    """Give the order in which a queue hands messages out: 7 first, 0 last.

    Args:
        first: Whether no other message of the goal waits on the queue. Such go before the others of their level, so
            that a goal with ten thousand tasks keeps no other waiting.
    """
    return 2 * level + first


def broker_priority(urgency: int, *, low_is_urgent: bool) -> int:
    """Turn an urgency into the broker's priority: on Redis 0 is the most urgent, on RabbitMQ the least."""
    return _REDIS[urgency] if low_is_urgent else _MOST - _REDIS[urgency]


def broker_priorities(*, low_is_urgent: bool) -> list[int]:
    """List all that are in use, the least urgent first."""
    return [broker_priority(each, low_is_urgent=low_is_urgent) for each in range(len(_REDIS))]


def level_of_broker(priority: int, *, low_is_urgent: bool) -> int:
    """Turn a broker's priority, as a Celery user writes it, into the nearest level."""
    nearest = min(max(round(priority / _STEPS), 0), 3)
    return 3 - nearest if low_is_urgent else nearest


@dataclass(frozen=True, slots=True)
class StageMessage:
    """What a stage's message says: ids only."""

    goal_id: UUID
    name: str
    item: int = -1

    @property
    def args(self) -> tuple[str, str, int]:
        """The Celery task's arguments."""
        return (str(self.goal_id), self.name, self.item)

    @property
    def id(self) -> str:
        """The Celery task id: the same for each delivery of the stage, so that Flower shows one task."""
        suffix = "" if self.item < 0 else f":{self.item}"
        return f"{self.goal_id}:{self.name}{suffix}"

    @staticmethod
    def is_id(task_id: str) -> bool:
        """Say whether a Celery task id is that of a stage's message."""
        goal, colon, _ = task_id.partition(":")
        try:
            return bool(colon) and bool(UUID(goal))
        except ValueError:
            return False

    @classmethod
    def of_id(cls, task_id: str) -> StageMessage:
        """Read a message's ``id`` back.

        Raises:
            ValueError: It is none.
        """
        goal, _, rest = task_id.partition(":")
        name, _, item = rest.partition(":")
        return cls(UUID(goal), name, int(item) if item else -1)

    @classmethod
    def parse(cls, args: object) -> StageMessage:
        """Read the arguments of a stage's message.

        Raises:
            ValueError: They are not what a stage's message carries.
        """
        if not isinstance(args, list | tuple) or len(args) != 3:  # noqa: PLR2004
            raise ValueError(f"a stage's message carries goal, stage and item, not {args!r:.200}")
        goal_id, name, item = args
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise ValueError(f"a stage's message carries goal, stage and item, not the stage {name!r:.200}")
        if type(item) is not int or not -1 <= item < _ITEMS:
            raise ValueError(f"a stage's message carries goal, stage and item, not the item {item!r:.200}")
        try:
            return cls(UUID(goal_id), name, item)
        except (ValueError, AttributeError, TypeError):
            raise ValueError(f"a stage's message carries goal, stage and item, not the goal {goal_id!r:.200}") from None
