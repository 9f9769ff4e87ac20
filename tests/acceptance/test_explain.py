"""What a goal that has run tells of itself: its time, its items, its parts, and why what did not run did not."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from loomq.errors import GoalFailedError
from loomq.services import control
from loomq.services.submit import submit_goal, submit_task
from tests.acceptance.conftest import Program

NODE = ("-c", "2")
SECRET = "sk-ant-api03-abcdefghijklmnopqrstuvwxyz0123456789"
TIMELINE = {
    "cost",
    "degraded_modes",
    "stage",
    "status",
    "attempt",
    "queued_at",
    "started_at",
    "ended_at",
    "wall_time_ms",
    "queue_time_ms",
    "processing_time_ms",
    "model_used",
    "token_usage",
}

AGAIN = """
flag = Path(payload["flag"])
time.sleep(0.1)
if not flag.exists():
    flag.touch()
    raise TransientBackendError("not yet")
return {"output": {"n": 1}}
"""


def stock(project):
    project.worker("echo")
    project.worker("again", AGAIN, retry_backoff="{initial: 0.4, jitter: false}")
    project.worker(
        "double",
        'if payload["x"] == 3:\n    raise BackendError("no 3")\nreturn {"output": {"x": payload["x"] * 2}}',
        max_retries=0,
        input_schema="{type: object, properties: {x: {type: integer}}}",
        output_schema="{type: object, required: [x]}",
    )
    project.worker("failing", 'raise BackendError("it never works")', max_retries=0)
    project.pipeline(
        "mixed",
        """
  - {name: first, worker_type: again, input_mapping: {flag: goal.context.flag}}
  - {name: big, worker_type: echo, condition: first.output.n > 5, input_mapping: {n: first.output.n}}
  - {name: needs_big, worker_type: echo, input_mapping: {n: big.output.got.n}}
  - {name: side, worker_type: echo, input_mapping: {secret: goal.context.secret}}
  - {name: last, worker_type: echo, input_mapping: {n: first.output.n, s: side.output.got.secret}}
""",
    )
    project.pipeline(
        "items",
        """
  - name: double
    worker_type: double
    for_each: goal.context.xs
    on_item_failure: continue
    input_mapping: {x: item}
  - {name: after, worker_type: echo, input_mapping: {n: double.output.items}}
""",
        extra="output: {got: after.output.got.n}\n",
    )
    project.pipeline(
        "broken",
        """
  - {name: good, worker_type: echo, input_mapping: {a: goal.context.a}}
  - {name: bad, worker_type: failing, input_mapping: {a: good.output.got.a}}
  - {name: never, worker_type: echo, input_mapping: {a: bad.output.x}}
""",
    )
    project.pipeline(
        "partly",
        """
  - {name: good, worker_type: echo, input_mapping: {a: goal.context.a}}
  - {name: bad, worker_type: failing, input_mapping: {a: goal.context.a}}
  - {name: instead, worker_type: failing, fallback: {worker_type: echo}, input_mapping: {a: goal.context.a}}
""",
        extra="on_failure: continue_partial\n",
    )
    project.write("workers/answering.yaml", "name: answering\nsystem_prompt: Answer {}.\nmax_retries: 0\n")
    project.pipeline("asking", "\n  - {name: ask, worker_type: answering, input_mapping: {text: goal.context.text}}\n")
    project.pipeline(
        "outer_each",
        """
  - name: each
    pipeline: broken
    for_each: goal.context.many
    on_item_failure: continue
    input_mapping: {a: item}
