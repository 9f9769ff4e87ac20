"""Random pipelines with everything that a stage may be, worked on in random order: the rows always come to one end."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import PLACE
from strategies import dags

from loomq.ids import uuid7
from loomq.messages import OrchestratorGoal
from loomq.pipelines.graph import graph_of
from loomq.pipelines.spec import PipelineSpec
from loomq.runs.opening import FanOut, Skip, opening
from loomq.runs.snapshot import snapshot_of_pipeline
from loomq.runs.subgoals import Subgoals
from loomq.store import goals, openings, stages
from loomq.store.stages import StageKey
from loomq.workers.spec import WorkerSpec

WORKERS = {
    name: WorkerSpec.model_validate({"name": name, "worker_kind": "processor", "processing_backend": "mine.x.Y"})
    for name in ("work", "other")
}
INNER = PipelineSpec.model_validate(
    {
        "name": "inner",
        "pipeline_stages": [
            {"name": "one", "worker_type": "work", "input_mapping": {"bad": "goal.context.bad"}},
            {"name": "two", "worker_type": "work", "condition": "one.output.n > 5"},
            {"name": "three", "worker_type": "other", "input_mapping": {"one": "one.output.n"}},
        ],
    }
)
FINAL = {"done", "skipped", "failed", "dead", "cancelled"}
KINDS = ("plain", "plain", "asking", "fails", "retries", "value", "fallback", "each", "each", "pipeline", "pipelines")


@dataclass
class Case:
    """A pipeline and what becomes of each of its stages.

    Args:
        context: Names the stages and items that fail.
        ends: The state that each stage must end in, if no failure ends the goal.
    """

    spec: PipelineSpec
    context: dict[str, Any]
    ends: dict[str, str]
    items: dict[str, list[str]] = field(default_factory=dict)

    @property
    def goal_ends(self) -> str:
        """The state that the goal must end in."""
        failed = "failed" in self.ends.values()
        leaves = [self.ends[name] for name in graph_of(self.spec).leaves]
        return "failed" if failed and ("done" not in leaves or self.spec.on_failure == "fail") else "done"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a DAG, what its stages are, and which of them fail."""
    parents = draw(dags(9))
    written, bad, lists = [], {}, {}
    kinds = {name: draw(st.sampled_from(KINDS)) for name in parents}
    optional = {name: draw(st.booleans()) for name in parents}
    for name, above in parents.items():
        kind = kinds[name]
        mark = "?" if optional[name] else ""
        stage: dict[str, Any] = {
            "name": name,
            "worker_type": "work",
            "max_retries": 1 if kind == "retries" else 0,
            "input_mapping": {parent: f"{parent}.output{mark}" for parent in above},
        }
        if kind == "asking":
            stage["condition"] = " and ".join(
                [f"goal.context.yes.{name} == 1", *(f"{one}.output exists" for one in above)]
            )
        if kind in {"value", "fallback"}:
            stage["fallback"] = {"value": {"n": 0}} if kind == "value" else {"worker_type": "other"}
        if kind in {"each", "pipelines"}:
            lists[name] = draw(st.lists(st.sampled_from(["good", "good", "bad", "left out"]), max_size=4))
            stage |= {
                "for_each": f"goal.context.lists.{name}",
                "condition": "item != 'left out'",
                "on_item_failure": draw(st.sampled_from(["fail", "continue"])),
            }
            if draw(st.booleans()):
                stage["max_parallel"] = draw(st.integers(1, 3))
        if kind in {"pipeline", "pipelines"}:
            del stage["worker_type"], stage["max_retries"]
            stage |= {"pipeline": "inner"}
            stage["input_mapping"] = {
                **stage["input_mapping"],
                "bad": "item" if kind == "pipelines" else f"goal.context.bad.{name}",
            }
        bad[name] = "bad" if kind == "fails" or (kind == "pipeline" and draw(st.booleans())) else "good"
        written.append(stage)
    spec = PipelineSpec.model_validate(
        {"name": "drawn", "pipeline_stages": written, "on_failure": draw(st.sampled_from(["fail", "continue_partial"]))}
    )
    yes = {name: draw(st.integers(0, 1)) for name in parents if kinds[name] == "asking"}
    case = Case(spec, {"yes": yes, "bad": bad, "lists": lists}, {}, lists)
    for name in graph_of(spec).order:
        case.ends[name] = _end_of(case, name, kinds[name], parents[name], optional[name])
    return case


