"""Accept a goal: one transaction writes it down, then one publish, which may fail without harm."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from loomq.catalog import spec_hash
from loomq.errors import (
    DatabaseUnavailableError,
    EnvironmentNotReadyError,
    PipelineValidationError,
    SubmitUnavailableError,
    UnknownNameError,
)
from loomq.inline import inline_json
from loomq.queues.names import level
from loomq.queues.routing import unknown_name
from loomq.runs.freeze import freeze, freeze_worker
from loomq.store import goals
from loomq.store.goals import NewGoal, NewStage, Submission

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from loomq.catalog import Catalog
    from loomq.configs import Configs
    from loomq.messages import OrchestratorGoal
    from loomq.runs.plan import Plan
    from loomq.runs.publish import Publisher
    from loomq.runs.snapshot import PlanCache
    from loomq.settings import Settings
    from loomq.store.engine import Database
    from loomq.store.stages import StageKey


_AT_ONCE = 250  # goals a transaction
_MOST_STORED = 10_000  # snapshots that a process knows to be stored; rounds bring their own


@dataclass(frozen=True, slots=True)
class Accepted:
    """A goal that is written down.

    Args:
        created: False if the idempotency key belonged to an older goal, whose id this then is.
        published: Whether its first messages are on the broker; the sweeper sends them otherwise.
    """

    goal_id: UUID
    plan: Plan
    created: bool
    published: bool


@dataclass(frozen=True, slots=True)
class Call:
    """What makes a goal out of a raw Celery call: its task id and what the canvas attached."""

    task_id: str
    canvas: dict[str, Any]
    key: str


@dataclass(frozen=True, slots=True)
class Rerun:
    """An earlier goal, and its stages that stay as they were, with their state."""

    goal_id: UUID
    reused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A goal that was checked and not written yet."""

    goal: OrchestratorGoal
    plan: Plan
    rows: list[NewStage]
    roots: list[NewStage]
    row: NewGoal
    snapshot: str
    body: dict[str, Any]
    key: str | None
    call: Call | None

    @property
    def is_limited(self) -> bool:
        """Whether it may have to wait for other goals of its pipeline."""
        return self.plan.max_concurrent_goals is not None

    def submission(self, room: dict[tuple[str, str, int], int], not_before: datetime | None) -> Submission:
        """Say what is written; first stages that are published take their places in ``room``."""
        begin, begun = {row.name for row in self.roots}, set[tuple[str, str, int]]()
        rows = [_first_state(row, room, begun, not_before) if row.name in begin else row for row in self.rows]
        return Submission(self.row, rows, self.snapshot, self.body, self.key)


