"""What comes after the end of a stage: its children are sent or skipped, and who waits for its goal is told."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from loomq.errors import (
    ConfigError,
    EnvironmentNotReadyError,
    GoalCancelledError,
    InlineValueError,
    LoomqError,
    PipelineValidationError,
)
from loomq.inline import inline_json
from loomq.runs.about import about
from loomq.runs.opening import why_skipped
from loomq.runs.result import result_of
from loomq.store import goals, openings, rounds, stages
from loomq.store.stages import StageKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from loomq.runs.plan import Plan, StagePlan
    from loomq.runs.publish import Publisher
    from loomq.runs.snapshot import PlanCache
    from loomq.settings import Settings
    from loomq.store.engine import Database
    from loomq.store.stages import Outcome

logger = logging.getLogger(__name__)


class Sequel:
    """Do what follows, once the rows say that a stage has ended.

    Nothing here decides: whatever a dying process leaves undone, the sweeper finds in the rows.
    """

    def __init__(self, settings: Settings, database: Database, plans: PlanCache, publisher: Publisher) -> None:
        self._settings = settings
        self._database = database
        self._plans = plans
        self._publisher = publisher

    def room(self, plan: Plan, name: str, carried: Sequence[str], priority: int) -> dict[str, int]:
        """Say how many messages the queues of a stage's children take; those that may be skipped are not sent at once.

        Args:
            priority: The goal's level.

        Returns:
            By ``worker.tier.level``, as the store wants it.
        """
        below = [child for child in plan.graph.children[name] if child not in carried and child not in plan.unsure]
        children = [plan.stages[child] for child in below]
        places = [
            (child.worker.name, child.tier, priority if child.priority is None else child.priority)
            for child in children
        ]
        room = self._publisher.windows.room(places) if places else {}
        return {f"{worker}.{tier}.{level}": free for (worker, tier, level), free in room.items()}

    def after(
        self,
        key: StageKey,
        plan: Plan,
        outcome: Outcome,
        priority: int,
        carried: Sequence[str] = (),
        *,
        frees: bool = True,
        is_part: bool = True,
    ) -> None:
        """Go on from a stage that has ended, or failed with its goal going on.

        Args:
            priority: The goal's level.
            carried: Stages that the message in hand publishes by itself.
            frees: Whether the stage's place is given to others; else the caller does it.
            is_part: Whether the goal may be the work of another one's stage.
        """
        try:
            self._after(key, plan, outcome, priority, carried, frees=frees, is_part=is_part)
        except EnvironmentNotReadyError as error:
            logger.warning("%s; what follows stage %s is left to the sweeper", error.message, key.name)

    def _after(
        self,
        key: StageKey,
        plan: Plan,
        outcome: Outcome,
        priority: int,
        carried: Sequence[str],
        *,
        frees: bool,
        is_part: bool,
    ) -> None:
        ours = [name for name in outcome.published if name not in carried]
        if ours:
            self._publisher.publish(key.goal_id, plan, ours, priority, outcome.bulk)
        ended = outcome.goal_ended
        unsure = [name for name in outcome.held if name in plan.unsure]
        if unsure:
            ended |= self._decide(key.goal_id, plan, unsure)
        if plan.window is not None and not ended:
            ended |= self._move_window(key.goal_id, plan)
        no_room_asked = key.item >= 0 or outcome.verdict in {"continued", "fallback"}
        self._top_up(plan, [name for name in outcome.held if name not in plan.unsure], limited=not no_room_asked)
        if frees:
            self.freed(plan.stages[key.name], backlog=outcome.backlog or outcome.verdict in {"continued", "fallback"})
        if ended:
            self.goal_ended(key.goal_id, plan, is_part=is_part)

    def move_window(self, round_id: UUID) -> None:
        """Let the next tasks of a round go, if whoever ended the last one died before it could."""
        row = goals.get(self._database, round_id)
        if row is not None:
            plan = self._plans.get(row.snapshot)
            if self._move_window(round_id, plan):
                self.goal_ended(round_id, plan)

    def _move_window(self, round_id: UUID, plan: Plan) -> bool:
        """Let as many tasks of a round go as its window takes; one that is skipped leaves its place to the next.

        Returns:
            Whether the round has ended with it.
        """
        ended = False
        while names := rounds.let_go(self._database, round_id):
            ended |= self._decide(round_id, plan, names)
        return ended

    def _decide(self, goal_id: UUID, plan: Plan, names: Sequence[str]) -> bool:
        """Skip those of some ready stages that need not run, and what that makes ready in turn; send the others.

        Done here and not when their messages are taken, since a skip must not wait behind a backlog.

        Returns:
            Whether the goal has ended with it.
        """
        row = goals.get(self._database, goal_id)
        if row is None:
            return False
        goal, todo, runs, ended = about(row), list(names), [], False
        while todo:
            name = todo.pop()
            stage = plan.stages[name]
            if name not in plan.unsure:
                runs.append(name)
                continue
            asked = tuple(dict.fromkeys((*stage.needs, *stage.reads)))
            reason = why_skipped(stage, goal, openings.inputs(self._database, goal_id, asked))
            if reason is None:
                runs.append(name)
                continue
            outcome = openings.skip(self._database, StageKey(goal_id, name), None, reason)
            todo += [child for child in outcome.held if child in plan.unsure]
            runs += [child for child in outcome.held if child not in plan.unsure]
            ended |= outcome.goal_ended
        self._top_up(plan, runs)
        return ended

    def freed(self, stage: StagePlan, *, backlog: bool = True, light: bool = False) -> None:
        """Let others have the place that a stage has had.

        Args:
            backlog: Whether work of the stage's own queue waits.
            light: Whether slots take much of it at a time by themselves.
        """
        try:
            for route in {(one.worker.name, one.tier) for one in (stage, stage.other or stage)}:
                share = self._publisher.share_of(*route)
                if share is not None:
                    self._publisher.feed(share, route)
                elif backlog:
                    self._publisher.top_up(*route, at_least=self._settings.window_min // 2, light=light)
        except EnvironmentNotReadyError as error:
            logger.warning("%s; who waits for the place of stage %s is left to the sweeper", error.message, stage.name)

    def _top_up(self, plan: Plan, names: Iterable[str], *, limited: bool = False) -> None:
        """Send stages that wait for room on their queues.

        Args:
            limited: Only those that are under a limit; of the others it is known that there is none.
        """
        for route in {(plan.stages[name].worker.name, plan.stages[name].tier) for name in names}:
            if not limited or self._publisher.share_of(*route):
                self._publisher.top_up(*route)

    def cancel(self, goal_id: UUID, reason: str) -> bool:
        """End a goal: what waits is cancelled, what runs is interrupted, what is finished is kept.

        Args:
            reason: Why, for whoever looks at the goal.

        Returns:
            False if it had ended before, or is not there.
        """
        row = goals.get(self._database, goal_id)
        error = {"type": "GoalCancelledError", "message": reason, "retryable": False}
        if row is None or not goals.end(self._database, goal_id, "cancelled", error):
            return False
        try:
            self.goal_ended(goal_id, self._plans.get(row.snapshot))
        except (ConfigError, EnvironmentNotReadyError) as fault:
            logger.warning("%s; what follows is left to the sweeper", fault.message)
        return True

    def goal_ended(self, goal_id: UUID, plan: Plan, *, is_part: bool = True) -> None:
        """Let the next goal of a limited pipeline go, and tell the stage that this goal was the work of.

        Args:
            is_part: Whether there may be such a stage.
        """
        if plan.max_concurrent_goals is not None:
            self.admit(plan)
        row = goals.get(self._database, goal_id) if is_part else None
        if row is not None and row.parent_goal is not None:
            self._tell_parent(row, plan)

    def admit(self, plan: Plan) -> None:
        """Send the first stages of goals that may begin now."""
        if goals.admit(self._database, plan.name):
            self._top_up(plan, [name for name in plan.stages if not plan.graph.parents[name]])

    def close(self, goal_id: UUID) -> None:
        """Do what follows from the end of a goal whose process died before it could."""
        row = goals.get(self._database, goal_id)
        if row is not None and row.state != "open":
            self.goal_ended(goal_id, self._plans.get(row.snapshot))

    def _tell_parent(self, row: Any, plan: Plan) -> None:
        """End the stage that a goal was the work of, with the goal's result or its failure."""
        parent = goals.get(self._database, row.parent_goal)
        if parent is None or row.state == "open":
            return
        key = StageKey(row.parent_goal, row.parent_stage, row.parent_item)
        above = self._plans.get(parent.snapshot)
        try:
            text = self._told_of_round(row) if plan.kind == "round" else self._result(row, plan, key)
        except EnvironmentNotReadyError:
            raise  # says nothing of the goal
        except LoomqError as error:
            fault = {**error.to_json(), "stage": key.name, "goal_id": str(row.id), "retryable": False}
            outcome = stages.fail(self._database, key, row.id, error=fault, retryable=False)
        else:
            room = self.room(above, key.name, (), parent.priority) if key.item < 0 else {}
            outcome = stages.complete(self._database, key, row.id, output=text, room=room)
        if outcome.verdict not in {"fenced", "retried"}:
            self.after(key, above, outcome, parent.priority)

    def _told_of_round(self, row: Any) -> str:
        """Say how a round ended: what its tasks gave stays where it is, and failures are the next round's business."""
        counts = rounds.counts(self._database, row.id)
        total, done = sum(counts.values()), counts.get("done", 0)
        return json.dumps({"goal_id": str(row.id), "total": total, "succeeded": done, "failed": total - done})

    def _result(self, row: Any, plan: Plan, key: StageKey) -> str:
        if row.state != "done":
            error = row.error or {}
            message = f"stage {key.name}: its goal {row.id} {row.state}: {error.get('message', row.state)}"
            raise (
                GoalCancelledError(message)
                if row.state == "cancelled"
                else PipelineValidationError(message, stage=key.name, hint=f"look at it: loomq show {row.id}")
            )
        finished = openings.inputs(self._database, row.id, list(plan.stages))
        try:
            return inline_json(
                result_of(self._database, plan, about(row), finished),
                what=f"the result of goal {row.id}",
                limit_bytes=self._settings.max_inline_bytes,
            )
        except InlineValueError as error:
            raise PipelineValidationError(error.message, stage=key.name, hint=error.hint) from error