def _end_of(case: Case, name: str, kind: str, above: tuple[str, ...], is_optional: bool) -> str:
    missing = any(case.ends[parent] != "done" for parent in above)
    if (missing and not is_optional) or (kind == "asking" and (missing or not case.context["yes"][name])):
        return "skipped"
    if kind in {"each", "pipelines"}:
        tolerant = case.spec.by_name[name].on_item_failure == "continue"
        return "failed" if "bad" in case.items[name] and not tolerant else "done"
    return "failed" if case.context["bad"][name] == "bad" else "done"


class World:
    """Workers as the store sees them: they claim, complete, fail, die and come twice, in random order."""

    def __init__(self, loom: Any, case: Case, rng: Any) -> None:
        self.loom, self.case, self.rng, self.database = loom, case, rng, loom.database
        self.subgoals = Subgoals(loom.database, loom.submitter, loom.sequel)
        self.hands: list[Any] = []
        self.ended: list[tuple[Any, str]] = []
        body = snapshot_of_pipeline("drawn", {"drawn": case.spec, "inner": INNER}, WORKERS)
        goal = OrchestratorGoal(instruction="go", pipeline="drawn", context=case.context)
        self.goal_id = loom.submitter.submit(goal, body=body).goal_id
        self.family = "(SELECT id FROM goals WHERE id = %(goal)s OR parent_goal = %(goal)s)"

    def ask(self, query: str) -> list[Any]:
        return self.database.call(query.replace("FAMILY", self.family), {"goal": self.goal_id})

    def run(self) -> None:
        for _ in range(2000):
            due = self.ask(
                "SELECT goal_id, name, item FROM stages WHERE goal_id IN FAMILY AND state IN ('ready', 'published')"
                " ORDER BY goal_id, name, item"
            )
            if self.hands and (not due or self.rng.random() < 1 / 2):
                self.finish(self.hands.pop(self.rng.randrange(len(self.hands))))
            elif due:
                self.claim(StageKey(*self.rng.choice(due)))
            elif unheard := openings.unheard(self.database):
                self.loom.sequel.close(self.rng.choice(unheard))
            else:
                return
        pytest.fail("it never ends")

    def claim(self, key: StageKey) -> None:
        held = stages.claim(self.database, key, uuid7(), PLACE, 60)
        if held is None:  # an item that came back from a worker after the end of its stage
            states = goals.items_of(self.database, key.goal_id, key.name, states=["cancelled"])
            assert key.item in {row.item for row in states}
            return
        assert stages.claim(self.database, key, uuid7(), PLACE, 60) is None, "a second message took it as well"
        plan = self.loom.plans.get(held.snapshot)
        states = {row.name: row.state for row in goals.stages_of(self.database, key.goal_id, outputs=False)}
        assert all(states[parent] in FINAL for parent in plan.graph.parents[key.name]), "it runs before its parents"
        self.hands.append(held)

    def finish(self, held: Any) -> None:
        """Do what an Executor does with a claim, or die before or after it was written down."""
        fate = self.rng.random()
        if fate < 1 / 10:
            stages.release(self.database, held.key, held.token, "the process died")
            assert stages.complete(self.database, held.key, held.token, output="{}").verdict == "fenced"
            return
        plan = self.loom.plans.get(held.snapshot)
        stage = plan.stages[held.key.name].run_by(held.worker, held.tier)
        goal = {"goal_id": str(held.key.goal_id), "instruction": "go", "context": held.context}
        found = opening(stage, goal, held.inputs) if held.key.item < 0 else None
        if found is None and stage.pipeline is not None:
            inputs = held.inputs if held.key.item < 0 else {**held.inputs, "item": held.element, "index": held.key.item}
            self.subgoals.open(plan, stage, held, stage.payload(goal, inputs))
            return
        outcome = self.write(stage, held, found)
        if outcome.verdict not in {"fenced", "retried"} and fate < 9 / 10:  # else it dies now: the rows say it all
            self.loom.sequel.after(held.key, plan, outcome, held.priority)

    def write(self, stage: Any, held: Any, found: Any) -> Any:
        if isinstance(found, Skip):
            return openings.skip(self.database, held.key, held.token, found.reason)
        if isinstance(found, FanOut):
            spec = stage.spec
            return openings.expand(
                self.database,
                held.key,
                held.token,
                found.elements,
                reads=stage.item_reads,
                max_parallel=spec.max_parallel,
                tolerant=spec.on_item_failure == "continue",
                fallback=stage.fallback,
            )
        if self.fails(held):
            error = {"type": "PipelineWorkerError", "message": "no", "retryable": held.max_retries > 0}
            return stages.fail(self.database, held.key, held.token, error=error, retryable=held.max_retries > 0)
        outcome = stages.complete(self.database, held.key, held.token, output='{"n": 1}')
        if outcome.verdict == "accepted":
            again = stages.complete(self.database, held.key, held.token, output='{"n": 2}')
            assert again.verdict == "repeated"
        return outcome

    def fails(self, held: Any) -> bool:
        if held.parent is not None:
            return held.key.name == "one" and held.context["bad"] == "bad"
        if held.key.item >= 0:
            return held.element == "bad"
        stage = self.case.spec.by_name[held.key.name]
        if stage.max_retries:
            return held.attempt == 1
        is_first_choice = stage.fallback is not None and held.worker == "work"
        return is_first_choice or self.case.context["bad"][held.key.name] == "bad"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), seed=st.integers(0, 2**32))
