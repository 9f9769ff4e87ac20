"""The Celery task of a worker: what is sent, however it is called, is a goal's stage."""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.result import AsyncResult

from loomq.errors import BrokerUnavailableError
from loomq.queues.names import HEADER


class StageTask(Task):  # type: ignore[misc]
    """One worker's task.

    Messages that loomq publishes carry the ``loomq`` header and ids. Any other call (``delay``, a user's canvas) is
    written down as a goal of one stage first, so that it has a row, a lease, a result and dead letters.
    """

    abstract = True
    typing = False
    worker = ""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the message in hand."""
        return self.app.runner.execute(self, args, kwargs)

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        **options: Any,
    ) -> Any:
        """Send a stage's message, or make a goal of a raw call and send that.

        Raises:
            BrokerUnavailableError: A stage's message could not be sent. A raw call is kept instead, and sent later.
        """
        headers = options.get("headers") or {}
        if HEADER in headers:
            options["priority"] = self.app.broker_priority(headers[HEADER]["priority"])
            options["retry"] = False
            return super().apply_async(tuple(args or ()), kwargs or {}, task_id=task_id, producer=producer, **options)
        payload = payload_of(args or (), kwargs or {})
        message, sending = self.app.runner.submit_call(self, payload, {**options, "task_id": task_id})
        if message is not None:
            try:
                self.app.broker.run(
                    lambda lent: super(StageTask, self).apply_async(message.args, {}, producer=lent, **sending)
                )
            except BrokerUnavailableError:
                self.app.runner.not_sent(message)
        return AsyncResult(sending["task_id"], app=self.app, parent=None)


def payload_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Read a raw call's payload: one object, or the results of a chord's header as ``{"items": [...]}``.

    Raises:
        TypeError: The call has another shape.
    """
    given = [*args, *([kwargs["payload"]] if "payload" in kwargs else [])]
    if len(given) != 1 or set(kwargs) - {"payload"}:
        raise TypeError(
            f"a loomq worker takes one object, its payload; it was called with {len(args)} positional arguments"
            f" and the keywords {sorted(kwargs)}"
        )
    payload = given[0]
    if isinstance(payload, list | tuple):
        return {"items": list(payload)}
    if not isinstance(payload, dict):
        raise TypeError(f"a loomq worker's payload is a JSON object, not {type(payload).__name__}")
    return payload