""",
    )
    project.pipeline("outer", "\n  - {name: inner, pipeline: broken, input_mapping: {a: goal.context.a}}\n")


@pytest.fixture
def ended(shop):
    """Run a goal to its end, whichever, and give its id."""

    def run(pipeline, **context):
        handle = submit_goal("go", pipeline=pipeline, context=context, loom=shop.loom)
        with suppress(GoalFailedError):
            handle.result(timeout=30)
        return str(handle.goal_id)

    return run


@pytest.fixture
def program(shop, monkeypatch, capsys):
    return Program(shop.project, monkeypatch, capsys)


def told(program, *arguments):
    return json.loads(program(*arguments, "--json")[0])


def test_a_retry_and_skipped_stages_are_told_with_their_time(program, ended, tmp_path):
    goal_id = ended("mixed", flag=str(tmp_path / "flag"), secret=SECRET)
    out, _ = program("show", goal_id)
    assert "big  skipped: first.output.n > 5 (it is 1)" in out
    assert "needs_big  skipped: it needs big, which has no result" in out
    (bar,) = (line for line in out.splitlines() if line.startswith("* first"))
    assert bar.index("▓") < bar.index("·") < bar.index("█")
    assert "\ncritical path" in out

    shown = told(program, "show", goal_id)
    timeline = {entry["stage"]: entry for entry in shown["result"]["_timeline"]}
    assert [timeline[name]["status"] for name in ("first", "big", "needs_big")] == ["completed", "skipped", "skipped"]
    assert set(timeline["first"]) == TIMELINE
    timing = shown["timing"]
    assert timing["stages"]["first"]["totals_ms"]["delay"] == pytest.approx(400, abs=20)
    assert timeline["first"]["queue_time_ms"] < timing["stages"]["first"]["totals_ms"]["queue"] + 1
    assert sum(timing["critical_path_ms"].values()) == pytest.approx(timing["makespan_ms"], abs=0.1)
    assert timing["critical_path"][0] == "first"

    out, _ = program("explain", goal_id, "first")
    assert "attempt 1: failed after" in out
    assert "attempt 2: completed after" in out
    assert "ms  delay (back-off)" in out
    big = told(program, "explain", f"{goal_id}/big")
    assert big["condition"] == {
        "text": "first.output.n > 5",
        "holds": False,
        "told": "first.output.n > 5 (it is 1)",
    }
    out, _ = program("explain", goal_id)
    assert [line.split()[:2] for line in out.splitlines()[6:11]] == [
        ["first", "completed"],
        ["side", "completed"],
        ["big", "skipped:"],
        ["last", "completed"],
        ["needs_big", "skipped:"],
    ]
    for arguments in (("show", goal_id), ("explain", goal_id, "side"), ("explain", goal_id, "side", "--json")):
        assert SECRET not in program(*arguments)[0]


def test_a_fan_out_tells_its_items_and_each_item_can_be_explained(program, ended):
    goal_id = ended("items", xs=list(range(7)))
    out, _ = program("show", goal_id)
    assert "double  7 items: 6 done, 1 failed\n  item 3: PipelineWorkerError: worker double failed" in out
    stages = {stage["stage"]: stage for stage in told(program, "show", goal_id)["stages"]}
    assert stages["double"]["items"]["failures"][0]["index"] == 3
    assert stages["double"]["output"] is None  # no part of the result, so it was not read
    assert stages["after"]["output"]["got"]["n"][2] == {"x": 4}

    item = told(program, "explain", goal_id, "double/3")
    assert (item["status"], item["input"]["value"], item["input"]["contract"]) == ("failed", {"x": 3}, "holds")
    assert [attempt["outcome"] for attempt in item["attempts"]] == ["failed"]
    good = told(program, "explain", f"{goal_id}/double/2")
    assert (good["output"]["value"], good["output"]["contract"]) == ({"x": 4}, "holds")
    assert set(good["timing"]["totals_ms"]) >= {"work"}
    assert f"loomq explain {goal_id} double/3" in program("explain", goal_id, "double")[0]
    for name, said in (("dubble", 'did you mean "double"?'), ("double/7", "has no item 7"), ("double/x", "no item")):
        assert said in program("explain", goal_id, name, code=4)[1]


def test_a_failed_part_is_pointed_to_and_its_tokens_count(shop, program, ended):
    goal_id = ended("outer", a=1)
    (child,) = told(program, "show", goal_id)["stages"][0]["children"]
    shop.loom.database.call(
        'UPDATE stages SET token_usage = \'{"prompt_tokens": 30, "completion_tokens": 4}\''
        " WHERE goal_id = %(goal)s AND item = -1 AND state = 'done'",
        {"goal": child["goal_id"]},
    )
    out, _ = program("show", goal_id)
    assert f"inner  pipeline broken failed, 30 + 4 tokens: loomq show {child['goal_id']}" in out
    assert "tokens      30 + 4 tokens" in out
    assert f"part of     goal {goal_id}, stage inner" in program("show", child["goal_id"])[0]
    out, _ = program("explain", child["goal_id"])
    assert "bad    failed: worker failing failed in stage bad: it never works" in out
    assert "never  cancelled: goal failed" in out
    inner = told(program, "explain", goal_id, "inner")
    assert (inner["runs_pipeline"], inner["worker"], inner["input"]["value"]) == ("broken", None, {"a": 1})


def test_an_item_that_is_a_goal_points_to_it(program, ended):
    goal_id = ended("outer_each", many=[1, 2])
    children = told(program, "show", goal_id)["stages"][0]["children"]
    assert [(child["item"], child["status"]) for child in children] == [(0, "failed"), (1, "failed")]
    item = told(program, "explain", goal_id, "each/1")
    assert ([child["goal_id"] for child in item["children"]], item["input"]["value"]) == (
        [children[1]["goal_id"]],
        {"a": 2},
    )


def test_a_goal_that_completed_in_part_says_what_is_missing(program, ended):
    goal_id = ended("partly", a=1)
    shown = told(program, "show", goal_id)
    assert (shown["status"], shown["partial"]) == ("completed", True)
    assert set(shown["result"]) == {"good", "instead", "_errors", "_timeline"}
    assert shown["result"]["_errors"]["bad"]["type"] == "PipelineWorkerError"
    out, _ = program("show", goal_id)
    assert "status      completed, in part after" in out
    assert "instead  failed; its fallback, worker echo on local, took its place" in out
    assert told(program, "explain", goal_id, "instead")["fallback"]["used"] == "worker"


def test_the_prompt_of_a_language_model_is_shown_without_asking_one(program, ended):
    goal_id = ended("asking", text=f"use {SECRET}")
    found = told(program, "explain", goal_id, "ask")
    assert found["status"] == "failed"
    assert found["prompt"]["system"] == "Answer {}."
    assert '"text": "use sk-ant-***"' in found["prompt"]["messages"][0]["content"]
    out, _ = program("explain", goal_id, "ask")
    assert "[system]\n    Answer {}." in out
    assert SECRET not in out


def test_a_task_of_one_worker_has_one_stage_to_explain(shop, program):
    handle = submit_task("double", {"x": 2}, loom=shop.loom)
    handle.result(timeout=30)
    out, _ = program("show", str(handle.goal_id))
    assert "\ncritical path" in out
    assert "* critical path" not in out
    found = told(program, "explain", str(handle.goal_id), "double")
    assert (found["input"]["value"], found["input"]["contract"], found["output"]["contract"]) == (
        {"x": 2},
        "holds",
        "holds",
    )


def test_a_paused_goal_says_so_and_its_pause_is_no_queue(shop, program, tmp_path):
    flag = str(tmp_path / "flag")
    handle = submit_goal("go", pipeline="mixed", context={"flag": flag, "secret": 1}, loom=shop.loom)
    control.pause(shop.loom, handle.goal_id)
    out, _ = program("show", str(handle.goal_id))
    assert f"let it go on: loomq resume {handle.goal_id}" in out
    held = [stage["why"] for stage in told(program, "explain", str(handle.goal_id))["stages"]]
    assert "its goal is paused" in held or "it waits for first" in held
    control.resume(shop.loom, handle.goal_id)
    handle.result(timeout=30)
    parts = [
        part
        for stage in told(program, "show", str(handle.goal_id))["timing"]["stages"].values()
        for part in stage["parts"]
    ]
    assert "paused" in {part.get("why") for part in parts}
