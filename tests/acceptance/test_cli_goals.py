"""Goals from the command line, with real services and real worker processes."""

from __future__ import annotations

import json
import os
import pty
import signal
from uuid import uuid4

import psutil
import pytest

from loomq.services import inspect, nodes
from loomq.store import goals
from loomq.testing import wait_until

CODE = """
if payload.get("boom"):
    raise ValueError("boom")
if payload.get("again") and not Path(payload["again"]).exists():
    Path(payload["again"]).touch()
    raise TransientBackendError("not yet")
time.sleep(payload.get("sleep") or 0)
return {"output": {"n": payload.get("n", 0) + 1, "pid": os.getpid()}}
"""
LINE = """
  - {name: first, worker_type: count, input_mapping: {n: goal.context.n, boom: "goal.context.boom?"}}
  - {name: second, worker_type: count, input_mapping: {n: first.output.n, sleep: "goal.context.sleep?"}}
  - {name: third, worker_type: count, input_mapping: {n: second.output.n}}
"""


@pytest.fixture
def shop(project):
    """A project with a worker and a pipeline of three stages."""
    project.worker("count", CODE, retry_backoff="{initial: 0.1, jitter: false}")
    project.pipeline("line", LINE, extra="output: {n: third.output.n}\n")
    return project


def test_run_does_everything_in_one_go_and_leaves_nothing_running(shop, loomq):
    out, err = loomq.finish(loomq.start("run", "line", "-i", "n=4", "-c", "1"))

    rows = [line.split()[:4] for line in out.splitlines()[1:4]]
    assert rows == [[name, "count", "local", "completed"] for name in ("first", "second", "third")]
    assert "  n: 7" in out
    assert "completed in" in out
    assert err.splitlines()[-1].split()[1:3] == ["third", "completed"]
    assert "\x1b" not in out + err
    wait_until(lambda: loomq.leftovers() == [], "the private node to leave")


def test_a_live_node_is_used_instead_of_a_private_one_and_show_and_list_tell_what_it_did(shop, loomq, start_node):
    node = start_node("-c", "1")
    child = psutil.Process(node.pid).children()

    out, err = loomq("run", "line", "-i", "n=0", "--json")
    goal = json.loads(out)
    assert (goal["pipeline"], goal["status"], goal["result"]["n"], err) == ("line", "completed", 3, "")
    assert {stage["pid"] for stage in goal["stages"]} <= {process.pid for process in child}
    assert not list((shop.folder / "data").rglob("run-*.log"))

    out, _ = loomq("submit", "count", "-i", "n=41", "--wait", "--json")
    assert (json.loads(out)["worker"], json.loads(out)["result"]["n"]) == ("count", 42)
    _, err = loomq("submit", "line", "-i", "n=0", "-i", "sleep=3", "--wait", "--timeout", "0.3", code=5)
    assert "has not ended within 0.3 s; it goes on" in err

    out, _ = loomq("show", goal["goal_id"][:30])
    assert out.startswith(f"goal        {goal['goal_id']}\npipeline    line\nstatus      completed after")
    assert "  n: 3" in out
    assert json.loads(loomq("show", goal["goal_id"], "--json")[0]) == goal
    rows = [line.split()[1:3] for line in loomq("list")[0].splitlines()[1:]]
    assert rows == [["line", "processing"], ["count", "completed"], ["line", "completed"]]
    listed = json.loads(loomq("list", "--status", "completed", "--name", "count", "--json")[0])
    assert [line["worker"] for line in listed["goals"]] == ["count"]
    assert loomq("list", "--name", "nobody") == ("", "no goals like that\n")


def test_a_failed_stage_ends_with_1_and_names_the_place_and_a_retry_is_told(shop, loomq, start_node):
    start_node("-c", "1")
    out, err = loomq("run", "line", "-i", "n=1", "-i", "boom=true", code=1)
    assert [line.split()[3] for line in out.splitlines()[1:4]] == ["failed", "cancelled", "cancelled"]
    assert "worker count failed in stage first: ValueError: boom" in err
    assert f"where: {shop.folder}/mine/count.py:" in err
    assert "cause: ValueError: boom" in err

    out, err = loomq("run", "count", "-i", "boom=true", "--json", code=1)
    assert json.loads(out)["status"] == "failed"
    assert json.loads(err)["error"]["cause"]["cause"] == "ValueError: boom"
    out, _ = loomq("show", json.loads(out)["goal_id"])
    assert "attempt 1: PipelineWorkerError: worker count failed in stage count: ValueError: boom" in out

    out, _ = loomq("run", "count", "-i", f"again={shop.folder}/flag", "-i", "n=1")
    assert out.splitlines()[1].split()[3:5] == ["completed", "2"]
    assert "attempt 1: PipelineWorkerError: worker count failed in stage count: not yet" in out


def test_a_private_node_that_dies_is_told_with_its_log(shop, loomq):
    process = loomq.start("run", "count", "-i", "sleep=60")
    node = wait_until(lambda: psutil.Process(process.pid).children(), "the worker node", timeout_s=60)[0]
    node.kill()
    _, err = loomq.finish(process, code=3)
    assert "error: the worker ended with -9" in err
    assert f"its log: {shop.folder}/data/logs/run-{process.pid}.log" in err
    assert "is kept; look at it: loomq show" in err


def test_running_out_of_patience_ends_with_5_and_keeps_the_goal(shop, loom, loomq):
    _, err = loomq("run", "line", "-i", "n=0", "--no-worker", "--timeout", "0.5", code=5)
    line = inspect.listed(loom)[0]
    assert line.status == "pending"
    assert f"goal {line.goal_id} has not ended within 0.5 s" in err
    assert f"loomq show {line.goal_id}" in err


