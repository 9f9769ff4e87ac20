"""What survives a kill, a lost broker, a doubled message: goals through real worker processes that are not spared."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta

import psutil
import pytest

from loomq.errors import GoalFailedError, WaitTimeoutError
from loomq.messages import TaskStatus
from loomq.services.submit import submit_goal, submit_task
from loomq.testing import fake_llm, wait_until


def test_code_that_holds_the_gil_is_ended_with_its_process(project, loom, start_node):

    project.worker("stuck", "sum(range(10**12))", timeout_seconds=0.5, max_retries=0)  # C code that asks nobody
    project.worker("echo")
    start_node("-c", "1")

    handle = submit_task("stuck", {}, loom=loom)
    with pytest.raises(GoalFailedError) as caught:
        handle.result(timeout=30)
    assert caught.value.error["type"] == "PipelineTimeoutError"
    assert submit_task("echo", {"still": "alive"}, loom=loom).result(timeout=30) == {"got": {"still": "alive"}}


BLOCKING = """
Path(payload["started"]).write_text(str(os.getpid()))
while Path(payload["hold"]).exists():
    time.sleep(0.02)
return {"output": {"pid": os.getpid()}}
"""


def _hold(project, loom):
    hold, started = project.folder / "hold", project.folder / "started"
    hold.touch()
    handle = submit_goal("go", pipeline="held", context={"hold": str(hold), "started": str(started)}, loom=loom)
    wait_until(lambda: started.exists() and started.read_text(), "the stage to start")
    return handle, hold, int(started.read_text())


def _held_pipeline(project):
    project.worker("holding", BLOCKING)
    project.worker("echo")
    project.pipeline(
        "held",
        """
        - {name: work, worker_type: holding, input_mapping: {hold: goal.context.hold, started: goal.context.started}}
        - {name: after, worker_type: echo, input_mapping: {pid: work.output.pid}}
        """.replace("\n        ", "\n  "),
    )


def test_a_child_killed_in_the_middle_of_a_stage_costs_one_delivery_and_no_result(project, loom, start_node):
    _held_pipeline(project)
    start_node("-c", "1")
    handle, hold, pid = _hold(project, loom)

    os.kill(pid, signal.SIGKILL)
    hold.unlink()

    result = handle.result(timeout=30)
    assert result["after"]["got"]["pid"] != pid
    stages = {stage.name: stage for stage in handle.stages()}
    assert (stages["work"].deliveries, stages["work"].attempt) == (2, 1)
    assert stages["work"].history[0]["error"]["type"] == "WorkerLostError"
    assert stages["after"].deliveries == 1


def test_a_node_killed_in_the_middle_of_a_stage_is_replaced_by_another(project, loom, start_node):
    _held_pipeline(project)
    first = start_node("-c", "1")
    handle, hold, pid = _hold(project, loom)
    start_node("-c", "1")

    first.kill()
    hold.unlink()

    assert handle.result(timeout=30)["work"]["pid"] != pid
    wait_until(lambda: not psutil.pid_exists(pid), "the killed child to be gone")


def test_work_that_kills_its_process_is_given_up_after_five_deliveries(project, loom, start_node):
    project.worker("poison", "os.kill(os.getpid(), signal.SIGKILL)")
    project.worker("echo")
    start_node("-c", "1")

    poison = submit_task("poison", {}, loom=loom)
    with pytest.raises(GoalFailedError) as caught:
        poison.result(timeout=60)

    assert caught.value.error["type"] == "WorkerLostError"
    (stage,) = poison.stages()
    assert (stage.state, stage.deliveries, len(stage.history)) == ("dead", 5, 5)
    assert submit_task("echo", {}, loom=loom).result(timeout=30) == {"got": {}}


def test_messages_lost_with_the_broker_are_sent_again(project, loom, start_node):
    project.worker("echo")
    handles = [submit_task("echo", {"n": n}, loom=loom) for n in range(20)]
    loom.app.broker.run(lambda producer: producer.channel.client.flushdb())

    start_node()

    assert [handle.result(timeout=30)["got"]["n"] for handle in handles] == list(range(20))
    assert {handle.stages()[0].deliveries for handle in handles} == {1}


def test_a_doubled_message_runs_once(project, loom, start_node):
    project.worker("append", 'with open(payload["file"], "a") as out: out.write("x")\nreturn {"output": {}}')
    ledger = project.folder / "ledger"
    handle = submit_task("append", {"file": str(ledger)}, loom=loom)

    def double(producer):
        client = producer.channel.client
        for key in client.keys("append.local*"):
            for message in client.lrange(key, 0, -1):
                client.lpush(key, message)

    loom.app.broker.run(double)
    node = start_node("-c", "2")
    handle.result(timeout=30)
    wait_until(lambda: "is not there to claim" in node.text(), "the duplicate to be dropped")
    assert ledger.read_text() == "x"


def test_a_goal_is_accepted_with_the_broker_down_and_runs_when_a_node_finds_it(project, loom, start_node):
    project.worker("echo")
    cut_off = project.loom(broker_url="redis://127.0.0.1:1/0")

    handle = submit_task("echo", {"n": 1}, loom=cut_off)
    assert handle.status() is TaskStatus.PENDING
    start_node()

    assert submit_task("echo", {"n": 2}, loom=loom).result(timeout=30) == {"got": {"n": 2}}
    assert handle.result(timeout=30) == {"got": {"n": 1}}
    cut_off.close()


def test_a_goal_past_its_deadline_fails_though_a_stage_of_it_runs(project, loom, start_node):
    _held_pipeline(project)
    start_node("-c", "1")
    hold, started = project.folder / "hold", project.folder / "started"
    hold.touch()
    context = {"hold": str(hold), "started": str(started)}
    handle = submit_goal("go", pipeline="held", context=context, deadline=timedelta(seconds=1.5), loom=loom)
    with pytest.raises(GoalFailedError, match="deadline") as caught:
        handle.result(timeout=30)
    assert caught.value.error["type"] == "PipelineTimeoutError"
    assert {stage.name: stage.state for stage in handle.stages()}["after"] == "cancelled"
    hold.unlink()


def test_waiting_ends_with_the_callers_patience_and_the_goal_goes_on(project, loom, start_node):
    _held_pipeline(project)
    start_node("-c", "1")
    handle, hold, _ = _hold(project, loom)
    with pytest.raises(WaitTimeoutError):
        handle.result(timeout=0.2)
    assert handle.status() is TaskStatus.PROCESSING
    hold.unlink()
    assert asyncio.run(handle.aresult(timeout=30))["after"]


def _write_release(project, word, retries):
    """Write a release's files: what a stage is told, by whose prompt, and how often it is tried."""
    project.write(
        "workers/say.yaml",
        f"name: say\nsystem_prompt: The {word} prompt.\noutput_schema: {{type: object}}\n",
    )
    once = """
    Path("tries").open("a").write(payload["word"] + "\\n")
    if Path("tries").read_text().count(payload["word"]) == 1:
        raise TransientBackendError("not yet")
    return {"output": payload}
    """
    project.worker("once_more", once, max_retries=retries, retry_backoff="{initial: 0.05}")
    project.pipeline(
        "held",
        f"""
  - {{name: work, worker_type: holding, input_mapping: {{hold: goal.context.hold, started: goal.context.started}}}}
  - {{name: say, worker_type: say, input_mapping: {{word: "'{word}'", after: work.output.pid}}}}
  - {{name: end, worker_type: once_more, input_mapping: {{word: "'{word}'", after: say.output}}}}
""",
    )


def test_a_goal_ends_by_the_plan_it_began_with_though_its_files_change_and_its_node_is_restarted(
    project, loom, start_node
):
    project.worker("holding", BLOCKING)
    _write_release(project, "old", retries=1)
    with fake_llm([{"json": {}}]) as provider:
        project.env = provider.environment("anthropic")
        node = start_node("-c", "1")
        handle, hold, _ = _hold(project, loom)
        _write_release(project, "new", retries=0)
        node.kill()
        hold.unlink()
        start_node("-c", "1")

        assert handle.result(timeout=30)["end"]["word"] == "old"
        assert [stage.attempt for stage in handle.stages()] == [1, 1, 2]
        later = project.loom()
        context = {"hold": str(hold), "started": str(project.folder / "begun")}
        new = submit_goal("go", pipeline="held", context=context, loom=later)
        with pytest.raises(GoalFailedError, match="not yet"):
            new.result(timeout=30)
        later.close()
        prompts = [str(entry.body) for entry in provider.journal]
    assert [word for text in prompts for word in ("old", "new") if f"The {word} prompt." in text] == ["old", "new"]
    assert (project.folder / "tries").read_text().split() == ["old", "old", "new"]
