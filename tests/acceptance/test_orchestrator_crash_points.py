"""Kill the process at each step of an orchestrator's goal: the same answer, and each call to a model paid once."""

from __future__ import annotations

from deaths import DEATHS, died_in

from loomq.services import inspect
from loomq.services.submit import submit_goal
from loomq.store import spending
from loomq.testing import fake_llm, wait_until
from loomq.testing.llm import Rule

# Read by every Python process of the project when it starts: the children of a node's pool inherit what it wraps.
CODE = (
    DEATHS
    + """
from loomq.runs import sequel
from loomq.store import checkpoints, journal, openings, rounds, stages, turns


def of_step(database, key, *rest, **more):
    return f".{key.name}"


around(journal, "read", of_step)
around(journal, "keep_call", of_step)
around(stages, "complete", of_step)
around(turns, "turn", lambda database, ends, *rest: f".{ends[0].key.name}" if ends else "")
around(openings, "delegate", of_step)
around(checkpoints, "save")
around(rounds, "let_go")
around(sequel.Sequel, "goal_ended", lambda self, goal_id, plan, **more: f".{plan.kind}")
"""
)
ORCHESTRATOR = """
name: research
kind: orchestrator
available_workers: [{name: look}]
max_rounds: 2
max_concurrent_tasks: 2
synthesis: llm
checkpoint: {token_threshold: 1500, recent_window: 1}
"""
STEPS = ("plan_1", "plan_2", "synthesis")
TASKS = ("t0", "t1", "t2", "t3")
#: What every goal asks for, whoever dies: two plans, two checkpoints (before plan_2), the conclusion.
MOST_GOALS = 15


def answer(call):
    if "You keep the minutes" in call.system:
        return Rule.model_validate({"json": {"executive_summary": "so far", "open_issues": [], "decisions_made": []}})
    if "You put the results" in call.system:
        said = {"synthesis": "all", "confidence": "high", "conflicts": [], "gaps": []}
        return Rule.model_validate({"json": said})
    if "This is round 2" in call.prompt:
        return Rule.model_validate({"json": [{"id": "last", "worker_type": "look", "payload": {"q": "z"}}]})
    return Rule.model_validate(
        {"json": [{"id": name, "worker_type": "look", "payload": {"q": name}} for name in TASKS]}
    )


def test_a_death_at_any_step_gives_the_same_answer_and_pays_each_call_once(project, loom, start_node):
    project.write("site/sitecustomize.py", CODE)
    project.worker("look", 'return {"output": {"found": payload["q"] * 400}}')
    project.write("pipelines/research.yaml", ORCHESTRATOR)
    project.settings_given |= {"max_deliveries": 100, "lease_seconds": 2}
    kept = {f"{name}.{when}.{step}" for name in ("keep_call", "read") for when in ("before", "after") for step in STEPS}
    ends = {
        f"{call}.{when}.{name}"
        for when in ("before", "after")
        for call, names in (("turn", (*STEPS, *TASKS)), ("complete", ("tasks_1", "tasks_2")))
        for name in names
    }
    once = ("delegate", ".tasks_1"), ("delegate", ".tasks_2"), ("save", ""), ("let_go", "")
    once += ("goal_ended", ".round"), ("goal_ended", ".orchestrator")
    wanted = kept | ends | {f"{name}.{when}{which}" for when in ("before", "after") for name, which in once}

    with fake_llm([answer]) as server:
        project.env = {
            **server.environment("openai"),
            "HOME": str(project.folder),
            "PYTHONPATH": str(project.folder / "site"),
        }
        start_node("-c", "2")
        handles, results = [], []
        while not died_in(project) >= wanted and len(handles) < MOST_GOALS:
            handles.append(submit_goal("find it", pipeline="research", loom=loom))
            results.append(handles[-1].result(timeout=120))
        paid = len(server.journal)

    assert wanted <= died_in(project)
    for result in results:
        assert result["synthesis"] == "all"
        assert {one["task"]: one["output"] for one in result["succeeded"]} == {
            **{name: {"found": name * 400} for name in TASKS},
            "last": {"found": "z" * 400},
        }
        assert result["failed"] == []
    calls = [sum(one.calls for one in spending.of_stages(loom.database, handle.goal_id).values()) for handle in handles]
    assert set(calls) == {calls[-1]}  # of all goals, as of one in which nobody died
    # Only a death between an answer and its row costs a call.
    assert paid == sum(calls) + sum(point.startswith("keep_call.before") for point in died_in(project))


def test_a_node_that_dies_in_the_middle_of_a_round_and_of_a_plan_costs_time_and_nothing_else(project, loom, start_node):
    go = project.folder / "go.txt"
    wait = 'while not Path("go.txt").exists():\n    time.sleep(0.02)\nreturn {"output": {"found": payload["q"] * 400}}'
    project.worker("look", wait)
    project.write("pipelines/research.yaml", ORCHESTRATOR)
    project.settings_given |= {"max_deliveries": 100, "lease_seconds": 2}

    def slow(call):
        said = answer(call)
        return said.model_copy(update={"delay_seconds": 0.5 if "This is round 2" in call.prompt else 0})

    with fake_llm([slow]) as server:
        project.env = {**server.environment("openai"), "HOME": str(project.folder)}
        first = start_node("-c", "2")
        handle = submit_goal("find it", pipeline="research", loom=loom)
        wait_until(
            lambda: [name for name, state in at(loom, handle) if state == "claimed" and "/" in name][1:], "tasks"
        )
        first.kill()
        go.touch()
        second = start_node("-c", "2")
        wait_until(lambda: ("plan_2", "claimed") in at(loom, handle), "the second plan")
        second.kill()
        start_node("-c", "2")
        result = handle.result(timeout=60)
        paid = len(server.journal)

    assert result["synthesis"] == "all"
    assert sorted(one["task"] for one in result["succeeded"]) == ["last", *TASKS]
    calls = sum(one.calls for one in spending.of_stages(loom.database, handle.goal_id).values())
    assert calls <= paid <= calls + 1  # the one that was under way


def at(loom, handle):
    """Say how each stage, and each task, of a goal stands."""
    return [(stage.name, stage.state) for stage in inspect.at_work(loom, handle.goal_id)]
