"""Pipelines as people write them, on real worker processes: skips, fan-out, fallbacks, pipelines in pipelines."""

from __future__ import annotations

import os
import signal

import pytest

from loomq.errors import GoalFailedError, GoalStateError
from loomq.services import control
from loomq.services.submit import submit_goal
from loomq.store import goals
from loomq.testing import wait_until

NODE = ("-c", "2")

ADD = 'return {"output": {"sum": payload["a"] + payload.get("b", 0)}}'
LIST = 'return {"output": {"items": list(range(payload["n"]))}}'
DOUBLE = """
if payload["x"] in payload.get("bad", []):
    raise BackendError(f"no {payload['x']}")
return {"output": {"x": payload["x"] * 2, "index": payload.get("index")}}
"""
FAIL = 'raise BackendError("it never works")'
TOTAL = 'return {"output": {"total": sum(one["x"] for one in payload["all"] if one), "errors": payload["errors"]}}'


def stock(project):
    project.worker("add", ADD, max_retries=0)
    project.worker("numbers", LIST, max_retries=0)
    project.worker("double", DOUBLE, max_retries=0)
    project.worker("failing", FAIL, max_retries=0)
    project.worker("total", TOTAL, max_retries=0)
    project.worker("echo")
    project.worker("napping", 'time.sleep(0.15)\nreturn {"output": {"x": payload["x"]}}')
    project.worker("holding", "time.sleep(60)", timeout_seconds=100)
    project.pipeline("one_at_a_time", "\n  - {name: hold, worker_type: holding}\n", extra="max_concurrent_goals: 1\n")
    project.pipeline("held", "\n  - {name: hold, worker_type: holding}\n")
    project.pipeline(
        "asking",
        """
  - {name: first, worker_type: add, input_mapping: {a: goal.context.a}}
  - {name: big, worker_type: echo, condition: first.output.sum >= 10, input_mapping: {s: first.output.sum}}
  - {name: needs_big, worker_type: echo, input_mapping: {s: big.output.got}}
  - {name: may_do_without, worker_type: echo, input_mapping: {s: big.output.got?, t: first.output.sum}}
  - {name: last, worker_type: echo, input_mapping: {t: may_do_without.output.got.t}}
""",
    )
    project.pipeline(
        "fanning",
        """
  - {name: numbers, worker_type: numbers, input_mapping: {n: goal.context.n}}
  - name: double
    worker_type: double
    for_each: numbers.output.items
    max_parallel: 3
    on_item_failure: continue
    condition: item != 2
    input_mapping: {x: item, index: index, bad: goal.context.bad}
  - {name: total, worker_type: total, input_mapping: {all: double.output.items, errors: double.output.errors}}
""",
    )
    project.pipeline(
        "strict",
        """
  - {name: double, worker_type: double, for_each: goal.context.xs, input_mapping: {x: item, bad: goal.context.bad}}
  - {name: after, worker_type: echo, input_mapping: {all: double.output.items}}
""",
    )
    project.pipeline(
        "falling",
        """
  - {name: one, worker_type: failing, fallback: {worker_type: echo}, input_mapping: {a: goal.context.a}}
  - {name: two, worker_type: failing, fallback: {value: {got: nothing}}, input_mapping: {a: goal.context.a}}
  - {name: both, worker_type: echo, input_mapping: {one: one.output.got.a, two: two.output.got}}
""",
    )
    project.pipeline(
        "partial",
        """
  - {name: good, worker_type: echo, input_mapping: {a: goal.context.a}}
  - {name: bad, worker_type: failing, input_mapping: {a: goal.context.a}}
  - {name: after_good, worker_type: echo, input_mapping: {a: good.output.got.a}}
  - {name: after_bad, worker_type: echo, input_mapping: {a: bad.output.x}}
""",
        extra="on_failure: continue_partial\n",
    )
    project.pipeline(
        "slow_items",
        """
  - {name: each, worker_type: napping, for_each: goal.context.xs, max_parallel: 4, input_mapping: {x: item}}
  - {name: after, worker_type: echo, input_mapping: {all: each.output.items}}
""",
    )
    project.pipeline(
        "joined",
        """
  - {name: start, worker_type: echo}
  - {name: left, worker_type: failing, depends_on: [start], fallback: {value: {got: nothing}}}
  - {name: right, worker_type: echo, depends_on: [start]}
  - {name: join, worker_type: echo, input_mapping: {l: left.output.got, r: right.output.got}}
""",
    )
    project.pipeline(
        "outer",
        """
  - {name: before, worker_type: add, input_mapping: {a: goal.context.a}}
  - {name: inner, pipeline: asking, input_mapping: {a: before.output.sum}}
  - name: each
    pipeline: asking
    for_each: goal.context.many
    input_mapping: {a: item}
  - {name: after, worker_type: echo, input_mapping: {got: inner.output.last.got.t, all: each.output.items}}
""",
    )


