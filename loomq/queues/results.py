"""Celery's result backend over the rows that goals already have: joins are theirs, waits wake by ``LISTEN``.

A loomq worker's result is its goal's stage; only tasks that are not ours keep a row of their own here. A chord is
counted in the transaction that stores the part's result, so no crash can lose a part, and no ``chord_unlock`` polls.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from celery import states
from celery.app.task import Context
from celery.backends.base import BaseBackend
from celery.canvas import maybe_signature
from celery.exceptions import ChordError, NotRegistered, TimeLimitExceeded, WorkerLostError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import GroupResult, result_from_tuple
from celery.utils.serialization import create_exception_cls

from loomq.errors import EnvironmentNotReadyError, LoomqError
from loomq.queues.names import HEADER, STAGE_GROUP, StageMessage, worker_of
from loomq.redaction import redacted_json
from loomq.store import goals, results

if TYPE_CHECKING:
    from loomq.store.engine import Database

logger = logging.getLogger(__name__)

CALL_KEY = "task:"  # an idempotency key that leads from Celery's task id to the goal of a raw call
_LOST = (WorkerLostError, TimeLimitExceeded)
_STATES = {"done": states.SUCCESS, "failed": states.FAILURE, "cancelled": states.REVOKED, "open": states.PENDING}
_POLL_S = 1.0


class PostgresBackend(BaseBackend):  # type: ignore[misc]
    """Results in Postgres, JSON only; exceptions come back as named copies, never by importing what a row says."""

    supports_native_join = True
    supports_autoexpire = False
    persistent = True

    def __init__(self, app: Any, url: str | None = None, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self.url = url

    @property
    def _database(self) -> Database:
        database: Database = self.app.database
        return database

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url})

    # Results

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_: Any
    ) -> Any:
        if _is_stage(request) or _is_call(request):
            return result
        body = {**self._get_result_meta(result, state, traceback, request), "task_id": task_id}
        try:
            results.put(self._database, task_id, state, self._kept(body, state))
        except EnvironmentNotReadyError as error:
            # Celery's parent process stores revoked and unknown tasks, and an error would end it.
            logger.warning("the result of task %s was not stored: %s", task_id, error.message)
        return result

    def _kept(self, value: Any, state: str) -> Any:
        """Give what is kept of a result: redacted, unless it is an output and outputs are to be kept as they are."""
        if state == states.SUCCESS and not self.app.loom_settings.redact_outputs:
            return value
        return redacted_json(value)

    def failure_meta(self, task_id: str, error: Exception) -> dict[str, Any]:
        """Give the result of a task that has failed before it began, as ``_store_result`` writes it."""
        meta = self._get_result_meta(self.encode_result(error, states.FAILURE), states.FAILURE, None, None)
        failed: dict[str, Any] = redacted_json({**meta, "task_id": task_id})
        return failed

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        pending = {"task_id": task_id, "status": states.PENDING, "result": None}
        if StageMessage.is_id(task_id):  # its state is the goal's to tell
            return pending
        goal_id = goals.find_by_key(self._database, CALL_KEY + task_id)
        if goal_id is not None:
            return self._call_meta(task_id, goal_id)
        stored = results.get(self._database, task_id)
        return dict(self.meta_from_decoded(stored)) if stored else pending

    def _call_meta(self, task_id: str, goal_id: Any) -> dict[str, Any]:
        goal = goals.get(self._database, goal_id)
        if goal is None:
            return {"task_id": task_id, "status": states.PENDING, "result": None}
        stage = goals.stages_of(self._database, goal_id)[0]
        status = states.STARTED if goal.state == "open" and stage.state == "claimed" else _STATES[goal.state]
        meta = {"task_id": task_id, "status": status, "result": stage.output, "date_done": goal.ended_at}
        if status in states.PROPAGATE_STATES:
            error = goal.error or {}
            meta["result"] = self.exception_to_python(
                {"exc_type": error.get("type", "LoomqError"), "exc_message": [error.get("message", goal.state)]}
            )
        return meta

    def exception_to_python(self, exc: Any) -> Any:
        """Rebuild a stored exception as a copy of its name and message; nothing is looked up or imported."""
        if not exc or isinstance(exc, BaseException):
            return exc
        message = exc.get("exc_message", "")
        kind = create_exception_cls(str(exc.get("exc_type", "Exception")).rpartition(".")[2], "loomq.remote")
        return kind(*message) if isinstance(message, list | tuple) else kind(message)

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,  # noqa: ARG002  (Celery's signature; we do not poll)
        no_ack: bool = True,  # noqa: ARG002
        on_interval: Any = None,
    ) -> dict[str, Any]:
        """Wait until a task has ended, woken by ``LISTEN``, with a look each second behind it.

        Raises:
            celery.exceptions.TimeoutError: It has not ended in time.
        """
        self._ensure_not_eager()
        until = None if timeout is None else time.monotonic() + timeout
        with self._database.listen("loomq_ended", self.app.loom_settings.listen_url) as listener:
            while True:
                meta: dict[str, Any] = self.get_task_meta(task_id)
                if meta["status"] in states.READY_STATES:
                    return meta
                left = _POLL_S if until is None else min(_POLL_S, until - time.monotonic())
                if left <= 0:
                    raise CeleryTimeoutError("The operation timed out.")
                if on_interval:
                    on_interval()
                listener.wait(left, lambda payload: payload.endswith(f" {task_id}"))

    def get_many(self, task_ids: Any, timeout: float | None = None, **_: Any) -> Any:
        """Wait for several tasks; gives ``(task_id, meta)`` in the order asked."""
        until = None if timeout is None else time.monotonic() + timeout
        for task_id in task_ids:
            left = None if until is None else max(until - time.monotonic(), 0)
            yield task_id, self.wait_for(task_id, timeout=left)

    def _forget(self, task_id: str) -> None:
        results.drop(self._database, task_id)

    def _save_group(self, group_id: str, result: Any) -> Any:
        results.put(self._database, group_id, "GROUP", {"group": result.as_tuple()})
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        stored = results.get(self._database, group_id)
        return {"result": result_from_tuple(stored["group"], app=self.app)} if stored else None

    def _delete_group(self, group_id: str) -> None:
        results.drop(self._database, group_id)

    def cleanup(self) -> None:
        """Keep everything: beat asks for this each day, and what may go is for ``loomq prune`` to say."""

    # Ends of tasks, and joins

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = states.SUCCESS
    ) -> None:
        """Take note of a success; by now Celery has sent what follows a raw call."""
        super().mark_as_done(task_id, result, request, store_result=store_result, state=state)
        if _is_call(request) and (request.chain or request.callbacks):
            goals.mark_followed(self._database, request.loomq_goal)

    def mark_as_failure(
        self,
        task_id: str,
        exc: Any,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """Take note of a failure; one that Celery's parent process reports ends nothing, it only frees the lease."""
        if isinstance(exc, _LOST) and _is_ours(request):
            self.app.runner.process_lost()
        elif isinstance(exc, NotRegistered) and _is_ours(request):
            self.app.runner.put_back(task_id)
        elif _is_call(request):
            if request.chord:
                self._fail_part(request, state, exc)
            # Celery would not store the rest of the chain, since the call's own result is a row of ours.
            self._fail_chain(request.chain, exc, traceback, store_result=True, state=state)
            if call_errbacks and request.errbacks:
                self._call_task_errbacks(request, exc, traceback)
            if getattr(request, "loomq_goal", None):
                goals.mark_followed(self._database, request.loomq_goal)
        elif not _is_stage(request):
            super().mark_as_failure(task_id, exc, traceback, request, store_result, call_errbacks, state)

    def apply_chord(self, header_result_args: Any, body: Any, **_: Any) -> None:
        """Get ready for a chord whose header is about to be sent."""
        header = GroupResult(*header_result_args)
        if not header.id.startswith(STAGE_GROUP):
            results.open_chord(self._database, header.id, dict(body))

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Hear how many parts a chord has, just before its last part is sent."""
        if not group_id.startswith(STAGE_GROUP) and results.size_chord(self._database, group_id, chord_size):
            self.send_chord_body(group_id)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        """Send a chord's body, if this part was the one that all others waited for."""
        outcome = getattr(request, "loomq_outcome", None)
        if _is_stage(request):
            body = maybe_signature(request.chord, app=self.app)
            if outcome is not None and body.args[1] in outcome.published:
                body.apply_async()
        elif state in states.PROPAGATE_STATES:
            self._fail_part(request, state, result)
        elif outcome is not None:
            if outcome.chord_full:
                self.send_chord_body(request.group)
        else:
            encoded = self._kept(self.encode_result(result, state), state)
            if results.add_part(self._database, request.group, request.id, request.group_index or 0, state, encoded):
                self.send_chord_body(request.group)

    def _fail_part(self, request: Any, state: str, exc: Any) -> None:
        if getattr(request, "loomq_goal", None) is None:  # else its part was counted when its goal ended
            error = redacted_json(self.encode_result(exc, state))
            results.add_part(self._database, request.group, request.id, request.group_index or 0, state, error)
        self.send_chord_body(request.group, request.chord)

    def send_chord_body(self, group_id: str, body: Any = None) -> None:
        """Send a full chord's body with its header's results, or fail it with the header's first failure.

        It may be sent twice (by the last part and by the sweeper); the body's task id makes it one goal.

        Args:
            group_id: The chord.
            body: Its body, if the caller has it in hand.
        """
        size, kept, is_sent = results.read_chord(self._database, group_id)
        body = maybe_signature(kept or body, app=self.app)
        if body is None or is_sent:
            return
        parts = results.chord_parts(self._database, group_id)
        failed = next(((task_id, error) for task_id, state, error in parts if state != states.SUCCESS), None)
        if failed:
            self._fail_body(body, f"Dependency {failed[0]} raised {_told(failed[1])}")
            results.mark_failed(self._database, group_id)
            return
        if size is None or len(parts) < size:
            return
        try:
            body.apply_async(([result for _, _, result in parts],))
        except (LoomqError, TypeError) as error:
            if getattr(error, "retryable", False):
                raise
            self._fail_body(body, f"the body cannot be called: {error}")
        results.mark_dispatched(self._database, group_id)

    def _fail_body(self, body: Any, why: str) -> None:
        try:
            # Celery asks for the traceback of what is being handled, and a sweeper handles nothing.
            raise ChordError(why)  # noqa: TRY301
        except ChordError as error:
            self.chord_error_from_stack(body, error)

    def follow(self, goal_id: Any) -> None:
        """Send what follows an ended raw call, since whoever ended it is not known to have done so.

        It may be sent twice; the task ids in it make it one goal each.
        """
        goal = goals.get(self._database, goal_id)
        if goal is None or not goal.follows or goal.state == "open":  # replayed meanwhile
            return
        canvas = goal.canvas or {}
        if goal.state == "done":
            output = goals.stages_of(self._database, goal_id)[0].output
            for link in canvas.get("link") or ():
                maybe_signature(link, app=self.app).apply_async((output,))
            if rest := canvas.get("chain"):
                maybe_signature(rest[-1], app=self.app).apply_async((output,), chain=rest[:-1])
        else:
            error = self._call_meta(goal.task_id, goal_id)["result"]
            self._fail_chain(canvas.get("chain"), error, store_result=True)
            request = Context(id=goal.task_id, errbacks=canvas.get("link_error") or [], root_id=goal.task_id, args=[])
            if request.errbacks:
                self._call_task_errbacks(request, error, None)
        goals.mark_followed(self._database, goal_id)


def _told(error: Any) -> str:
    """Quote a stored failure: ours, or Celery's form."""
    if not isinstance(error, dict):
        return str(error)
    return str(error.get("message") or error.get("exc_message") or error)


def _is_ours(request: Any) -> bool:
    """Whether a request is for a worker of ours; Celery's parent calls the task ``name`` where it does not know it."""
    name = getattr(request, "task", None) or getattr(request, "name", None)
    return isinstance(name, str) and worker_of(name) is not None


def _is_stage(request: Any) -> bool:
    marker = getattr(request, HEADER, None)
    return isinstance(marker, dict) and not marker.get("call")


def _is_call(request: Any) -> bool:
    marker = getattr(request, HEADER, None)
    return isinstance(marker, dict) and bool(marker.get("call"))