class Submitter:
    """Turn requests into goals.

    Args:
        configs: What may be asked for.
    """

    def __init__(
        self,
        settings: Settings,
        configs: Configs,
        database: Database,
        publisher: Publisher,
        plans: PlanCache,
    ) -> None:
        self._settings = settings
        self._configs = configs
        self._database = database
        self._publisher = publisher
        self._plans = plans
        self._snapshots: dict[tuple[str, str], tuple[Catalog, str, dict[str, Any]]] = {}
        self._stored: set[str] = set()

    def submit(
        self,
        goal: OrchestratorGoal,
        *,
        worker: str | None = None,
        tier: str | None = None,
        max_retries: int | None = None,
        timeout_s: float | None = None,
        not_before: datetime | None = None,
        call: Call | None = None,
        publish: bool = True,
        body: dict[str, Any] | None = None,
        parent: StageKey | None = None,
        rerun: Rerun | None = None,
        contract: bool = True,
    ) -> Accepted:
        """Write a goal down and publish its first stages.

        Args:
            goal: What is asked; ``goal.pipeline`` names the pipeline unless ``worker`` is given.
            worker: Run this one worker on ``goal.context`` instead of a pipeline.
            tier, max_retries, timeout_s: Overrides for a goal of one worker.
            not_before: When its first stages are due.
            call: The raw Celery call that this goal stands for, published by Celery itself.
            publish: False leaves the first stages ready in the database, for the sweeper.
            body: The snapshot to run, in place of the catalog's pipeline or worker.
            parent: The stage whose work the goal is.
            rerun: The earlier goal whose results it takes over.
            contract: False leaves the contract to whoever runs the stage: what cannot be refused any more is to fail.

        Raises:
            UnknownNameError: There is no such worker or pipeline.
            PipelineValidationError: The context breaks the pipeline's or the worker's contract.
            InlineValueError: The context is not JSON, or too large.
            SubmitUnavailableError: The goal could not be written down.
        """
        prepared = self._prepare(
            goal,
            worker=worker,
            tier=tier,
            max_retries=max_retries,
            timeout_s=timeout_s,
            call=call,
            body=body,
            parent=parent,
            rerun=rerun,
            contract=contract,
        )
        return self._accept([prepared], not_before=not_before, publish=publish)[0]

    def submit_many(self, goals: Sequence[OrchestratorGoal]) -> list[Accepted]:
        """Write many goals down, some hundreds a transaction, and publish as many as the queues take.

        Raises:
            UnknownNameError, PipelineValidationError, InlineValueError: As ``submit``; then none is accepted.
            SubmitUnavailableError: Some of them could not be written down.
        """
        prepared = [self._prepare(goal) for goal in goals]
        found: list[Accepted] = []
        for start in range(0, len(prepared), _AT_ONCE):
            found += self._accept(prepared[start : start + _AT_ONCE])
        return found

    def _prepare(
        self,
        goal: OrchestratorGoal,
        *,
        worker: str | None = None,
        tier: str | None = None,
        max_retries: int | None = None,
        timeout_s: float | None = None,
        call: Call | None = None,
        body: dict[str, Any] | None = None,
        parent: StageKey | None = None,
        rerun: Rerun | None = None,
        contract: bool = True,
    ) -> _Prepared:
        """Check a goal and work its rows out; arguments and errors as ``submit``."""
        snapshot, body = self._snapshot(goal.pipeline, worker) if body is None else (spec_hash(body), body)
        plan = self._plans.keep(snapshot, body)
        self._check(plan, goal, contract=contract)
        if worker is not None and tier is not None:
            self._check_tier(worker, tier)
        rows = self._stages(plan, goal, tier=tier, max_retries=max_retries, timeout_s=timeout_s, rerun=rerun)
        roots = [row for row in rows if not row.waits_for and row.state == "waiting"]
        if plan.window is not None:  # the others wait until it lets them go
            roots = sorted(roots, key=lambda row: -row.priority)[: plan.window]
        key = call.key if call else goal.idempotency_key
        return _Prepared(goal, plan, rows, roots, _row(plan, goal, call, parent, rerun), snapshot, body, key, call)

    def _accept(
        self, prepared: Sequence[_Prepared], *, not_before: datetime | None = None, publish: bool = True
    ) -> list[Accepted]:
        """Write goals down and publish their first stages."""
        if len(self._stored) > _MOST_STORED:
            self._stored.clear()
        due_now = not_before is None and publish
        places = [
            (row.worker, row.tier, row.priority)
            for one in prepared
            if due_now and not one.is_limited
            for row in one.roots
        ]
        # Of a single message there is at most one too many: then nobody waits for the broker first. That of a raw call
        # is Celery's to send, and it is not known when.
        is_single = len(places) == 1 and prepared[0].call is None
        room = self._publisher.windows.room(dict.fromkeys(places), as_seen=is_single) if places else {}
        found = self._write([one.submission(room if not one.is_limited else {}, not_before) for one in prepared])
        accepted = []
        for one, (submission, goal_id, created) in zip(prepared, found, strict=True):
            sent = [row.name for row in submission.stages if row.state == "published"]
            if created and sent and one.call is None:
                bulk = [row.name for row in submission.stages if row.bulk]
                self._publisher.publish(goal_id, one.plan, sent, level(one.goal.priority), bulk)
            accepted.append(Accepted(goal_id, one.plan, created, bool(sent)))
        if due_now:
            self._top_up([one for one, new in zip(prepared, accepted, strict=True) if new.created])
        if room and is_single:
            self._publisher.windows.look(places)
        return accepted

    def _top_up(self, prepared: Sequence[_Prepared]) -> None:
        """Send what is under a limit, if it may start; of the others it is known whether there was room."""
        routes = {
            (row.worker, row.tier)
            for one in prepared
            for row in one.roots
            if one.is_limited or self._publisher.share_of(row.worker, row.tier)
        }
        with suppress(EnvironmentNotReadyError):  # the goal is accepted, and the sweeper sends it
            for route in routes:
                self._publisher.top_up(*route)

    def _write(self, submissions: list[Submission]) -> list[tuple[Submission, UUID, bool]]:
        try:
            found = goals.submit(self._database, submissions, known_snapshots=self._stored)
        except DatabaseUnavailableError as error:
            raise SubmitUnavailableError(f"the goal was not accepted: {error.message}", hint=error.hint) from error
        return [(one, goal_id, created) for one, (goal_id, created) in zip(submissions, found, strict=True)]

    def _snapshot(self, pipeline: str | None, worker: str | None) -> tuple[str, dict[str, Any]]:
        kind, name = which = ("worker", worker) if worker is not None else ("pipeline or orchestrator", pipeline or "")
        catalog, kept = self._configs.project.catalog, self._snapshots.get(which)
        if kept is not None and kept[0] is catalog:
            return kept[1:]
        known = {*catalog.workers} if kind == "worker" else {*catalog.pipelines, *catalog.orchestrators}
        if name not in known and worker is not None and name in catalog.orchestrators:
            raise UnknownNameError(
                f'"{name}" is an orchestrator: it takes goals and no calls',
                hint=f'submit_goal("what you want", pipeline="{name}")',
            )
        if name not in known:
            raise unknown_name(kind, name, known)
        body = (freeze_worker if kind == "worker" else freeze)(catalog, name, allow=self._settings.import_allow)
        self._snapshots[which] = kept = (catalog, spec_hash(body), body)
        return kept[1:]

    def _check(self, plan: Plan, goal: OrchestratorGoal, *, contract: bool) -> None:
        limit = self._settings.max_inline_bytes
        inline_json(goal.context, what="the goal's context", limit_bytes=limit)
        inline_json(goal.instruction, what="the goal's instruction", limit_bytes=limit)
        written = plan.stages[plan.name].inputs if plan.kind == "worker" else plan.context_contract
        faults = written.errors(goal.context) if contract and written else []
        if faults:
            what = (
                f"the input of worker {plan.name}" if plan.kind == "worker" else f"the context of pipeline {plan.name}"
            )
            raise PipelineValidationError(
                f"{what} breaks its contract: {'; '.join(faults)}",
                hint=f"its file says what it takes: {plan.kind}s/{plan.name}.yaml",
            )

    def _check_tier(self, worker: str, tier: str) -> None:
        """A queue that no node serves would keep the task for ever without a word."""
        router = self._configs.router
        if router.queue(worker, tier) not in router.queues_in_use:
            raise UnknownNameError(
                f"nothing serves tier {tier} of worker {worker}",
                hint=f"name the tier in a pipeline's stage, or write default_model_tier: {tier} in the worker's file",
            )

    def _stages(
        self,
        plan: Plan,
        goal: OrchestratorGoal,
        *,
        tier: str | None,
        max_retries: int | None,
        timeout_s: float | None,
        rerun: Rerun | None,
    ) -> list[NewStage]:
        own = level(goal.priority)
        reused = rerun.reused if rerun else {}
        return [
            NewStage(
                name=stage.name,
                worker=stage.worker.name,
                tier=tier or stage.tier,
                priority=own if stage.priority is None else stage.priority,
                state=reused.get(stage.name, "waiting"),
                waits_for=len(set(plan.graph.parents[stage.name]) - reused.keys()),
                children=plan.graph.children[stage.name],
                reads=stage.reads,
                timeout_s=timeout_s or stage.timeout_s,
                max_retries=stage.max_retries if max_retries is None else max_retries,
                needs=stage.needs,
                fallback=None if stage.each else stage.fallback,  # else its items have it
                place=stage.place,
                max_parallel=plan.window,
            )
            for stage in plan.stages.values()
        ]


