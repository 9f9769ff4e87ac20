"""Plain Celery over loomq's workers: each call is a goal with a row, and a user's own canvas joins by itself."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeoutError

from loomq.errors import PipelineValidationError, UnknownNameError
from loomq.ids import uuid7
from loomq.messages import OrchestratorGoal, TaskStatus
from loomq.runs.submit import Call
from loomq.services import inspect
from loomq.services.dead_letters import edit_dead_letter, list_dead_letters
from loomq.services.submit import submit_goal
from loomq.store import goals, malformed, stages
from loomq.testing import wait_until

NODE = ("-P", "threads", "-c", "4")


def stock(project):
    """Write every worker of this module."""
    project.worker("echo")
    project.worker("add", 'return {"output": {"n": payload["n"] + 1}}')
    project.worker("total", 'return {"output": {"n": sum(item["n"] for item in payload["items"])}}')
    project.worker("broken", 'raise ValueError("no")')
    project.worker("large", 'return {"output": {"text": "x" * 100_000}}')
    project.worker("strict", input_schema="{required: [n]}")
    project.write(
        "mine/blocking.py",
        """
        import asyncio
        import time
        from loomq.workers.base import ProcessingBackend

        class Backend(ProcessingBackend):
            async def process(self, payload, config):
                if payload["block"]:
                    time.sleep(10)
                await asyncio.sleep(0)
                return {"output": {"ok": True}}
        """,
    )
    project.write(
        "workers/blocking.yaml",
        """
        name: blocking
        worker_kind: processor
        processing_backend: mine.blocking.Backend
        timeout_seconds: 0.5
        max_retries: 0
        """,
    )
    project.pipeline(
        "diamond",
        """
  - {name: a, worker_type: echo, input_mapping: {n: goal.context.n}}
  - {name: b, worker_type: echo, input_mapping: {n: a.output.got.n}}
  - {name: c, worker_type: echo, input_mapping: {n: a.output.got.n}}
  - {name: d, worker_type: echo, input_mapping: {b: b.output, c: c.output}}
