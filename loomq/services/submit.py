"""Hand in goals and wait for them: the public face of Python code."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import ValidationError

from loomq.errors import GoalCancelledError, GoalFailedError, WaitTimeoutError
from loomq.loom import Loom
from loomq.messages import Budget, ModelTier, OrchestratorGoal, TaskPriority, TaskStatus
from loomq.services import control, events, inspect, results
from loomq.services.transcripts import Session
from loomq.settings import Settings
from loomq.store import goals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

    from loomq.messages import TaskResult
    from loomq.services.events import GoalEvent
    from loomq.services.inspect import StageView

_POLL_S = 1.0
_AWAITED_S = 10.0  # for how long one asks to be notified; half of it before one asks again
_HELD_S = 0.05  # somebody has the goal's row in hand, as whoever ends it does


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
        self,
        timeout: float | None = None,
        *,
        on_change: Callable[[], None] | None = None,
        every_s: float = _POLL_S,
        on_result: Callable[[TaskResult], None] | None = None,
    ) -> dict[str, Any]:
        """Wait for the goal and give its result: what its ``output`` selects, or every stage's output by name.

        An orchestrator's is ``succeeded``, ``failed`` and ``metadata``, with ``synthesis``, ``confidence``,
        ``conflicts`` and ``gaps`` if a model draws the conclusion.

        Args:
            timeout: Seconds to wait; ``None`` waits without bound.
            on_change: Called again and again while waiting, for whoever shows progress.
            every_s: How often, in seconds, to call it and to look in case a wake-up got lost.
            on_result: Called with the result of each task, or of each stage of a pipeline, soon after its end.

        Raises:
            GoalFailedError: It failed; the error carries the finished outputs.
            GoalCancelledError: It was cancelled.
            WaitTimeoutError: It has not ended yet; it goes on.
            DatabaseUnavailableError: Postgres went away; the goal is kept.
        """
        tell = results.heard(self._loom, self.goal_id, on_result) if on_result else None
        self._wait(timeout, _both(on_change, tell), every_s)
        if tell is not None:
            tell()
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

    def events(self, after: int = 0, timeout: float | None = None) -> Iterator[GoalEvent]:
        """Follow what happens to the goal, from its beginning to its end, or from where somebody stopped.

        Nothing is lost however late or often one begins, and a lost connection is made anew.

        Args:
            after: The ``seq`` of the last event that is known already.
            timeout: Seconds without an event after which to give up; ``None`` waits without bound.

        Raises:
            GoalNotFoundError: The goal is not in the database any more.
            WaitTimeoutError: Nothing happened for so long; the goal goes on.
            DatabaseUnavailableError: Postgres stayed away for so long, or did not answer at the start.
        """
        return events.followed(self._loom, self.goal_id, after, timeout)

    def aevents(self, after: int = 0, timeout: float | None = None) -> AsyncIterator[GoalEvent]:
        """Follow as ``events`` does, without blocking the event loop; each reader keeps a thread busy."""
        return events.afollowed(self._loom, self.goal_id, after, timeout)

    def results(self, timeout: float | None = None, *, keep_running: bool = False) -> Iterator[TaskResult]:
        """Give the results of the goal's tasks as they arrive: an orchestrator's tasks, or a pipeline's stages.

        Leaving early, by ``break`` or by an exception, cancels the rest of the goal.

        Args:
            timeout: Seconds without a result after which to give up; ``None`` waits without bound.
            keep_running: Let the goal go on when one leaves early.

        Raises:
            GoalNotFoundError: The goal is not in the database any more.
            WaitTimeoutError: Nothing came for so long.
            DatabaseUnavailableError: Postgres does not answer.
        """
        return results.streamed(self._loom, self.goal_id, timeout, keep_running=keep_running)

    def aresults(self, timeout: float | None = None, *, keep_running: bool = False) -> AsyncIterator[TaskResult]:
        """Give them as ``results`` does, without blocking the event loop; leave it early through ``aclosing``."""
        return results.astreamed(self._loom, self.goal_id, timeout, keep_running=keep_running)

    def cancel(self, reason: str = "somebody cancelled it") -> bool:
        """End the goal: what waits is cancelled, what runs is interrupted, what is finished is kept.

        Returns:
            False if it had ended before.
        """
        return control.cancel(self._loom, self.goal_id, reason=reason)

    def pause(self) -> bool:
        """Start nothing more of the goal until it is resumed; what runs goes on to its end. False if it has ended."""
        return control.pause(self._loom, self.goal_id)

    def resume(self) -> bool:
        """Let the paused goal go on; False if it was not paused, or has ended."""
        return control.resume(self._loom, self.goal_id)

    def rerun(
        self, *, start: str | None = None, changes: Mapping[str, Any] | None = None, current: bool = False
    ) -> GoalHandle:
        """Run the goal, which has ended, once more as a new one that takes over the results that still stand.

        Args:
            start: Run this stage and all below it again; ``None`` runs what has no result.
            changes: Other values for keys of the context, dotted.
            current: Run the pipeline as the project's files say now; what has changed in them runs again.

        Raises:
            UnknownNameError: There is no such stage.
            GoalStateError: The goal still runs, or there is nothing to run again.
            PipelineValidationError: The new context breaks the pipeline's contract.
            SubmitUnavailableError: The new goal could not be written down.
        """
        return GoalHandle(
            self._loom, control.rerun(self._loom, self.goal_id, start=start, changes=changes, current=current)
        )

    def _wait(self, timeout: float | None, on_change: Callable[[], None] | None, every_s: float) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        about_us, within_s = f"{self.goal_id} ", max(_AWAITED_S, 4 * every_s)
        with self._loom.database.listen("loomq_ended", self._loom.settings.listen_url) as listener:
            while True:
                state, is_asked = goals.await_end(self._loom.database, self.goal_id, within_s)
                if state != "open":  # or it is gone, which whoever reads its result will say
                    return
                soon_s = every_s if is_asked else min(every_s, _HELD_S)
                left = soon_s if until is None else min(soon_s, until - time.monotonic())
                if left <= 0:
                    raise WaitTimeoutError(
                        f"goal {self.goal_id} has not ended within {timeout:g} s; it goes on",
                        hint=f"ask again, or look: loomq show {self.goal_id}",
                    )
                if on_change:
                    on_change()
                listener.wait(left, lambda payload: payload.startswith(about_us))


def _both(one: Callable[[], None] | None, other: Callable[[], None] | None) -> Callable[[], None] | None:
    """Give a callable that calls both, as far as they are there."""
    called = [each for each in (one, other) if each is not None]

    def call() -> None:
        for each in called:
            each()

    return call if called else None


def submit_goal(
    instruction: str,
    *,
    pipeline: str,
    context: dict[str, Any] | None = None,
    priority: TaskPriority | str = TaskPriority.NORMAL,
    idempotency_key: str | None = None,
    deadline: datetime | timedelta | None = None,
    session: UUID | str | Session | None = None,
    request_id: str | None = None,
    budget: Budget | Mapping[str, Any] | None = None,
    loom: Loom | None = None,
) -> GoalHandle:
    """Hand in a goal: it is written down before this returns, and runs from then on whatever happens here.

    With the broker down it is accepted all the same, and sent when the broker is back.

    Args:
        instruction: What is wanted, in words; mappings read it as ``goal.instruction``.
        pipeline: The name of a file in ``pipelines/``, a pipeline's or an orchestrator's.
        context: Data for the mappings' ``goal.context``; JSON, up to 256 KB.
        priority: ``low``, ``normal``, ``high`` or ``critical``.
        idempotency_key: A second goal with the same key is the first one.
        deadline: When the goal must have ended, or how long it may take.
        session: The session that it belongs to, or its id; one that is new is made.
        request_id: The caller's own name for this request, kept with the goal.
        budget: What it may spend on language models: ``{"max_cost": dollars, "max_tokens": count}``, or either.
        loom: Another project than that of the current folder.

    Raises:
        UnknownNameError: There is no such pipeline.
        PipelineValidationError: The context breaks the pipeline's ``input_schema``.
        SubmitUnavailableError: The goal could not be written down.
        ValueError: The session or the budget is none.
    """
    home = loom or default_loom()
    accepted = home.submitter.submit(
        _goal(
            instruction,
            pipeline=pipeline,
            context=context,
            priority=priority,
            idempotency_key=idempotency_key,
            deadline=deadline,
            session=session,
            request_id=request_id,
            budget=budget,
        )
    )
    return GoalHandle(home, accepted.goal_id, created=accepted.created)


def submit_goals(goals: Iterable[Mapping[str, Any]], *, loom: Loom | None = None) -> list[GoalHandle]:
    """Hand in many goals, several hundred in one transaction: much faster than one by one.

    Args:
        goals: For each the arguments of ``submit_goal`` by name.
        loom: Another project than that of the current folder.

    Returns:
        A handle for each, in order.

    Raises:
        UnknownNameError, PipelineValidationError, ValueError, TypeError: As ``submit_goal``, for any of them; then none
            is accepted.
        SubmitUnavailableError: The database went away: those before may have been accepted. With idempotency keys the
            call can be made again.
    """
    home = loom or default_loom()
    wanted = [_goal(**one) for one in goals]
    return [GoalHandle(home, one.goal_id, created=one.created) for one in home.submitter.submit_many(wanted)]


def _goal(
    instruction: str,
    *,
    pipeline: str,
    context: dict[str, Any] | None = None,
    priority: TaskPriority | str = TaskPriority.NORMAL,
    idempotency_key: str | None = None,
    deadline: datetime | timedelta | None = None,
    session: UUID | str | Session | None = None,
    request_id: str | None = None,
    budget: Budget | Mapping[str, Any] | None = None,
) -> OrchestratorGoal:
    return OrchestratorGoal(
        instruction=instruction,
        pipeline=pipeline,
        context=context or {},
        priority=TaskPriority(priority),
        idempotency_key=idempotency_key,
        deadline=_deadline(deadline),
        session_id=_session_id(session),
        request_id=request_id,
        budget=_budget(budget),
    )


def submit_task(
    worker: str,
    payload: dict[str, Any],
    *,
    tier: ModelTier | str | None = None,
    priority: TaskPriority | str = TaskPriority.NORMAL,
    idempotency_key: str | None = None,
    deadline: datetime | timedelta | None = None,
    session: UUID | str | Session | None = None,
    budget: Budget | Mapping[str, Any] | None = None,
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
            session_id=_session_id(session),
            budget=_budget(budget),
        ),
        worker=worker,
        tier=str(ModelTier(tier)) if tier else None,
    )
    return GoalHandle(home, accepted.goal_id, created=accepted.created)


def _session_id(given: UUID | str | Session | None) -> UUID | None:
    if isinstance(given, Session):
        return given.session_id
    try:
        return UUID(given) if isinstance(given, str) else given
    except ValueError:
        raise ValueError(f"a session is given as such, or by its whole id; not as {given!r}") from None


def _budget(given: Budget | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if given is None:
        return None
    try:
        budget = Budget.model_validate(given)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ValueError(f'a budget is given as {{"max_cost": dollars, "max_tokens": count}}: {told}') from None
    return budget.model_dump(exclude_none=True) or None


def _deadline(given: datetime | timedelta | None) -> datetime | None:
    if isinstance(given, timedelta):
        return datetime.now(UTC) + given
    return given