def _first_state(
    row: NewStage, room: dict[tuple[str, str, int], int], begun: set[tuple[str, str, int]], not_before: datetime | None
) -> NewStage:
    """Say how a first stage begins; a published one takes its place in ``room``, the first on a queue before others."""
    place = (row.worker, row.tier, row.priority)
    if room.get(place, 0) <= 0:
        return replace(row, state="ready", not_before=not_before.isoformat() if not_before else None)
    room[place] -= 1
    bulk = place in begun
    begun.add(place)
    return replace(row, state="published", bulk=bulk)


def _row(
    plan: Plan, goal: OrchestratorGoal, call: Call | None, parent: StageKey | None, rerun: Rerun | None
) -> NewGoal:
    reused = rerun.reused if rerun else {}
    return NewGoal(
        id=goal.goal_id,
        pipeline=plan.name,
        kind=plan.kind,
        instruction=goal.instruction,
        context=goal.context,
        priority=level(goal.priority),
        leaves_left=len(set(plan.graph.leaves) - reused.keys()),
        request_id=goal.request_id,
        session_id=goal.session_id,
        deadline=goal.deadline,
        budget=goal.budget,
        task_id=call.task_id if call else None,
        canvas=json.loads(json.dumps(call.canvas)) if call else None,
        on_failure="continue_partial" if plan.goes_on else "fail",
        timeout_s=plan.goal_timeout_s,
        max_concurrent=plan.max_concurrent_goals,
        parent=(parent.goal_id, parent.name, parent.item) if parent else None,
        rerun_of=rerun.goal_id if rerun else None,
        is_newer=plan.is_newer,
    )


def due_at(countdown: float | None, eta: datetime | str | None) -> datetime | None:
    """Give the time that Celery's ``countdown`` (seconds) or ``eta`` means; a naive ``eta`` is UTC."""
    if countdown is not None:
        return datetime.now(UTC) + timedelta(seconds=countdown)
    if eta is None:
        return None
    found = datetime.fromisoformat(eta) if isinstance(eta, str) else eta
    return found if found.tzinfo else found.replace(tzinfo=UTC)