def test_whatever_the_order_every_stage_ends_once_after_its_parents_and_so_does_the_goal(loom, case, seed):
    world = World(loom, case, random.Random(seed))
    world.run()

    rows = world.ask("SELECT goal_id, name, item, state, waits_for FROM stages WHERE goal_id IN FAMILY")
    own = {name: state for goal_id, name, item, state, _ in rows if goal_id == world.goal_id and item < 0}
    assert {state for _, _, _, state, _ in rows} <= FINAL
    ((state, leaves_left),) = world.ask("SELECT state, leaves_left FROM goals WHERE id = %(goal)s")
    assert state == case.goal_ends
    assert not world.ask("SELECT 1 FROM goals WHERE id IN FAMILY AND state = 'open'")
    if case.goal_ends == "done" or case.spec.on_failure == "continue_partial":
        assert own == case.ends
        assert leaves_left == 0
        assert not [row for row in rows if row[0] == world.goal_id and row[4]]
    else:
        for name, end in own.items():  # nothing stands in any more for what fails after the end of its goal
            late = {"failed"} if case.spec.by_name[name].fallback else set()
            assert end in {case.ends[name], "cancelled"} | late
    told = Counter(
        (goal_id, stage, item, kind)
        for goal_id, stage, item, kind in world.ask(
            "SELECT goal_id, stage, item, kind FROM events WHERE goal_id IN FAMILY"
        )
        if kind in {"stage_completed", "stage_skipped"} or kind.startswith("goal_")
    )
    assert max(told.values()) == 1
    done = {(goal_id, name, item) for goal_id, name, item, state, _ in rows if state == "done"}
    assert done == {key[:3] for key in told if key[3] == "stage_completed"}
