"""Raw Celery calls (``delay``, ``send_task``, a user's own canvas): each becomes a goal of one stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loomq.errors import PipelineValidationError, UnknownNameError
from loomq.ids import uuid7
from loomq.messages import OrchestratorGoal, TaskPriority
from loomq.queues.names import StageMessage, level, level_of_broker, priority_named, queue_name, task_name
from loomq.queues.results import CALL_KEY
from loomq.queues.shape import message_fault
from loomq.runs.submit import Call, due_at

if TYPE_CHECKING:
    from datetime import datetime

    from loomq.queues.app import LoomCelery
    from loomq.runs.publish import Publisher
    from loomq.runs.submit import Submitter

# What Celery attaches to a message and must come along when the sweeper sends it again.
_CANVAS = (
    "chain",
    "chord",
    "link",
    "link_error",
    "group_id",
    "group_index",
    "root_id",
    "parent_id",
    "shadow",
    "headers",
)
_LONGEST_S = 1e7


class Calls:
    """Make goals of raw calls."""

    def __init__(self, app: LoomCelery, submitter: Submitter, publisher: Publisher) -> None:
        self._app = app
        self._submitter = submitter
        self._publisher = publisher

    def submit(
        self, worker: str, payload: dict[str, Any], options: dict[str, Any]
    ) -> tuple[StageMessage | None, dict[str, Any]]:
        """Write a call down.

        Args:
            options: What the caller gave ``apply_async``.

        Returns:
            The message to send now (``None``: it is sent later, or was sent before), and the options to send it with.
        """
        task_id = options.get("task_id") or str(uuid7())
        canvas = {key: options[key] for key in _CANVAS if options.get(key) is not None}
        _refuse_unreadable(worker, task_id, canvas)
        tier = self._tier(worker, options.get("queue"))
        priority = self._priority(options.get("priority"))
        accepted = self._submitter.submit(
            OrchestratorGoal(
                instruction="", context=payload, priority=priority, deadline=_deadline(options.get("expires"))
            ),
            worker=worker,
            tier=tier,
            timeout_s=_time_limit(options),
            max_retries=options.get("max_retries"),
            not_before=due_at(options.get("countdown"), options.get("eta")),
            call=Call(task_id, canvas, CALL_KEY + task_id),
            publish=self._app.broker.is_open,
        )
        stage = accepted.plan.stages[worker]
        sending = {
            **canvas,
            **self._publisher.call_options(worker, tier or stage.tier, level(priority), task_id, canvas.get("headers")),
        }
        now = accepted.created and accepted.published
        return (StageMessage(accepted.goal_id, worker) if now else None), sending

    def adopt(self, worker: str, payload: dict[str, Any], request: Any) -> StageMessage:
        """Write down a call whose message is already in a worker's hand; a second delivery finds the first's goal.

        A payload that breaks the worker's contract fails when it is run: the goal is kept, with a dead letter.
        """
        canvas = {
            "chain": request.chain,
            "chord": request.chord,
            "link": request.callbacks,
            "link_error": request.errbacks,
            "group_id": request.group,
            "group_index": getattr(request, "group_index", None),
            "root_id": request.root_id,
            "parent_id": request.parent_id,
        }
        accepted = self._submitter.submit(
            OrchestratorGoal(instruction="", context=payload),
            worker=worker,
            call=Call(request.id, {key: value for key, value in canvas.items() if value}, CALL_KEY + request.id),
            publish=False,
            contract=False,
        )
        return StageMessage(accepted.goal_id, worker)

    def _tier(self, worker: str, queue: Any) -> str | None:
        if queue is None:
            return None
        name = getattr(queue, "name", queue)
        known = {self._app.router.queue(worker, tier): tier for tier in ("local", "standard", "frontier")}
        for tier in ("local", "standard", "frontier"):
            known.setdefault(queue_name(worker, tier), tier)
        if name not in known:
            raise UnknownNameError(
                f'"{name}" is no queue of worker {worker}', hint=f"its queues are {', '.join(sorted(known))}"
            )
        return known[name]

    def _priority(self, asked: Any) -> TaskPriority:
        if asked is None:
            return TaskPriority.NORMAL
        if isinstance(asked, int):
            return priority_named(level_of_broker(asked, low_is_urgent=self._app.is_redis))
        return TaskPriority(asked)


def _refuse_unreadable(worker: str, task_id: object, canvas: dict[str, Any]) -> None:
    """Refuse a call whose message every node would put aside: its row would be sent again for ever."""
    embed = {name: _several(canvas.get(option)) for name, option in (("callbacks", "link"), ("errbacks", "link_error"))}
    embed |= {"chain": canvas.get("chain"), "chord": canvas.get("chord")}
    named = {name: canvas.get(name) for name in ("shadow", "root_id", "parent_id")}
    headers = {**(canvas.get("headers") or {}), **named, "task": task_name(worker), "id": task_id}
    fault = message_fault(headers, {}, [[], {}, embed])
    if fault is not None:
        raise PipelineValidationError(f"this call of {worker} cannot be sent: {fault}")


def _several(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple) else [value]


def _time_limit(options: dict[str, Any]) -> float | None:
    limit = options.get("soft_time_limit") or options.get("time_limit")
    if limit is None:
        return None
    if not isinstance(limit, int | float) or not 0 < limit <= _LONGEST_S:
        raise PipelineValidationError(f"a time limit is between 0 and {_LONGEST_S:,.0f} seconds, not {limit!r}")
    return float(limit)


def _deadline(expires: Any) -> datetime | None:
    """Celery's ``expires`` is seconds or a time; a call that has not ended by then fails."""
    return due_at(expires, None) if isinstance(expires, int | float) else due_at(None, expires)
