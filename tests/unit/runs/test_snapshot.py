"""Snapshots of orchestrators and of rounds: what they hold, and the plans that are read from them."""

from __future__ import annotations

import json

import pytest

from loomq.catalog import load_catalog
from loomq.orchestrator.tasks import Subtask
from loomq.runs.freeze import freeze
from loomq.runs.snapshot import parse, snapshot_of_round, snapshot_within
from loomq.settings import Settings

WORKERS = {
    "look": "input_schema: {type: object, properties: {q: {type: string}}, required: [q]}\n"
    "output_schema: {type: object, properties: {found: {}}}\ntimeout_seconds: 7\nmax_retries: 1\n",
    "far": "default_model_tier: frontier\n",
    "inner_only": "",
}
PIPELINES = {
    "line": "pipeline_stages: [{name: a, worker_type: inner_only, input_mapping: {x: goal.context.word,"
    " y: goal.context.more?}}]\n",
    "deputy": "kind: orchestrator\navailable_workers: [{name: look}]\ndefault_model_tier: local\n",
    "chief": "kind: orchestrator\nmax_concurrent_tasks: 2\nmax_rounds: 2\ntimeout_seconds: 9\n"
    "available_workers: [{name: look, description: Mine., tiers: [frontier]}, {name: line}, {name: deputy}]\n",
    "everything": "kind: orchestrator\n",
}


@pytest.fixture
def catalog(tmp_path):
    for folder, files in (("workers", WORKERS), ("pipelines", PIPELINES)):
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            more = "system_prompt: x\n" if folder == "workers" else ""
            (tmp_path / folder / f"{name}.yaml").write_text(f"name: {name}\n{more}{text}")
    found, problems = load_catalog(Settings(project=tmp_path))
    assert problems == []
    return found


@pytest.fixture
def chief(catalog):
    body = freeze(catalog, "chief", allow=())
    assert json.loads(json.dumps(body)) == body
    return parse(body)


def test_an_orchestrator_is_frozen_with_all_that_its_plans_may_use(chief):
    assert (chief.kind, chief.name, chief.goal_timeout_s, chief.window) == ("orchestrator", "chief", 9, None)
    assert list(chief.stages) == ["plan_1", "tasks_1", "plan_2", "tasks_2", "synthesis"]
    assert {name: chief.graph.parents[name] for name in ("plan_1", "synthesis")} == {
        "plan_1": (), "synthesis": ("tasks_2",),
    }  # fmt: skip
    assert set(chief.workers) == {"look", "inner_only"}
    assert set(chief.pipelines) == {"line"}
    assert set(chief.orchestrators) == {"deputy"}
    look, line, deputy = chief.frozen.offers
    assert (look.kind, look.description, look.tier, look.tiers) == (
        "worker",
        "Mine.",
        "standard",
        ("standard", "frontier"),
    )
    assert look.output_keys == ("found",)
    assert line.input_schema == {"type": "object", "properties": {"word": {}, "more": {}}, "required": ["word"]}
    assert (deputy.kind, deputy.input_schema["required"]) == ("orchestrator", ["instruction"])
    assert chief.unsure == {"tasks_1", "plan_2", "tasks_2"}
    assert chief.routes == {
        ("chief", "standard"), ("deputy", "local"), ("look", "standard"), ("look", "frontier"),
        ("inner_only", "standard"),
    }  # fmt: skip


def test_all_means_every_worker(catalog):
    plan = parse(freeze(catalog, "everything", allow=()))
    assert [offer.name for offer in plan.frozen.offers] == ["far", "inner_only", "look"]


def test_a_round_runs_its_tasks_in_their_order_with_what_their_workers_say(chief):
    tasks = [
        Subtask("one", "look", {"q": "secret"}, "frontier", "high", "why"),
        Subtask("two", "line", {}, depends_on=("one",)),
        Subtask("three", "deputy", {"instruction": "go"}, depends_on=("one", "two")),
    ]
    body = snapshot_of_round("chief", tasks, 2, chief)
    assert "secret" not in json.dumps(body)
    plan = parse(body)

    assert (plan.kind, plan.name, plan.window, plan.goes_on, plan.is_newer) == ("round", "chief", 2, True, True)
    one, two, three = plan.stages.values()
    assert (one.worker.name, one.tier, one.priority, one.timeout_s, one.max_retries) == ("look", "frontier", 2, 7, 1)
    assert (one.pipeline, two.pipeline, three.pipeline) == (None, "line", "deputy")
    assert (two.worker.name, three.worker.name, three.tier) == ("inner_only", "deputy", "local")
    assert plan.graph.parents["three"] == ("two",)
    assert three.needs == three.reads == ("one", "two")
    assert plan.unsure == {"two", "three"}
    assert plan.alone == {"one", "two", "three"}
    assert one.payload({"context": {"one": {"q": {"$from": "x.output.a"}}}}, {"x": {"output": {"a": 5}}}) == {"q": 5}
    assert [stage.place for stage in plan.stages.values()] == [0, 1, 2]
    assert set(plan.workers) == {"look", "inner_only"}


def test_what_a_plan_contains_has_a_snapshot_of_its_own(chief):
    assert parse(snapshot_within(chief, "line")).kind == "pipeline"
    inner = parse(snapshot_within(chief, "deputy"))
    assert (inner.kind, inner.name, list(inner.workers)) == ("orchestrator", "deputy", ["look"])


def test_a_step_says_by_itself_whether_there_is_anything_to_do(chief):
    tasks = chief.stages["tasks_1"]
    assert tasks.reads == ("plan_1",)
    assert tasks.asks_nothing({"plan_1": {"output": {"tasks": []}}})
    assert not tasks.asks_nothing({"plan_1": {"output": {"tasks": [{}]}}})
    assert not chief.stages["plan_2"].asks_nothing({"tasks_1": {"output": {"total": 0}}})
