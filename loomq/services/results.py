"""The results of a goal's tasks as they arrive: those of an orchestrator's rounds, or of a pipeline's stages."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid5

from loomq.errors import DatabaseUnavailableError, GoalNotFoundError, WaitTimeoutError
from loomq.messages import TaskResult, TaskStatus, TokenUsage
from loomq.orchestrator.outline import Step
from loomq.queues.names import StageMessage
from loomq.services import inspect
from loomq.services.control import cancel
from loomq.store import details, events, goals, rounds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from uuid import UUID

    from sqlalchemy import Row

    from loomq.loom import Loom

logger = logging.getLogger(__name__)

_ENDED = {"done", "failed", "dead", "skipped", "cancelled"}
_POLL_S = 0.5  # in case a wake-up got lost
_STEP_S = 10.0
_ASTEP_S = 1.0  # a cancelled coroutine leaves a thread behind for so long at most
_WATCH_EVERY_S = 10.0


class ResultReader:
    """Read step by step what a goal's tasks give, each once, whatever becomes of the connection in between.

    Args:
        timeout: Seconds without a result after which to give up; ``None`` never does.
    """

    def __init__(self, loom: Loom, goal_id: UUID, timeout: float | None = None) -> None:
        self._loom = loom
        self._goal_id = goal_id
        self._timeout = timeout
        self._seen: set[tuple[UUID, str]] = set()
        self._waited_s = 0.0
        self._watched: dict[UUID, float] = {}
        self.is_over = False

    def step(self, within_s: float) -> list[TaskResult]:
        """Give the next results, or none if none came in time.

        Raises:
            GoalNotFoundError: There is no such goal, or no longer.
            WaitTimeoutError: Nothing came for ``timeout`` seconds.
            DatabaseUnavailableError: Postgres does not answer.
        """
        until = begun = time.monotonic()
        until += within_s if self._timeout is None else min(within_s, max(0.0, self._timeout - self._waited_s))
        found = self._present()
        if not found and not self.is_over:
            with self._loom.database.listen("loomq_ended", self._loom.settings.listen_url) as listener:
                while not found and not self.is_over and time.monotonic() < until:
                    about = self._watch()
                    found = self._present()
                    if not found and not self.is_over:
                        left = min(_POLL_S, max(0.0, until - time.monotonic()))
                        listener.wait(left, lambda payload: payload.split(" ", 1)[0] in about)  # noqa: B023
        # Time in which nobody asks does not count: whoever reads may take as long as he likes.
        self._waited_s = 0.0 if found else self._waited_s + time.monotonic() - begun
        if not self.is_over and self._timeout is not None and self._waited_s >= self._timeout:
            raise WaitTimeoutError(
                f"no task of goal {self._goal_id} has ended for {self._timeout:g} s; it goes on",
                hint=f"look: loomq show {self._goal_id}",
            )
        return found

    def _present(self) -> list[TaskResult]:
        """Give what has ended and was not given yet; the goal's own end is looked at first, or the last were missed."""
        state = goals.state_of(self._loom.database, self._goal_id)
        if state is None:
            raise GoalNotFoundError(f"there is no goal {self._goal_id}", hint="list them: loomq list")
        sources = self._sources()
        new = [
            task
            for task in rounds.tasks(self._loom.database, list(sources), outputs=False)
            if task.state in _ENDED and (task.goal_id, task.name) not in self._seen
        ]
        whole = {(one.goal_id, one.name): one for one in self._with_outputs(new)}
        self._seen |= whole.keys()
        self.is_over = state != "open"
        ordered = sorted(whole.values(), key=lambda task: (task.ended_at, task.place or 0))
        tokens = {goal_id: details.tokens(self._loom.database, goal_id) for goal_id in {one.goal_id for one in ordered}}
        return [self._result(task, sources[task.goal_id], tokens[task.goal_id].get(task.name, {})) for task in ordered]

    def _sources(self) -> dict[UUID, int | None]:
        """Name the goals whose stages are the tasks, with their rounds: an orchestrator's, else the goal itself."""
        row = goals.get(self._loom.database, self._goal_id)
        if row is None or row.kind != "orchestrator":
            return {self._goal_id: None}
        found: dict[UUID, int | None] = {}
        for one in rounds.of_goal(self._loom.database, self._goal_id):
            step = Step.of(one.stage)
            found[one.goal_id] = step.round if step else None
        return found

    def _with_outputs(self, tasks: list[Row[Any]]) -> list[Row[Any]]:
        if not tasks:
            return []
        names = {task.name for task in tasks}
        wanted = {(task.goal_id, task.name) for task in tasks}
        if any(task.fan_out is not None for task in tasks):  # what its items gave is put together
            return [
                task for task in goals.stages_of(self._loom.database, self._goal_id, items=names) if task.name in names
            ]
        found = rounds.tasks(self._loom.database, list({task.goal_id for task in tasks}), names=names)
        return [task for task in found if (task.goal_id, task.name) in wanted]

    def _result(self, task: Row[Any], number: int | None, tokens: dict[str, int]) -> TaskResult:
        row = goals.get(self._loom.database, task.goal_id)
        stage = self._loom.plans.get(row.snapshot).stages[task.name] if row is not None else None
        told = inspect.stage_view(task, stage)
        return TaskResult(
            task_id=uuid5(task.goal_id, task.name),
            parent_task_id=self._goal_id,
            worker_type=told.pipeline or task.worker,
            status=TaskStatus(told.status),
            output=task.output if task.state == "done" else None,
            error=task.error,
            model_used=task.model_used,
            token_usage=TokenUsage(**tokens),
            processing_time_ms=task.processing_time_ms or 0,
            completed_at=task.ended_at,
            metadata={
                "task": task.name,
                "round": number,
                "goal_id": str(task.goal_id),
                "task_id": StageMessage(task.goal_id, task.name).id,
                "reason": task.reason,
            },
            degraded_modes=tuple((task.notes or {}).get("degraded_modes", ())),
        )

    def _watch(self) -> set[str]:
        """Ask to be woken for the goal and its rounds."""
        now = time.monotonic()
        every = {self._goal_id, *self._sources()}
        for goal_id in every:
            if now - self._watched.get(goal_id, float("-inf")) > _WATCH_EVERY_S:
                events.watch(self._loom.database, goal_id)
                self._watched[goal_id] = now
        return {str(goal_id) for goal_id in every}


