"""Goals through a real worker node: shapes, contracts, retries, and what a caller is told."""

from __future__ import annotations

import threading

import pytest

from loomq.errors import GoalFailedError, PipelineValidationError, UnknownNameError
from loomq.messages import TaskStatus
from loomq.services import inspect
from loomq.services.submit import submit_goal, submit_task

NODE = ("-c", "2")


def stock(project):
    """Write every worker and pipeline of this module."""
    project.worker("echo", 'return {"output": {"got": payload}, "model_used": "none"}')
    project.worker("big", default_model_tier="frontier")
    project.worker("count", 'return {"output": {"n": payload["n"] + 1}}')
    project.worker("broken", "raise ValueError(f\"no {payload['x']} here\")", max_retries=3)
    project.worker(
        "flaky",
        """
        flag = Path(payload["flag"])
        if not flag.exists():
            flag.touch()
            raise TransientBackendError("not yet")
        return {"output": {"ok": True}}
        """,
        retry_backoff="{initial: 0.1}",
    )
    project.worker(
        "signalling",
        """
        import asyncio
        from celery.exceptions import Ignore
        from loomq.errors import DatabaseUnavailableError
        raise {"ignore": Ignore, "cancelled": asyncio.CancelledError, "outage": lambda: DatabaseUnavailableError("x")}[
            payload["kind"]
        ]()
        """,
        max_retries=0,
    )
    project.worker("slow", "time.sleep(60)", timeout_seconds=0.5, max_retries=0)
    project.worker("strict", input_schema="{type: object, properties: {n: {type: integer}}}")
    project.worker("needy", input_schema="{required: [n]}")
    project.worker("liar", 'return {"output": {"n": True}}', output_schema="{properties: {n: {type: integer}}}")
    project.worker("huge", 'return {"output": {"text": "x" * 300_000}}')
    project.worker("nul", 'return {"output": {"text": "a\\0b"}}')
    project.worker("nan", 'return {"output": {"x": float("nan")}}')
    project.worker("shapeless", 'return ["no"]')
    project.worker("reader", workspace_dir="space", resolve_file_refs="[file_ref]")
    project.write("space/data.json", '{"n": 3}')
    project.write("secret.txt", "no")
    project.write(
        "mine/later.py",
        """
        import asyncio
        from loomq.workers.base import ProcessingBackend

        class Backend(ProcessingBackend):
            def __init__(self, word):
                self.word = word

            async def process(self, payload, config):
                await asyncio.sleep(payload["seconds"])
                return {"output": {"slept": payload["seconds"], "word": self.word, "config": config["word"]}}
        """,
    )
    project.write(
        "workers/later.yaml",
        """
        name: later
        worker_kind: processor
        processing_backend: mine.later.Backend
        backend_config: {word: hi}
        timeout_seconds: 0.5
        max_retries: 0
        """,
    )
    project.pipeline(
        "diamond",
        """
  - {name: a, worker_type: echo, input_mapping: {x: goal.context.x}}
  - {name: b, worker_type: echo, input_mapping: {x: a.output.got.x}}
  - {name: c, worker_type: echo, input_mapping: {x: a.output.got.x}}
  - {name: d, worker_type: echo, input_mapping: {left: b.output.got.x, right: c.output.got.x}}
""",
    )
    line = ["  - {name: s0, worker_type: count, input_mapping: {n: goal.context.n}}"]
    line += [f"  - {{name: s{i}, worker_type: count, input_mapping: {{n: s{i - 1}.output.n}}}}" for i in range(1, 50)]
    project.pipeline("line", "\n".join(line), "output: {n: s49.output.n}\n")
    project.pipeline(
        "mixed",
        """
  - {name: one, worker_type: echo, tier: standard, input_mapping: {x: goal.instruction}}
  - {name: two, worker_type: big, input_mapping: {x: one.output.got.x}}
  - {name: three, worker_type: echo, input_mapping: {x: two.output.got.x, y: "'literal'"}}
""",
    )
    project.pipeline(
        "half",
        """
  - {name: good, worker_type: echo, input_mapping: {x: goal.context.x}}
  - {name: bad, worker_type: broken, input_mapping: {x: good.output.got.x}}
  - {name: never, worker_type: echo, input_mapping: {x: bad.output.x}}
""",
    )
    for worker in ("strict", "liar", "huge", "nul", "nan", "shapeless"):
        project.pipeline(
            f"one_{worker}", f"  - {{name: only, worker_type: {worker}, input_mapping: {{n: goal.context.n?}}}}"
        )


def test_a_diamond_runs_each_stage_once_and_joins_after_both_parents(shop):
    handle = submit_goal("go", pipeline="diamond", context={"x": 7}, loom=shop.loom)
    result = handle.result(timeout=30)

    assert result["d"] == {"got": {"left": 7, "right": 7}}
    timeline = {entry["stage"]: entry for entry in result["_timeline"]}
    assert set(timeline) == {"a", "b", "c", "d"}
    assert {entry["status"] for entry in timeline.values()} == {"completed"}
    assert timeline["d"]["started_at"] >= max(timeline["b"]["ended_at"], timeline["c"]["ended_at"])
    assert timeline["a"]["model_used"] == "none"
    assert all((stage.deliveries, stage.attempt) == (1, 1) for stage in handle.stages())


def test_many_diamonds_at_once_run_each_stage_once(shop):
    handles = [submit_goal("go", pipeline="diamond", context={"x": n}, loom=shop.loom) for n in range(40)]
    assert [handle.result(timeout=60)["d"]["got"]["left"] for handle in handles] == list(range(40))
    assert {stage.deliveries for handle in handles for stage in handle.stages()} == {1}


