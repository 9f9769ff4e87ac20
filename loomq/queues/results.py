"""Celery's result backend over the rows that goals already have: joins are theirs, waits wake by ``LISTEN``.

A loomq worker's result is its goal's stage; only tasks that are not ours keep a row of their own here. A chord is
counted in the transaction that stores the part's result, so no crash can lose a part, and no ``chord_unlock`` polls.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery import states
from celery.backends.base import BaseBackend
from celery.canvas import maybe_signature
from celery.exceptions import ChordError, TimeLimitExceeded, WorkerLostError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import GroupResult, result_from_tuple
from celery.utils.serialization import create_exception_cls

from loomq.queues.names import HEADER, STAGE_GROUP, worker_of
from loomq.store import goals, results

if TYPE_CHECKING:
    from loomq.store.engine import Database

CALL_KEY = "task:"  # an idempotency key that leads from Celery's task id to the goal of a raw call
_LOST = (WorkerLostError, TimeLimitExceeded)
_STATES = {"done": states.SUCCESS, "failed": states.FAILURE, "cancelled": states.REVOKED, "open": states.PENDING}
_POLL_S = 1.0
_SIX_MONTHS_S = 180 * 86400


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
        if _is_ours(request) and state not in states.PROPAGATE_STATES:
            return result
        body = self._get_result_meta(result, state, traceback, request)
        results.put(self._database, task_id, state, {**body, "task_id": task_id})
        return result

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        pending = {"task_id": task_id, "status": states.PENDING, "result": None}
        if ":" in task_id:  # a stage's message: its state is the goal's to tell
            return pending
        goal_id = goals.find_by_key(self._database, CALL_KEY + task_id)
        if goal_id is not None:
            return self._call_meta(task_id, goal_id)
        stored = results.get(self._database, task_id)
        return dict(self.meta_from_decoded(stored)) if stored else pending

    def _call_meta(self, task_id: str, goal_id: Any) -> dict[str, Any]:
        goal = goals.get(self._database, goal_id)
        stage = goals.stages_of(self._database, goal_id)[0]
        if goal is None:
            return {"task_id": task_id, "status": states.PENDING, "result": None}
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
        with self._database.listen(self.app.loom_settings.listen_url) as connection:
            connection.execute("LISTEN loomq_ended")
            while True:
                meta: dict[str, Any] = self.get_task_meta(task_id)
                if meta["status"] in states.READY_STATES:
                    return meta
                left = _POLL_S if until is None else min(_POLL_S, until - time.monotonic())
                if left <= 0:
                    raise CeleryTimeoutError("The operation timed out.")
                if on_interval:
                    on_interval()
                for note in connection.notifies(timeout=left):
                    if note.payload.endswith(task_id):
                        break

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
        """Drop what Celery itself kept here and nobody will ask for any more; goals are ``loomq prune``'s."""
        results.drop_older(self._database, self.expires or _SIX_MONTHS_S)

    # Ends of tasks, and joins

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = states.SUCCESS
    ) -> None:
        """Take note of a success; a worker's is in its row already, and so is its part of a chord."""
        super().mark_as_done(task_id, result, request, store_result=store_result, state=state)

    def mark_as_failure(
        self, task_id: str, exc: Any, traceback: Any = None, request: Any = None, **options: Any
    ) -> None:
        """Take note of a failure; one that Celery's parent process reports ends nothing, it only frees the lease."""
        if _is_ours(request):
            if isinstance(exc, _LOST):
                self.app.runner.process_lost()
                return
            if _is_stage(request):
                return
            options["store_result"] = False
        super().mark_as_failure(task_id, exc, traceback=traceback, request=request, **options)

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
            return
        if _is_ours(request):
            full = bool(outcome and outcome.chord_full) or state in states.PROPAGATE_STATES
        else:
            position = request.group_index or 0
            full = results.add_part(
                self._database, request.group, request.id, position, state, self.encode_result(result, state)
            )
        if full:
            self.send_chord_body(request.group, request.chord)

    def send_chord_body(self, group_id: str, body: Any = None) -> None:
        """Send a full chord's body with its header's results, or fail it with the header's first failure.

        It may be sent twice (by the last part and by the sweeper); the body's task id makes it one goal.

        Args:
            group_id: The chord.
            body: Its body, if the caller has it in hand.
        """
        body = maybe_signature(body or dict(results.full_chords(self._database, 0)).get(group_id), app=self.app)
        if body is None:
            return
        parts = results.chord_parts(self._database, group_id)
        failed = next(((task_id, error) for task_id, state, error in parts if state != states.SUCCESS), None)
        if failed:
            message = (failed[1] or {}).get("message") or failed[1]
            self.chord_error_from_stack(body, ChordError(f"Dependency {failed[0]} raised {message}"))
        else:
            body.apply_async(([result for _, _, result in parts],))
        results.mark_dispatched(self._database, group_id)


def _is_ours(request: Any) -> bool:
    return worker_of(getattr(request, "task", None)) is not None


def _is_stage(request: Any) -> bool:
    marker = getattr(request, HEADER, None)
    return isinstance(marker, dict) and not marker.get("call")