def _ran(handle):
    return {stage.name: stage.state for stage in handle.stages()}


def _started(handle):
    return {name for name, state in _ran(handle).items() if state in {"claimed", "done"}}


def _run(shop, pipeline, **context):
    handle = submit_goal("go", pipeline=pipeline, context=context, loom=shop.loom)
    return handle, handle.result(timeout=30)


def test_a_false_condition_skips_a_stage_and_what_needs_it_and_nothing_else(shop):
    handle, result = _run(shop, "asking", a=3)
    assert _ran(handle) == {
        "first": "done",
        "big": "skipped",
        "needs_big": "skipped",
        "may_do_without": "done",
        "last": "done",
    }
    assert result["last"] == {"got": {"t": 3}}
    assert "big" not in result
    reasons = {stage.name: stage.reason for stage in handle.stages()}
    assert "first.output.sum >= 10 (it is 3)" in reasons["big"]
    assert reasons["needs_big"] == "it needs big, which has no result"


def test_a_true_condition_runs_everything(shop):
    handle, _ = _run(shop, "asking", a=10)
    assert set(_ran(handle).values()) == {"done"}


@pytest.mark.parametrize("n", [0, 1, 7])
def test_a_stage_runs_once_an_item_and_gives_results_in_order(shop, n):
    _, result = _run(shop, "fanning", n=n, bad=[4])
    expected = [None if x in {2, 4} else {"x": 2 * x, "index": x} for x in range(n)]
    assert result["double"]["items"] == expected
    assert [error["index"] for error in result["double"]["errors"]] == ([4] if n > 4 else [])
    assert result["total"]["total"] == sum(one["x"] for one in expected if one)


def test_an_item_that_fails_fails_its_stage_and_goal(shop):
    handle = submit_goal("go", pipeline="strict", context={"xs": list(range(30)), "bad": [3]}, loom=shop.loom)
    with pytest.raises(GoalFailedError) as caught:
        handle.result(timeout=30)
    assert caught.value.error["index"] == 3
    assert _ran(handle) == {"double": "failed", "after": "cancelled"}


def test_a_fallback_stands_in_for_a_stage_that_failed_for_good(shop):
    handle, result = _run(shop, "falling", a=5)
    assert result["both"]["got"] == {"one": 5, "two": "nothing"}
    one = next(stage for stage in handle.stages() if stage.name == "one")
    assert (one.worker, one.history[0]["error"]["type"]) == ("echo", "PipelineWorkerError")


def test_a_goal_that_goes_on_keeps_what_does_not_need_the_failed_stage(shop):
    handle, result = _run(shop, "partial", a=1)
    assert _ran(handle) == {"good": "done", "bad": "failed", "after_good": "done", "after_bad": "skipped"}
    assert result["after_good"] == {"got": {"a": 1}}


def test_a_stage_may_be_a_pipeline_also_once_an_item(shop):
    handle, result = _run(shop, "outer", a=4, many=[1, 20, 3])
    assert result["after"]["got"]["got"] == 4
    assert [("big" in one) for one in result["each"]["items"]] == [False, True, False]
    assert set(_ran(handle).values()) == {"done"}