def test_a_chain_of_fifty_stages_runs_in_order(shop):
    handle = submit_goal("count", pipeline="line", context={"n": 0}, loom=shop.loom)
    assert handle.result(timeout=40)["n"] == 50
    assert [stage.deliveries for stage in handle.stages()] == [1] * 50


def test_stages_of_several_workers_and_tiers_meet_in_one_pipeline(shop):
    handle = submit_goal("hello", pipeline="mixed", loom=shop.loom)
    assert handle.result(timeout=30)["three"] == {"got": {"x": "hello", "y": "literal"}}
    assert [stage.tier for stage in handle.stages()] == ["standard", "frontier", "local"]


def test_an_async_backend_runs_on_the_loop_and_is_cancelled_at_its_deadline(shop):
    assert submit_task("later", {"seconds": 0.01}, loom=shop.loom).result(timeout=30) == {
        "slept": 0.01,
        "word": "hi",
        "config": "hi",
    }
    with pytest.raises(GoalFailedError) as caught:
        submit_task("later", {"seconds": 60}, loom=shop.loom).result(timeout=30)
    assert caught.value.error["type"] == "PipelineTimeoutError"


def test_a_failed_stage_ends_its_goal_and_keeps_what_was_finished(shop):
    handle = submit_goal("go", pipeline="half", context={"x": "tea"}, loom=shop.loom)
    with pytest.raises(GoalFailedError) as caught:
        handle.result(timeout=30)

    error = caught.value.error
    assert error["type"] == "PipelineWorkerError"
    assert error["stage"] == "bad"
    assert error["cause"] == "ValueError: no tea here"
    assert "mine/broken.py:" in error["where"]
    assert caught.value.output["good"] == {"got": {"x": "tea"}}
    assert {entry["stage"]: entry["status"] for entry in caught.value.output["_timeline"]} == {
        "good": "completed",
        "bad": "failed",
        "never": "cancelled",
    }
    assert handle.status() is TaskStatus.FAILED
    assert {stage.name: stage.attempt for stage in handle.stages()}["bad"] == 1  # not retried: it is no transient fault


def test_a_transient_failure_is_retried_with_the_same_row_and_a_higher_attempt(shop, tmp_path):
    handle = submit_task("flaky", {"flag": str(tmp_path / "flag")}, loom=shop.loom)
    assert handle.result(timeout=30) == {"ok": True}
    (stage,) = handle.stages()
    assert (stage.attempt, stage.deliveries) == (2, 1)
    assert stage.history[0]["error"]["message"].endswith("not yet")


@pytest.mark.parametrize("kind", ["ignore", "cancelled", "outage"])
def test_what_looks_like_a_signal_of_ours_and_comes_from_a_worker_is_its_failure(shop, kind):
    with pytest.raises(GoalFailedError) as caught:
        submit_task("signalling", {"kind": kind}, loom=shop.loom).result(timeout=20)
    assert caught.value.error["type"] == "PipelineWorkerError"


def test_code_that_overruns_is_interrupted(shop):
    with pytest.raises(GoalFailedError) as caught:
        submit_task("slow", {}, loom=shop.loom).result(timeout=30)
    assert caught.value.error["type"] == "PipelineTimeoutError"


@pytest.mark.parametrize(
    ("worker", "payload", "told"),
    [
        ("strict", {"n": "three"}, "input breaks its contract"),
        ("liar", {}, "output breaks its contract"),
        ("huge", {}, "write it to the workspace"),
        ("nul", {}, "NUL"),
        ("nan", {}, "not JSON"),
        ("shapeless", {}, "not {'output'"),
    ],
)
def test_what_breaks_a_contract_fails_the_stage_and_says_how(shop, worker, payload, told):
    with pytest.raises(GoalFailedError) as caught:
        submit_goal("go", pipeline=f"one_{worker}", context=payload, loom=shop.loom).result(timeout=30)
    assert caught.value.error["type"] in {"PipelineValidationError", "PipelineWorkerError"}
    assert told in f"{caught.value.error['message']} {caught.value.error.get('hint')}"


def test_file_refs_are_read_from_the_workspace_and_nowhere_else(shop):
    result = submit_task("reader", {"file_ref": "data.json"}, loom=shop.loom).result(timeout=30)
    assert result["got"]["file_ref_content"] == {"n": 3}
    with pytest.raises(GoalFailedError, match="file ref"):
        submit_task("reader", {"file_ref": "../secret.txt"}, loom=shop.loom).result(timeout=30)


def test_bad_submissions_are_refused_before_anything_is_written(shop):
    before = len(inspect.listed(shop.loom, limit=1000))
    with pytest.raises(UnknownNameError, match='no worker is called "ecko"') as caught:
        submit_task("ecko", {}, loom=shop.loom)
    assert "echo" in str(caught.value)
    with pytest.raises(PipelineValidationError, match="breaks its contract"):
        submit_task("needy", {}, loom=shop.loom)
    with pytest.raises(UnknownNameError, match="no pipeline"):
        submit_goal("go", pipeline="nowhere", loom=shop.loom)
    with pytest.raises(UnknownNameError, match="frontier"):
        submit_task("echo", {}, tier="frontier", loom=shop.loom)
    assert len(inspect.listed(shop.loom, limit=1000)) == before


def test_one_idempotency_key_from_many_threads_is_one_goal(shop):
    found = []
    barrier = threading.Barrier(12)

    def submit():
        barrier.wait()
        found.append(submit_goal("go", pipeline="diamond", context={"x": 1}, idempotency_key="once", loom=shop.loom))

    threads = [threading.Thread(target=submit) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({handle.goal_id for handle in found}) == 1
    assert [handle.created for handle in found].count(True) == 1
    found[0].result(timeout=30)
