"""The Celery task of a worker: what is sent, however it is called, is a goal's stage."""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.result import AsyncResult
from kombu.utils.json import dumps

from loomq.errors import BrokerUnavailableError, InlineValueError
from loomq.inline import inline_json
from loomq.queues.names import HEADER, StageMessage


class StageTask(Task):  # type: ignore[misc]
    """One worker's task.

    Messages that loomq publishes carry the ``loomq`` header and ids. Any other call (``delay``, a user's canvas) is
    written down as a goal of one stage first, so that it has a row, a lease, a result and dead letters.
    """

    abstract = True
    typing = False
    worker = ""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the message in hand; a raw call that no goal can be made of is kept with the malformed messages."""
        if getattr(self.request, HEADER, None) is None:
            try:
                limit = self.app.loom_settings.max_inline_bytes
                inline_json(payload_of(args, kwargs), what="the payload of the call", limit_bytes=limit)
            except (TypeError, InlineValueError) as error:
                self._keep(args, kwargs, str(error))
                raise
        return self.app.runner.execute(self, args, kwargs)

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,  # noqa: ARG002
        **options: Any,
    ) -> Any:
        """Send a stage's message, or make a goal of a raw call and send that.

        What cannot be sent now is kept in the database and sent later. ``producer`` is not used: Celery's chains drop
        it, and the broker's own connection is the one that knows when to give up.
        """
        headers = options.get("headers") or {}
        if HEADER in headers:
            message = StageMessage.parse(args)
            sending = {**options, "task_id": task_id}
        else:
            payload = payload_of(args or (), kwargs or {})
            message, sending = self.app.runner.submit_call(self, payload, {**options, "task_id": task_id})
        if message is not None:
            self._send(message, sending)
        return AsyncResult(sending["task_id"], app=self.app)

    def _keep(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> None:
        """Keep a call as it came; its result, and what Celery does with a failure, is left to Celery."""
        request, quarantine = self.request, self.app.quarantine
        quarantine.keep(
            str((request.delivery_info or {}).get("routing_key")),
            reason,
            dumps([args, kwargs, None]).encode(),
            {"holds": "body", "headers": {"task": self.name, "id": request.id, **(request.headers or {})}},
        )
        quarantine.flush(at_once=True)  # no timer does it in a child of the pool

    def _send(self, message: StageMessage, sending: dict[str, Any]) -> None:
        sending["priority"] = self.app.priority_of(sending["headers"][HEADER])
        sending["retry"] = False
        # What monitors show: to find it out takes Celery a tenth of the time of sending.
        sending["argsrepr"], sending["kwargsrepr"] = repr(message.args), "{}"
        send = super().apply_async
        try:
            self.app.broker.run(lambda producer: send(message.args, {}, producer=producer, **sending))
        except BrokerUnavailableError as error:
            self.app.runner.not_sent(message, error)


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
