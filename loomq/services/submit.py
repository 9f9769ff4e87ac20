"""Hand in goals and wait for them: the public face of Python code."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from loomq.errors import GoalCancelledError, GoalFailedError, WaitTimeoutError
from loomq.loom import Loom
from loomq.messages import ModelTier, OrchestratorGoal, TaskPriority, TaskStatus
from loomq.services import inspect
from loomq.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from loomq.services.inspect import StageView

_POLL_S = 1.0


@lru_cache(maxsize=1)
def default_loom() -> Loom:
    """Give the Loom of the project that the current folder belongs to; made on first use, once a process."""
    return Loom(Settings.load())


class GoalHandle:
    """A goal that was accepted: ask how it is, wait for it.

    Args:
        loom: Where it lives.
        goal_id: Which one.
        created: False if an idempotency key led to an older goal.
    """

    def __init__(self, loom: Loom, goal_id: UUID, *, created: bool = True) -> None:
        self._loom = loom
        self.goal_id = goal_id
        self.created = created

    def __repr__(self) -> str:
        return f"GoalHandle({str(self.goal_id)!r})"

    def status(self) -> TaskStatus:
        """Say how the goal is.

        Raises:
            GoalNotFoundError: It is not in the database any more.
            DatabaseUnavailableError: Postgres does not answer.
        """
        return inspect.status(self._loom, self.goal_id)

    def stages(self) -> list[StageView]:
        """List the goal's stages, in the order in which they became ready."""
        return list(inspect.goal(self._loom, self.goal_id).stages)

    def result(
        self, timeout: float | None = None, *, on_change: Callable[[], None] | None = None, every_s: float = _POLL_S
    ) -> dict[str, Any]:
        """Wait for the goal and give its result: what its ``output`` selects, or every stage's output by name.

        Args:
            timeout: Seconds to wait; ``None`` waits without bound.
            on_change: Called again and again while waiting, for whoever shows progress.
            every_s: How often, in seconds, to call it and to look in case a wake-up got lost.

        Raises:
            GoalFailedError: It failed; the error carries the finished outputs.
            GoalCancelledError: It was cancelled.
            WaitTimeoutError: It has not ended yet; it goes on.
            DatabaseUnavailableError: Postgres went away; the goal is kept.
        """
        self._wait(timeout, on_change, every_s)
        view = inspect.goal(self._loom, self.goal_id)
        if view.status is TaskStatus.COMPLETED:
            return view.result
        error = view.error or {}
        kind = GoalCancelledError if view.status is TaskStatus.CANCELLED else GoalFailedError
        raise kind(
            f"goal {self.goal_id} {view.status}: {error.get('message', 'no error was recorded')}",
            hint=error.get("hint"),
            goal_id=str(self.goal_id),
            error=error,
            output=view.result,
        )

    async def aresult(self, timeout: float | None = None) -> dict[str, Any]:  # noqa: ASYNC109  (the twin of result)
        """Wait as ``result`` does, without blocking the event loop."""
        return await asyncio.to_thread(self.result, timeout)

    def _wait(self, timeout: float | None, on_change: Callable[[], None] | None, every_s: float) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        about_us = f"{self.goal_id} "
        with self._loom.database.listen("loomq_ended", self._loom.settings.listen_url) as listener:
            while not inspect.has_ended(self._loom, self.goal_id):
                left = every_s if until is None else min(every_s, until - time.monotonic())
                if left <= 0:
                    raise WaitTimeoutError(
                        f"goal {self.goal_id} has not ended within {timeout:g} s; it goes on",
                        hint=f"ask again, or look: loomq show {self.goal_id}",
                    )
                if on_change:
                    on_change()
                listener.wait(left, lambda payload: payload.startswith(about_us))


def submit_goal(
    instruction: str,
    *,
    pipeline: str,
    context: dict[str, Any] | None = None,
    priority: TaskPriority | str = TaskPriority.NORMAL,
    idempotency_key: str | None = None,
    deadline: datetime | timedelta | None = None,
    request_id: str | None = None,
    loom: Loom | None = None,
) -> GoalHandle:
    """Hand in a goal: it is written down before this returns, and runs from then on whatever happens here.

    With the broker down it is accepted all the same, and sent when the broker is back.

    Args:
        instruction: What is wanted, in words; mappings read it as ``goal.instruction``.
        pipeline: The name of a file in ``pipelines/``.
        context: Data for the mappings' ``goal.context``; JSON, up to 256 KB.
        priority: ``low``, ``normal``, ``high`` or ``critical``.
        idempotency_key: A second goal with the same key is the first one.
        deadline: When the goal must have ended, or how long it may take.
        request_id: The caller's own name for this request, kept with the goal.
        loom: Another project than that of the current folder.

    Raises:
        UnknownNameError: There is no such pipeline.
        PipelineValidationError: The context breaks the pipeline's ``input_schema``.
        SubmitUnavailableError: The goal could not be written down.
    """
    home = loom or default_loom()
    accepted = home.submitter.submit(
        OrchestratorGoal(
            instruction=instruction,
            pipeline=pipeline,
            context=context or {},
            priority=TaskPriority(priority),
            idempotency_key=idempotency_key,
            deadline=_deadline(deadline),
            request_id=request_id,
        )
    )
    return GoalHandle(home, accepted.goal_id, created=accepted.created)


def submit_task(
    worker: str,
    payload: dict[str, Any],
    *,
    tier: ModelTier | str | None = None,
    priority: TaskPriority | str = TaskPriority.NORMAL,
    idempotency_key: str | None = None,
    deadline: datetime | timedelta | None = None,
    loom: Loom | None = None,
) -> GoalHandle:
    """Hand in one task for one worker, as a goal of one stage; arguments and errors as ``submit_goal``.

    Args:
        worker: The name of a file in ``workers/``.
        payload: What the worker gets; checked against its ``input_schema``.
        tier: Another tier than the worker's default.
    """
    home = loom or default_loom()
    accepted = home.submitter.submit(
        OrchestratorGoal(
            instruction="",
            context=payload,
            priority=TaskPriority(priority),
            idempotency_key=idempotency_key,
            deadline=_deadline(deadline),
        ),
        worker=worker,
        tier=str(ModelTier(tier)) if tier else None,
    )
    return GoalHandle(home, accepted.goal_id, created=accepted.created)


def _deadline(given: datetime | timedelta | None) -> datetime | None:
    if isinstance(given, timedelta):
        return datetime.now(UTC) + given
    return given