""",
    )
    project.worker("append", 'with open(payload["file"], "a") as out: out.write("x")\nreturn {"output": {}}')


def task(shop, name):
    """Give the Celery task of a worker."""
    return shop.loom.app.tasks[f"loomq.worker.{name}"]


def test_delay_gives_the_output_and_is_a_goal(shop):
    result = task(shop, "echo").delay({"x": 1})
    assert result.get(timeout=30) == {"got": {"x": 1}}
    assert result.state == "SUCCESS"
    line = inspect.listed(shop.loom, limit=1, name="echo")[0]
    assert line.status is TaskStatus.COMPLETED
    assert line.kind == "worker"


def test_a_chord_joins_with_its_headers_results_in_order(shop):
    add, total = task(shop, "add"), task(shop, "total")
    assert chord([add.s({"n": n}) for n in range(10)], total.s()).apply_async().get(timeout=30) == {"n": 55}


def test_a_chain_passes_each_output_on(shop):
    add = task(shop, "add")
    assert chain(add.s({"n": 1}), add.s(), add.s()).apply_async().get(timeout=30) == {"n": 4}


def test_a_chord_of_chains_joins(shop):
    add, total = task(shop, "add"), task(shop, "total")
    canvas = chord([chain(add.s({"n": n}), add.s()) for n in range(4)], total.s())
    assert canvas.apply_async().get(timeout=30) == {"n": 14}


def test_a_group_gives_its_results_in_order(shop):
    add = task(shop, "add")
    assert group(add.s({"n": n}) for n in range(5)).apply_async().get(timeout=30) == [{"n": n + 1} for n in range(5)]


def test_a_failed_header_fails_the_chord_and_a_failed_link_its_chain(shop):
    add, broken, total = task(shop, "add"), task(shop, "broken"), task(shop, "total")
    with pytest.raises(Exception, match="no"):
        chord([add.s({"n": 1}), broken.s({})], total.s()).apply_async().get(timeout=30)
    with pytest.raises(Exception, match="no"):
        chain(broken.s({}), add.s()).apply_async().get(timeout=30)


def test_a_failure_comes_back_as_a_copy_and_nothing_is_imported_by_name(shop):
    result = task(shop, "broken").delay({})
    with pytest.raises(Exception, match="no") as caught:
        result.get(timeout=30)
    assert type(caught.value).__module__ == "loomq.remote"
    rebuilt = shop.loom.app.backend.exception_to_python(
        {"exc_type": "system", "exc_module": "os", "exc_message": ["touch /tmp/never"]}
    )
    assert type(rebuilt).__module__ == "loomq.remote"


def test_send_task_from_an_app_that_knows_nothing_of_loomq_is_a_goal_too(shop):
    outside = Celery("outside", broker=shop.project.settings_given["broker_url"])
    outside.conf.broker_transport_options = {"queue_order_strategy": "priority", "priority_steps": [0, 3, 6, 9]}
    sent = outside.send_task("loomq.worker.echo", args=[{"from": "outside"}], queue="echo.local")
    outside.close()
    assert shop.loom.app.AsyncResult(sent.id).get(timeout=30) == {"got": {"from": "outside"}}
    assert goals.find_by_key(shop.loom.database, f"task:{sent.id}") is not None


def test_a_call_from_outside_that_no_goal_can_be_made_of_is_kept_with_its_reason(shop):
    outside = Celery("outside", broker=shop.project.settings_given["broker_url"])
    outside.conf.broker_transport_options = {"queue_order_strategy": "priority", "priority_steps": [0, 3, 6, 9]}
    two = outside.send_task("loomq.worker.echo", args=[1, 2], queue="echo.local")
    large = outside.send_task("loomq.worker.echo", args=[{"text": "x" * 300_000}], queue="echo.local")
    outside.close()
    for sent, reason in ((two, "called with 2 positional arguments"), (large, "at most 262,144 are kept")):
        with pytest.raises(Exception, match=reason):
            shop.loom.app.AsyncResult(sent.id).get(timeout=30)
        (kept,) = [one for one in malformed.listed(shop.loom.database, 10) if reason in one.reason]
        assert (kept.queue, kept.properties["headers"]["id"]) == ("echo.local", sent.id)
    assert malformed.get(shop.loom.database, kept.id).body.startswith(b'[[{"text": "xxx')


def test_a_call_from_outside_that_breaks_the_contract_is_a_dead_letter_that_can_be_edited(shop):
    outside = Celery("outside", broker=shop.project.settings_given["broker_url"])
    outside.conf.broker_transport_options = {"queue_order_strategy": "priority", "priority_steps": [0, 3, 6, 9]}
    sent = outside.send_task("loomq.worker.strict", args=[{"m": 1}], queue="strict.local")
    outside.close()
    with pytest.raises(Exception, match="breaks its contract"):
        shop.loom.app.AsyncResult(sent.id).get(timeout=30)
    goal_id = goals.find_by_key(shop.loom.database, f"task:{sent.id}")
    (letter,) = list_dead_letters(goal_id=goal_id, loom=shop.loom)
    assert letter.error_type == "PipelineValidationError"
    edit_dead_letter(letter.id, {"n": 1}, loom=shop.loom)
    assert wait_until(lambda: shop.loom.app.AsyncResult(sent.id).state == "SUCCESS", "the replay")


def test_the_same_task_id_twice_runs_once(shop, tmp_path):
    ledger = tmp_path / "ledger"
    append = task(shop, "append")
    first = append.apply_async([{"file": str(ledger)}], task_id="the-one")
    append.apply_async([{"file": str(ledger)}], task_id="the-one")
    assert first.get(timeout=30) == {}
    assert task(shop, "echo").delay({}).get(timeout=30)
    assert ledger.read_text() == "x"


def test_a_countdown_is_kept_in_the_database_until_it_is_due(shop):
    result = task(shop, "echo").apply_async([{}], countdown=1)
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0.3)
    goal_id = goals.find_by_key(shop.loom.database, f"task:{result.id}")
    assert [stage.state for stage in inspect.progress(shop.loom, goal_id)] == ["ready"]
    assert result.get(timeout=30) == {"got": {}}
    (stage,) = inspect.progress(shop.loom, goal_id)
    assert stage.queue_time_ms >= 900


def test_a_call_of_the_wrong_shape_is_refused_at_once(shop):
    with pytest.raises(TypeError, match="one object"):
        task(shop, "echo").delay(1, 2)
    with pytest.raises(TypeError, match="JSON object"):
        task(shop, "echo").delay("text")
    with pytest.raises(UnknownNameError, match="is no queue of worker echo"):
        task(shop, "echo").apply_async([{}], queue="elsewhere")


def test_celery_sees_the_workers_as_its_own_tasks(shop):
    told = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "loomq", "inspect", "registered", "--timeout", "10"],
        cwd=shop.project.folder,
        env=shop.project.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    for worker in ("echo", "add", "total"):
        assert f"* loomq.worker.{worker}" in told.stdout


def test_pickle_is_refused_and_the_worker_lives(shop, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    def send(producer):
        producer.publish(
            pickle.dumps(((Bomb(),), {}, {})),
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers={"task": "loomq.worker.echo", "id": "bomb", "lang": "py"},
            routing_key="echo.local",
        )

    shop.loom.app.broker.run(send)
    wait_until(lambda: "Refusing to deserialize" in shop.node.text(), "the refusal")
    assert task(shop, "echo").delay({}).get(timeout=30)
    assert not (tmp_path / "opened").exists()


def test_a_pipelines_own_chords_leave_no_rows_behind(shop):
    for n in range(3):
        submit_goal("go", pipeline="diamond", context={"n": n}, loom=shop.loom).result(timeout=30)
    left = shop.loom.database.call("SELECT count(*) FROM chords WHERE group_id LIKE 'loomq-stage-%%'", {})
    user_chords = shop.loom.database.call("SELECT count(*) FROM chords WHERE dispatched_at IS NULL", {})
    assert (left[0][0], user_chords[0][0]) == (0, 0)


def test_a_chord_body_that_cannot_be_called_fails_and_keeps_nobody_waiting(shop):
    large, total = task(shop, "large"), task(shop, "total")
    with pytest.raises(Exception, match="cannot be called"):
        chord([large.s({}) for _ in range(4)], total.s()).apply_async().get(timeout=30)
    assert chord([task(shop, "add").s({"n": 1})] * 2, total.s()).apply_async().get(timeout=30) == {"n": 4}


def test_a_chain_tail_that_cannot_be_called_fails(shop):
    with pytest.raises(Exception, match="contract"):
        chain(task(shop, "echo").s({}), task(shop, "strict").s()).apply_async().get(timeout=30)


def test_a_header_that_was_never_a_goal_fails_its_chord(shop):
    outside = Celery("outside", broker=shop.project.settings_given["broker_url"])
    group_id, body = "a-group", task(shop, "total").s().set(task_id="a-body")
    backend = shop.loom.app.backend
    backend.apply_chord((group_id, []), body)
    backend.set_chord_size(group_id, 2)
    for n, payload in enumerate(({"n": 1}, "no object")):
        outside.send_task(
            "loomq.worker.add", args=[payload], queue="add.local", group_id=group_id, group_index=n, chord=dict(body)
        )
    outside.close()
    with pytest.raises(Exception, match="JSON object"):
        shop.loom.app.AsyncResult("a-body").get(timeout=30)
    assert goals.find_by_key(shop.loom.database, "task:a-body") is None


def test_what_follows_a_call_is_sent_by_the_sweeper_if_its_process_could_not(shop):
    loom, add = shop.loom, task(shop, "add")
    tail = add.s().set(task_id="the-tail")
    accepted = loom.submitter.submit(
        OrchestratorGoal(instruction="", context={"n": 1}),
        worker="add",
        call=Call("the-head", {"chain": [dict(tail)]}, "task:the-head"),
        not_before=datetime.now(UTC) + timedelta(days=1),
    )
    key, token = stages.StageKey(accepted.goal_id, "add"), uuid7()
    loom.database.call("UPDATE stages SET not_before = NULL WHERE goal_id = %(id)s", {"id": accepted.goal_id})
    assert stages.claim(loom.database, key, token, stages.Place(uuid7(), 1, "m"), 60)
    stages.complete(loom.database, key, token, output='{"n": 2}')

    assert loom.app.AsyncResult("the-tail").get(timeout=30) == {"n": 3}
    wait_until(lambda: not goals.unfollowed(loom.database, 0), "the mark")


def test_a_task_id_with_a_colon_is_found(shop):
    assert task(shop, "echo").apply_async([{}], task_id="order:42").get(timeout=30) == {"got": {}}


@pytest.mark.parametrize(
    "options",
    [{"headers": {"get": 1}}, {"shadow": "s" * 300}, {"task_id": "a\nb"}, {"chain": [{"task": "x"}]}],
    ids=["header", "shadow", "id", "chain"],
)
def test_a_call_that_no_node_would_take_is_refused_before_it_is_written(shop, options):
    before = shop.loom.database.call("SELECT count(*) FROM goals", {})
    with pytest.raises(PipelineValidationError, match="cannot be sent"):
        shop.loom.app.tasks["loomq.worker.add"].apply_async(({"a": 1, "b": 2},), **options)
    assert shop.loom.database.call("SELECT count(*) FROM goals", {}) == before


def test_an_impossible_time_limit_is_refused(shop):
    with pytest.raises(PipelineValidationError, match="time limit"):
        task(shop, "echo").apply_async([{}], soft_time_limit=1e13)


def test_a_coroutine_that_blocks_its_loop_costs_only_itself(shop):
    with pytest.raises(Exception, match="ran longer"):
        task(shop, "blocking").delay({"block": True}).get(timeout=30)
    assert task(shop, "blocking").delay({"block": False}).get(timeout=30) == {"ok": True}