def streamed(
    loom: Loom, goal_id: UUID, timeout: float | None = None, *, keep_running: bool = False
) -> Iterator[TaskResult]:
    """Give results as they arrive; arguments and errors as ``GoalHandle.results``."""
    reader = ResultReader(loom, goal_id, timeout)
    try:
        while not reader.is_over:
            yield from reader.step(_STEP_S)
    except (GeneratorExit, KeyboardInterrupt):  # whoever reads has left
        if not keep_running:
            _give_up(loom, goal_id)
        raise


async def astreamed(
    loom: Loom,
    goal_id: UUID,
    timeout: float | None = None,  # noqa: ASYNC109  (the twin of streamed)
    *,
    keep_running: bool = False,
) -> AsyncIterator[TaskResult]:
    """Give them without blocking the event loop."""
    reader = ResultReader(loom, goal_id, timeout)
    try:
        while not reader.is_over:
            for result in await asyncio.to_thread(reader.step, _ASTEP_S):
                yield result
    except (GeneratorExit, asyncio.CancelledError):  # whoever reads has left
        if not keep_running:
            await asyncio.shield(asyncio.to_thread(_give_up, loom, goal_id))
        raise


def heard(loom: Loom, goal_id: UUID, on_result: Callable[[TaskResult], None]) -> Callable[[], None]:
    """Give what is to be called again and again while a goal is waited for: it tells each result once."""
    reader = ResultReader(loom, goal_id)

    def tell() -> None:
        for result in reader.step(0):
            on_result(result)

    return tell


def _give_up(loom: Loom, goal_id: UUID) -> None:
    """Cancel what nobody waits for any more."""
    try:
        cancel(loom, goal_id, reason="whoever read its results has left")
    except DatabaseUnavailableError as error:
        logger.warning("goal %s is not cancelled, though nobody reads its results any more: %s", goal_id, error.message)