def test_postgres_going_away_meanwhile_ends_with_3_and_says_that_the_goal_is_kept(shop, loom, loomq):
    process = loomq.start("run", "count", "--no-worker")
    wait_until(lambda: inspect.listed(loom), "the goal", timeout_s=60)
    listening = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %%'"
    wait_until(lambda: loom.database.call(f"SELECT pg_terminate_backend(pid) {listening}", {}), "its connection")
    _, err = loomq.finish(process, code=3)
    assert "does not answer" in err
    assert f"goal {inspect.listed(loom)[0].goal_id} is kept" in err


def test_an_interrupted_run_ends_with_130_and_leaves_no_worker(shop, loom, loomq):
    process = loomq.start("run", "line", "-i", "n=0", "-i", "sleep=2")
    wait_until(lambda: any(line.stages_running for line in inspect.listed(loom)), "a running stage", timeout_s=60)
    process.send_signal(signal.SIGINT)
    out, err = loomq.finish(process, code=130)
    goal_id = inspect.listed(loom)[0].goal_id
    assert out == ""
    assert f"interrupted: goal {goal_id} has not ended" in err
    assert f"loomq show {goal_id}" in err
    wait_until(lambda: not loomq.leftovers(), "the node's agent, which takes leave of the database after it, to end")


class _Leaving:
    """A node at hand whose user presses Ctrl-C, and whose last work ends the goal."""

    def __init__(self, loom, queues, concurrency, *, wanted):
        self._loom = loom

    def look(self):
        raise KeyboardInterrupt

    def stop(self, grace_s=None):
        (line,) = inspect.listed(self._loom)
        assert goals.end(self._loom.database, line.goal_id, "failed", {"type": "X", "message": "it was too late"})


def test_a_goal_that_ends_while_an_interrupted_run_stops_its_node_shows_its_outcome(shop, loomq, monkeypatch):
    monkeypatch.setattr(nodes, "NodeAtHand", _Leaving)
    _, err = loomq("run", "count", code=1)
    assert "failed: it was too late" in err
    assert "has not ended" not in err


def test_on_a_terminal_there_is_a_live_table_with_colours(shop, loomq, start_node):
    start_node("-c", "1")
    front, back = pty.openpty()
    with os.fdopen(front, "rb") as screen:
        process = loomq.start("run", "line", "-i", "n=0", "-i", "sleep=0.5", stdout=back, stderr=back)
        os.close(back)
        seen = b""
        try:
            while chunk := screen.read1(65536):
                seen += chunk
        except OSError:  # how Linux says that the last writer has gone
            assert process.wait(30) == 0, seen
    assert b"of 3 stages ended" in seen
    assert b"\x1b[32mcompleted" in seen


def test_submit_prints_only_the_id_and_the_same_key_gives_the_same_goal(shop, loom, loomq):
    key = uuid4().hex
    out, err = loomq("submit", "line", "go on", "-i", "n=0", "--key", key, "--priority", "high")
    goal = inspect.goal(loom, inspect.find(loom, out.strip()))
    assert (goal.instruction, goal.priority, goal.context) == ("go on", "high", {"n": 0})
    assert out == f"{goal.goal_id}\n"
    assert "no live worker node serves count.local" in err

    again = json.loads(loomq("submit", "line", "-i", "n=0", "--key", key, "--json")[0])
    assert (again["goal_id"], again["created"]) == (str(goal.goal_id), False)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "lin"], 2, 'did you mean "line"?'),
        (["submit", "count", "an instruction"], 2, "count is a worker"),
        (["submit", "line", "--tier", "local"], 2, "line is a pipeline"),
        (["submit", "line", "--worker"], 2, 'no worker is called "line"'),
        (["submit", "line", "--timeout", "3"], 2, "--timeout needs --wait"),
        (["show", "01"], 4, "there is no goal 01"),
        (["show", "not-an-id"], 4, "there is no goal not-an-id"),
        (["worker", "-Q", "count.locl"], 2, 'did you mean "count.local"?'),
    ],
)
def test_what_cannot_be_is_refused_with_its_own_code(shop, loomq, arguments, code, said):
    out, err = loomq(*arguments, code=code)
    assert out == ""
    assert said in err
    out, err = loomq(*arguments, "--json", code=code)
    assert (out, json.loads(err)["error"]["exit_code"]) == ("", code)


def test_inputs_that_break_the_contract_are_refused_before_anything_is_written(shop, loom, loomq):
    shop.worker("strict", input_schema="{type: object, required: [n]}")
    _, err = loomq("submit", "strict", "-i", "m=1", code=2)
    assert '"n" is a required property' in err
    assert inspect.listed(loom) == []


def test_run_starts_a_node_of_its_own_when_the_one_it_counted_on_goes(shop, loomq, start_node):
    node = start_node("-c", "1")
    running = loomq.start("run", "line", "-i", "n=0", "-i", "sleep=2")
    watcher = shop.loom()
    wait_until(lambda: [line for line in inspect.listed(watcher, limit=1) if line.stages_done], "the first stage")
    watcher.close()
    node.kill()
    out, _ = loomq.finish(running)
    assert "  n: 3" in out


def test_a_second_run_right_behind_the_first_is_not_left_to_a_node_that_leaves(shop, loomq):
    for n in (1, 2):
        out, _ = loomq.finish(loomq.start("run", "line", "-i", f"n={n}", "-c", "1"))
        assert f"  n: {n + 3}" in out
