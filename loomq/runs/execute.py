"""Run the message that a worker process has in hand: claim, work, complete, and publish what became ready."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Retry

from loomq.errors import LeaseLost, UnknownNameError
from loomq.ids import uuid7
from loomq.queues.names import HEADER, StageMessage
from loomq.queues.task import payload_of
from loomq.redaction import redacted
from loomq.runs.faults import Raised, as_stage_error, backoff_s, guarded
from loomq.runs.gate import Gate
from loomq.runs.journal import StageJournal
from loomq.runs.opening import FanOut, Skip, opening
from loomq.runs.orchestration import Orchestration
from loomq.runs.persist import persist
from loomq.runs.result import kept
from loomq.runs.turn import Ended, Turn
from loomq.runs.turns import Turns
from loomq.store import openings, stages
from loomq.store.stages import Part, Place, StageKey
from loomq.store.turns import End
from loomq.workers.deadline import shared_deadlines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from loomq.configs import Configs
    from loomq.errors import LoomqError
    from loomq.queues.app import LoomCelery
    from loomq.runs.call import Calls
    from loomq.runs.plan import Plan, StagePlan
    from loomq.runs.publish import Publisher
    from loomq.runs.sequel import Sequel
    from loomq.runs.silos import Silos
    from loomq.runs.snapshot import PlanCache
    from loomq.runs.subgoals import Subgoals
    from loomq.settings import Settings
    from loomq.store.engine import Database
    from loomq.store.stages import Claim, Outcome
    from loomq.workers.runtime import Done, Job, WorkerRuntime

logger = logging.getLogger(__name__)


class Executor:
    """Run stages in this process.

    Args:
        node: The node's id, which the heartbeat extends leases by.
        process_lost: Called when Celery's parent process reports that a child of its pool has ended.
        configs: The project's files, which give the limits.
        served: Gives the queues that the node consumes.
        serves: Called with the node's queues when they have been read again, for the process beside this one.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        app: LoomCelery,
        plans: PlanCache,
        publisher: Publisher,
        calls: Calls,
        runtime: WorkerRuntime,
        sequel: Sequel,
        subgoals: Subgoals,
        silos: Silos,
        *,
        node: UUID,
        process_lost: Callable[[], None],
        configs: Configs,
        served: Callable[[], frozenset[str]],
        serves: Callable[..., None],
    ) -> None:
        self._settings = settings
        self._database = database
        self._app = app
        self._plans = plans
        self._publisher = publisher
        self._calls = calls
        self._runtime = runtime
        self._sequel = sequel
        self._subgoals = subgoals
        self._silos = silos
        self._node = node
        self._turns = Turns(app, publisher, configs, served)
        self._orchestration = Orchestration(database, app, persist)
        self._gate = Gate(database, app.limiter, runtime, persist)
        self.process_lost = process_lost
        self.catch_up = configs.catch_up
        self._configs = configs
        self.serves = serves

    def submit_call(self, task: Any, payload: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Write a raw call down as a goal; see ``Calls.submit``."""
        return self._calls.submit(task.worker, payload, options)

    def reload(self) -> dict[str, Any]:
        """Read the project's files again, and say what has changed.

        Raises:
            ConfigError: They have errors; what they said before stays.
        """
        return asdict(self._configs.reload())

    def put_back(self, task_id: str) -> None:
        """Make a stage ready again whose message came to a node that does not know its task (a rolling deploy)."""
        if StageMessage.is_id(task_id):
            unknown = UnknownNameError(f"task {task_id} is for a worker that this node does not know")
            self.not_sent(StageMessage.of_id(task_id), unknown)

    def not_sent(self, message: StageMessage, error: LoomqError) -> None:
        """Make a stage ready again whose message did not reach the broker."""
        self._publisher.not_sent([StageKey(message.goal_id, message.name, message.item)], error)

    def execute(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one message.

        Returns:
            A raw call's output, or ``{"stage": name}``.

        Raises:
            celery.exceptions.Ignore: The stage is not, or no longer, this message's to run.
            celery.exceptions.Retry: It failed and waits in the database for its next attempt.
            PipelineStageError: It failed for good.
        """
        self.catch_up()
        request = task.request
        if getattr(request, HEADER, None) is None:
            payload = payload_of(args, kwargs)
            message = persist(lambda: self._calls.adopt(task.worker, payload, request))
            setattr(request, HEADER, {"call": True})
        else:
            message = StageMessage.parse(args)
        key = StageKey(message.goal_id, message.name, message.item)
        token, place = uuid7(), Place(self._node, os.getpid(), str(request.id))
        request.loomq_goal = key.goal_id
        slots = self._configs.limits.slots(task.worker)
        claim = persist(lambda: stages.claim(self._database, key, token, place, self._settings.lease_seconds, slots))
        if claim is None:
            logger.info(
                "stage %s of goal %s is not there to claim: a duplicate, or early, or no slot is free for it",
                key.name,
                key.goal_id,
            )
            raise Ignore
        self._app.limiter.learn(claim.rates)
        alone = claim.task_id is not None or not self._settings.straight_on
        turn = Turn(self._turns, claim, place, alone=alone)
        with shared_deadlines():
            try:
                found = self._batch(request, turn)
                while turn.more():
                    self.catch_up()
                    self._batch(request, turn)
            finally:
                turn.put_back()
                self._turns.hand_back(turn.left)
        return found

    def _batch(self, request: Any, turn: Turn) -> Any:
        """Run what a turn has to do now, end it in one call, and learn what comes next.

        Returns:
            What Celery is told, if the message's own stage is among it; then it also raises as ``execute`` does.
        """
        todo = turn.begin()
        ended: list[Ended] = []
        told = None
        for claim in turn.in_time(request, todo):
            try:
                found = self._stage(request, turn, claim)
            except Exception as error:
                if claim is turn.own:
                    raise
                # Its row says what became of it, and Celery's message is another stage's.
                logger.info("stage %s of goal %s: %s", claim.key.name, claim.key.goal_id, error)
                turn.drop(request, claim)
                continue
            if isinstance(found, Ended):
                ended.append(found)
                continue
            turn.leave(claim)
            if claim is turn.own:
                told = found
        # In one order: others may be ending stages of the same goals.
        ended.sort(key=lambda one: (one.claim.key.goal_id, one.claim.key.name, one.claim.key.item))
        outcomes = self._end(request, turn, ended) if ended or not todo else []
        for stage, has_backlog in turn.freed():
            self._sequel.freed(stage, backlog=has_backlog, light=self._turns.at_once(stage.worker.name) > 1)
        for one, outcome in zip(ended, outcomes, strict=True):
            if one.claim is turn.own:
                if outcome.verdict == "fenced":
                    raise Ignore
                ended_so = {"stage": one.claim.key.name, "goal_ended": outcome.goal_ended}
                told = one.done.output if one.claim.task_id else ended_so
        return told

    def _stage(self, request: Any, turn: Turn, claim: Claim) -> Any:
        """Run one claimed stage: gives its result, or what Celery is told of what was done instead."""
        stage, request.loomq_semaphore = None, None
        try:
            plan = persist(lambda: self._plans.get(claim.snapshot))
            stage = plan.stages[claim.key.name].run_by(claim.worker, claim.tier)
            return self._run(request, turn, plan, stage, claim)
        except Ignore:
            raise
        except Raised as raised:
            return self._failed(request, plan, stage, claim, raised.error)
        except LeaseLost as signal:
            # Meant for another stage, maybe, which this process had in hand a moment ago: then it is simply due again.
            persist(lambda: stages.release(self._database, claim.key, claim.token, "interrupted"))
            logger.info("stage %s of goal %s is interrupted: %s", claim.key.name, claim.key.goal_id, signal)
            raise Ignore from signal
        except Exception as error:  # noqa: BLE001  (whatever is raised while a stage is held is that stage's failure)
            return self._failed(request, plan if stage else None, stage, claim, error)

    def _run(self, request: Any, turn: Turn, plan: Plan, stage: StagePlan, claim: Claim) -> Any:
        """Do what a claimed stage needs: its work, or less, or more."""
        goal = {"goal_id": str(claim.key.goal_id), "instruction": claim.instruction, "context": claim.context}
        found = opening(stage, goal, claim.inputs) if claim.key.item < 0 and claim.payload is None else None
        if isinstance(found, Skip):
            return self._skip(request, turn, plan, claim, found.reason)
        if isinstance(found, FanOut):
            return self._fan_out(request, turn, plan, stage, claim, found)
        if stage.opens_round:
            persist(lambda: self._subgoals.open_round(plan, stage, claim))
            return {"stage": claim.key.name}
        if stage.pipeline is not None:
            context = self._payload(stage, claim, goal)
            persist(lambda: self._subgoals.open(plan, stage, claim, context))
            return {"stage": claim.key.name}
        tier = self._app.router.tier(stage.worker.name, claim.tier)
        journal = StageJournal(self._database, self._silos, persist, claim, tier)
        job = stage.job(
            self._payload(stage, claim, goal),
            tier=tier,
            timeout_s=claim.timeout_s,
            journal=journal,
            program=self._orchestration.program(plan, stage, claim),
        )
        grant = self._gate.enter(request, claim, job, guarded(lambda: self._gate.needs(job), self._runtime))
        begun = time.monotonic()
        try:
            done = self._work(job)
        finally:
            self._turns.learn(claim.worker, time.monotonic() - begun)
        self._gate.settle(grant, done)
        done, text = kept(done, stage.name, self._settings)
        return Ended(plan, stage, claim, done, text)

    def _payload(self, stage: StagePlan, claim: Claim, goal: dict[str, Any]) -> dict[str, Any]:
        if claim.payload is not None:
            return claim.payload
        if claim.key.item < 0:
            return stage.payload(goal, self._orchestration.inputs_of(stage, claim))
        return stage.payload(goal, {**claim.inputs, "item": claim.element, "index": claim.key.item})

    def _work(self, job: Job) -> Done:
        return guarded(lambda: self._runtime.run(job), self._runtime)

    def _skip(self, request: Any, turn: Turn, plan: Plan, claim: Claim, reason: str) -> dict[str, Any]:
        carried = turn.carried(request, claim)
        room = self._sequel.room(plan, claim.key.name, carried, claim.priority)
        outcome = persist(
            lambda: openings.skip(self._database, claim.key, claim.token, reason, room=room, carried=carried)
        )
        self._follow(request, turn, plan, claim, outcome, carried)
        if outcome.verdict == "fenced":
            raise Ignore
        return {"stage": claim.key.name, "skipped": reason}

    def _fan_out(
        self, request: Any, turn: Turn, plan: Plan, stage: StagePlan, claim: Claim, found: FanOut
    ) -> dict[str, Any]:
        spec = stage.spec
        outcome = persist(
            lambda: openings.expand(
                self._database,
                claim.key,
                claim.token,
                found.elements,
                reads=stage.item_reads,
                max_parallel=spec.max_parallel if spec else None,
                tolerant=spec is not None and spec.on_item_failure == "continue",
                fallback=stage.fallback,
            )
        )
        self._follow(request, turn, plan, claim, outcome, ())
        if outcome.verdict == "fenced":
            raise Ignore
        return {"stage": claim.key.name, "items": len(found.elements)}

    def _end(self, request: Any, turn: Turn, ended: list[Ended]) -> list[Outcome]:
        """Record results, and claim what the process goes on with."""
        turn.look(request, ended)
        backlog = turn.backlog()
        ends = [self._as_end(request, turn, one) for one in ended]
        turned = turn.record(ends, backlog)
        turn.take(request, turned.claims)
        for due in turned.due:
            self._publisher.send_due(due)
        for one, end, outcome in zip(ended, ends, turned.outcomes, strict=True):
            if outcome.verdict != "fenced":
                for folder in {update["folder"] for update in one.done.updates if update["reason"] is None}:
                    persist(partial(self._silos.settle, folder))
            self._follow(request, turn, one.plan, one.claim, outcome, end.carried)
        return list(turned.outcomes)

    def _as_end(self, request: Any, turn: Turn, one: Ended) -> End:
        claim, done = one.claim, one.done
        carried = turn.carried(request, claim)
        below = turn.children(one)
        others = [name for name in one.plan.graph.children[claim.key.name] if name not in carried]
        most = turn.most(below)
        alone = len(below) == len(others) <= most  # then none of them needs a place on a queue
        canvas = claim.canvas or {}
        return End(
            claim.key,
            claim.token,
            one.text,
            model_used=done.model_used and redacted(done.model_used),
            token_usage=done.token_usage,
            processing_time_ms=done.processing_time_ms,
            room={} if alone else self._sequel.room(one.plan, claim.key.name, carried, claim.priority),
            carried=carried,
            part=Part(canvas["group_id"], canvas.get("group_index") or 0) if canvas.get("chord") else None,
            notes=done.notes,
            updates=done.updates,
            next=[(child.name, uuid7()) for child in below],
            most=most,
        )

    def _follow(
        self, request: Any, turn: Turn, plan: Plan, claim: Claim, outcome: Outcome, carried: Sequence[str]
    ) -> None:
        """Do what follows the end of a stage, but for giving its place to others."""
        if outcome.verdict == "fenced":
            logger.warning(
                "stage %s of goal %s was taken back while it ran: its result is refused",
                claim.key.name,
                claim.key.goal_id,
            )
            return
        if claim is turn.carrier or claim is turn.own:
            request.loomq_outcome = outcome
        is_part = claim.parent is not None
        self._sequel.after(claim.key, plan, outcome, claim.priority, carried, frees=False, is_part=is_part)
        turn.note(plan.stages[claim.key.name].run_by(claim.worker, claim.tier), outcome, carried)

    def _failed(self, request: Any, plan: Plan | None, stage: StagePlan | None, claim: Claim, error: Exception) -> Any:
        fault = as_stage_error(error, claim.key.name, claim.worker, claim.timeout_s)
        delay_s = max(backoff_s(stage, claim.attempt) if stage else 0.0, getattr(error, "retry_after_s", None) or 0.0)
        outcome = persist(
            lambda: stages.fail(
                self._database,
                claim.key,
                claim.token,
                error=fault.to_json(),
                retryable=fault.retryable,
                delay_s=delay_s,
            )
        )
        if outcome.verdict == "fenced":
            logger.warning("an error came after the end of stage %s: %s", claim.key.name, fault.message)
            raise Ignore from error
        self._gate.leave(request)
        if outcome.verdict == "retried":
            if stage is not None:
                self._sequel.freed(stage, backlog=False)
            raise Retry(str(fault), fault, when=round(delay_s)) from error
        if plan is not None:
            self._sequel.after(claim.key, plan, outcome, claim.priority)
        raise fault from error