def test_a_fallback_in_a_branch_lets_the_join_of_its_chord_run(shop):
    _, result = _run(shop, "joined")
    assert result["join"]["got"]["l"] == "nothing"


def test_a_child_of_the_pool_that_dies_takes_no_item_with_it(shop):
    handle = submit_goal("go", pipeline="slow_items", context={"xs": list(range(12))}, loom=shop.loom)
    running = "SELECT pid FROM stages WHERE goal_id = %(goal)s AND item >= 0 AND state = 'claimed' AND node IS NOT NULL"
    for _ in range(2):
        found = wait_until(lambda: shop.loom.database.call(running, {"goal": handle.goal_id}), "an item to run")
        os.kill(found[0][0], signal.SIGKILL)
    assert [one["x"] for one in handle.result(timeout=30)["after"]["got"]["all"]] == list(range(12))


def test_a_running_stage_of_a_cancelled_goal_is_interrupted(shop):
    handle = submit_goal("go", pipeline="held", context={}, loom=shop.loom)
    wait_until(lambda: _ran(handle)["hold"] == "claimed", "the stage to run")
    goals.end(shop.loom.database, handle.goal_id, "cancelled", {"type": "GoalCancelledError", "message": "enough"})
    wait_until(lambda: _ran(handle)["hold"] == "cancelled", "the stage to be told")
    assert _run(shop, "asking", a=1)[1]["last"]  # both slots are free again, and alive


def test_a_rerun_reuses_what_stands_and_runs_what_has_changed(shop):
    handle, _ = _run(shop, "asking", a=3)
    plan = control.plan_of_rerun(shop.loom, handle.goal_id, start="may_do_without")
    assert set(plan.runs) == {"may_do_without", "last"}
    assert plan.reused == {"first": "done", "big": "skipped", "needs_big": "skipped"}
    again = handle.rerun(start="may_do_without")
    assert again.result(timeout=30)["last"] == {"got": {"t": 3}}
    assert {stage.name: stage.reason for stage in again.stages()}["first"] == "reused"

    other = handle.rerun(changes={"a": 30})
    assert other.result(timeout=30)["big"] == {"got": {"s": 30}}
    with pytest.raises(GoalStateError, match="has its result"):
        other.rerun()


def test_a_paused_goal_starts_nothing_until_it_is_resumed(shop):
    both = [submit_goal("go", pipeline="held", context={}, loom=shop.loom) for _ in range(2)]
    wait_until(lambda: all(_ran(one)["hold"] == "claimed" for one in both), "both slots to be taken")
    later = submit_goal("go", pipeline="asking", context={"a": 1}, loom=shop.loom)
    assert control.pause(shop.loom, later.goal_id)
    for one in both:
        assert control.cancel(shop.loom, one.goal_id)
    assert _run(shop, "asking", a=2)[1]
    assert not _started(later)
    assert control.resume(shop.loom, later.goal_id)
    assert later.result(timeout=30)["last"]
    assert not control.resume(shop.loom, later.goal_id)


def test_only_so_many_goals_of_a_pipeline_are_under_way_and_the_most_urgent_is_next(shop):
    first, second, third = (
        submit_goal("go", pipeline="one_at_a_time", context={}, priority=priority, loom=shop.loom)
        for priority in ("normal", "normal", "high")
    )
    wait_until(lambda: _ran(first)["hold"] == "claimed", "the first to run")
    assert [_ran(handle)["hold"] for handle in (second, third)] == ["ready", "ready"]
    control.cancel(shop.loom, first.goal_id)
    wait_until(lambda: _ran(third)["hold"] == "claimed", "the most urgent to run")
    assert _ran(second)["hold"] == "ready"
    control.cancel(shop.loom, third.goal_id)
    wait_until(lambda: _ran(second)["hold"] == "claimed", "the last to run")
    control.cancel(shop.loom, second.goal_id)
