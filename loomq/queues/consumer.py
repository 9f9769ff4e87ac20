"""Celery's consumer, which no malformed message stops or sends into a loop: it is kept, and the next one comes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.exceptions import InvalidTaskError, NotRegistered
from celery.worker.consumer import Consumer
from vine import promise

from loomq.problems import suggest
from loomq.queues.names import HEADER, MALFORMED, StageMessage, worker_of
from loomq.queues.quarantine import FLUSH_S, told
from loomq.queues.shape import LARGEST_BYTES, is_text, message_fault, task_of
from loomq.queues.task import StageTask
from loomq.queues.transport import is_broker_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

logger = logging.getLogger(__name__)

_EVENTS_S = 0.05


class LoomConsumer(Consumer):  # type: ignore[misc]
    """Check each message before Celery takes it apart; what no task can be made of goes to the quarantine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._are_events_due = self._is_stopped = False
        self._plan_events = promise(self._send_events_later)  # one: the hub calls it once, however often it is told to
        self.quarantine = self.app.quarantine
        self.timer.call_repeatedly(FLUSH_S, self.quarantine.flush)

    def bucket_for_task(self, type: Any) -> Any:  # noqa: A002  (Celery's signature)
        """Give a task's bucket in this process; our workers' rates hold over the cluster and are no business of it."""
        return None if isinstance(type, StageTask) else super().bucket_for_task(type)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Give the function that every message of a task queue comes to."""
        receive = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            try:
                found = self._fault(message)
                if found is None:
                    receive(message)
                else:
                    self._keep(message, *found)
            except Exception as error:
                if is_broker_failure(error):
                    raise
                logger.exception("a message that looked well broke the consumer")
                self._keep(message, f"Celery cannot handle it: {type(error).__name__}: {error}")

        return on_task_received

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Keep a message that kombu could not decompress or decode."""
        self._keep(message, f"its body cannot be read: {exc}")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002  (Celery's signature)
        """Keep a message that Celery refuses."""
        self._keep(message, f"Celery refuses it: {exc}")

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002
        """Keep a message that is none of Celery's."""
        self._keep(message, "it is no task message of Celery's")

    def add_task_queue(self, *args: Any, **kwargs: Any) -> None:
        """Consume one more queue, and tell whoever counts what the node serves."""
        super().add_task_queue(*args, **kwargs)
        self._tell_queues()

    def cancel_task_queue(self, queue: Any) -> None:
        """Stop consuming a queue; from here on the slots fetch nothing from it either."""
        super().cancel_task_queue(queue)
        self._tell_queues()

    def _tell_queues(self) -> None:
        served = sorted(self.app.amqp.queues.consume_from)
        self.app.served.tell(served)
        if self.app.runner is not None:
            self.app.runner.serves(served, reloaded=False)

    def on_send_event_buffered(self) -> None:
        """Send events of tasks a moment later: Celery would send them first, and then hand the task to the pool."""
        if self._is_stopped or self.app.is_solo:  # then no timer runs, or not before the task is done
            super().on_send_event_buffered()
        elif self.hub:
            self.hub.call_soon(self._plan_events)  # we may be on another thread than the hub

    def _send_events_later(self) -> None:
        if not self._are_events_due:
            self._are_events_due = True
            self.hub.call_later(_EVENTS_S, self._send_events)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Send the events that wait, or keep them for the next connection: Celery leaves them behind."""
        self._send_events()
        super().on_connection_error_after_connected(exc)

    def _send_events(self) -> None:
        self._are_events_due = False
        self._flush_events()

    def stop(self) -> None:
        """Stop consuming; the pool may then take long to finish."""
        self._is_stopped = True  # no timer runs from here on
        self._send_events()
        super().stop()
        self.quarantine.flush(at_once=True)

    def shutdown(self) -> None:
        """Close what is open, last of all."""
        super().shutdown()
        self.quarantine.close()

    def _fault(self, message: Any) -> tuple[str, Exception | None] | None:
        """Say what is wrong with a message, with what Celery would raise to its caller if that is known."""
        headers = message.headers
        if MALFORMED in headers:
            return str(headers[MALFORMED]), None
        if len(message.body or b"") > LARGEST_BYTES:
            return f"its body takes {len(message.body):,} bytes; at most {LARGEST_BYTES:,} are read", None
        try:
            payload = message.payload
        except Exception as error:  # noqa: BLE001  (any decoder, on any bytes)
            return f"its body cannot be read: {error}", None
        fault = message_fault(headers, message.properties, payload)
        if fault is not None:
            return fault, None
        fields, _ = task_of(headers, payload) or ({}, None)
        task = fields["task"]
        # A stage's message for a worker that is not known here goes back: another node may know it, in a deploy.
        if task in self.strategies or fields.get(HEADER) is not None:
            return None
        return _unknown(task, self.strategies), NotRegistered(task)

    def _keep(self, message: Any, reason: str, error: Exception | None = None) -> None:
        headers = message.headers
        reason = told(reason)
        self.quarantine.keep(
            getattr(message.channel, "delivering", "") or str(message.delivery_info.get("routing_key")),
            reason,
            message.body.encode("utf-8", "replace") if isinstance(message.body, str) else bytes(message.body or b""),
            {name: value for name, value in headers.items() if name != MALFORMED}
            if MALFORMED in headers
            else described(message),
            failure=self._failure(headers, error or InvalidTaskError(reason)),
        )
        if not message.acknowledged:
            message.ack_log_error(logger, self.connection_errors)
        signals.task_rejected.send(sender=self, message=message, exc=error)

    def _failure(self, headers: Mapping[str, Any], error: Exception) -> tuple[str, dict[str, Any]] | None:
        """Give what a waiting caller is told: a stage's message has none, and its row is left to the sweeper."""
        task_id = headers.get("id")
        if not is_text(task_id) or HEADER in headers or StageMessage.is_id(task_id):
            return None
        return task_id, self.app.backend.failure_meta(task_id, error)


def described(message: Any) -> dict[str, Any]:
    """Give what came with a message's body."""
    apart = {"delivery_info", "delivery_tag", "application_headers", "body_encoding"}
    return {
        "holds": "body",
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "headers": message.headers,
        "properties": {name: value for name, value in message.properties.items() if name not in apart},
        "delivery_info": message.delivery_info,
    }


def _unknown(task: str, tasks: Iterable[str]) -> str:
    worker = worker_of(task)
    if worker is None:
        what, hint = f'no task is called "{task}"', suggest(task, tasks)
    else:
        what, hint = f'no worker is called "{worker}"', suggest(worker, filter(None, map(worker_of, tasks)))
    return f"{what}; {hint}" if hint else what
