"""Goals steered and followed from the command line, and sessions, on a real worker node."""

from __future__ import annotations

import json
import re

import pytest

from loomq.errors import GoalStateError
from loomq.services.submit import submit_goal, submit_task
from loomq.testing import wait_until

NODE = ("-c", "2")
HOLD = """
while not Path(payload["flag"]).exists():
    time.sleep(0.02)
return {"output": {"x": 1}}
"""


def stock(project):
    project.worker("echo", 'return {"output": {"x": payload["x"]}}', max_retries=0)
    project.worker("hold", HOLD, max_retries=0, timeout_seconds=100)
    project.worker("broken", 'raise ValueError("broken")', max_retries=0)
    project.pipeline(
        "line",
        """
  - {name: first, worker_type: echo, input_mapping: {x: goal.context.x}}
  - {name: second, worker_type: echo, input_mapping: {x: first.output.x}}
""",
    )
    project.pipeline(
        "held",
        """
  - {name: hold, worker_type: hold, input_mapping: {flag: goal.context.flag}}
  - {name: after, worker_type: echo, input_mapping: {x: hold.output.x}}
""",
    )
    project.pipeline("fails", "\n  - {name: broken, worker_type: broken, input_mapping: {x: goal.context.x}}\n")


@pytest.fixture
def project(shop):
    """The program runs in the module's project."""
    return shop.project


@pytest.fixture
def held(shop, tmp_path):
    """A goal whose first stage runs until its flag is there."""
    flag = tmp_path / "flag"
    handle = submit_goal("hold on", pipeline="held", context={"flag": str(flag)}, loom=shop.loom)
    wait_until(lambda: handle.stages()[0].state == "claimed", "the stage to run")
    yield handle, flag
    handle.cancel()


def test_a_cancelled_goal_says_why_and_a_second_time_is_no_error(loomq, held):
    goal = str(held[0].goal_id)
    assert f"goal {goal} has not ended\n  cancel it first" in loomq("rerun", goal, "--yes", code=2)[1]
    assert loomq("cancel", goal, "--reason", "enough of it") == (f"cancelled {goal}\n", "")
    assert loomq("cancel", goal, goal) == (f"nothing to cancel: {goal} is cancelled\n" * 2, "")
    assert "enough of it" in loomq("show", goal)[0]
    shown = json.loads(loomq("cancel", goal, "--json")[0])
    assert shown["goals"] == [{"goal_id": goal, "cancelled": False, "status": "cancelled"}]
    assert "there is no goal" in loomq("cancel", goal, "ffffffff-0000", code=4)[1]
    for command in ("pause", "resume"):
        assert f"goal {goal} is cancelled" in loomq(command, goal, code=2)[1]


def test_a_paused_goal_is_resumed_and_its_events_are_told(loomq, held):
    handle, flag = held
    goal = str(handle.goal_id)
    assert loomq("resume", goal)[0] == f"nothing to resume: {goal} is not paused\n"
    assert loomq("pause", goal)[0] == f"paused {goal}\n"
    assert json.loads(loomq("pause", goal, "--json")[0])["paused"] is True
    flag.touch()
    wait_until(lambda: handle.stages()[0].state == "done", "what runs to end")
    assert loomq("resume", goal)[0] == f"resumed {goal}\n"
    assert handle.result(timeout=30)["after"] == {"x": 1}

    lines = loomq("events", goal, "--follow", "--json")[0].splitlines()
    told = [json.loads(line) for line in lines]
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))
    kinds = [event["kind"] for event in told if event["kind"].startswith("goal")]
    assert kinds == ["goal_submitted", "goal_paused", "goal_resumed", "goal_completed"]
    assert loomq("events", goal, "--after", "3", "--json")[0].splitlines() == lines[3:]
    assert re.search(
        r"(?m)^ +2  \d\d:\d\d:\d\d\.\d{3}  stage_started     hold  attempt 1  delivery 1$", loomq("events", goal)[0]
    )
    assert [event.seq for event in handle.events(after=len(told) - 1)] == [len(told)]


def test_who_follows_sees_each_event_until_the_end_and_gives_up_when_asked_to(loomq, held):
    handle, flag = held
    assert "nothing has happened" in loomq("events", str(handle.goal_id), "-f", "--timeout", "0.2", code=5)[1]
    process = loomq.start("events", str(handle.goal_id), "--follow")
    assert "goal_submitted" in process.stdout.readline()
    flag.touch()
    out, _ = loomq.finish(process)
    assert out.splitlines()[-1].split()[2] == "goal_completed"


def test_a_rerun_shows_what_it_will_do_and_asks(shop, loomq):
    goal = str(submit_goal("go", pipeline="line", context={"x": 1}, loom=shop.loom).goal_id)
    loomq("events", goal, "--follow")
    assert "every stage of goal" in loomq("rerun", goal, code=2)[1]
    assert "no stage reads y of its context" in loomq("rerun", goal, "--set", "y=1", code=2)[1]
    assert 'has no stage "sec"' in loomq("rerun", goal, "--from", "sec", code=2)[1]
    _, err = loomq("rerun", goal, "--from", "second", code=2)
    rows = [line.strip().split(maxsplit=2) for line in err.splitlines()[:3]]
    assert rows == [["stage", "what", "why"], ["second", "runs", "asked for"], ["first", "reused", "its result stands"]]
    assert "1 of 2 stages run again; say --yes to do it" in err

    out, _ = loomq("rerun", goal, "--set", "x=5", "--yes", "--wait")
    assert '"x": 5' in out
    made = json.loads(loomq("rerun", goal, "--from", "second", "--json")[0])
    assert made["rerun_of"] == goal
    assert made["runs"] == [{"stage": "second", "reason": "asked for"}]
    assert made["reuses"] == [{"stage": "first", "reason": "its result stands"}]
    told = [json.loads(line) for line in loomq("events", made["goal_id"], "-f", "--json")[0].splitlines()]
    assert {event["stage"] for event in told} == {None, "second"}
    assert json.loads(loomq("rerun", goal, "--current", "--set", "x=2", "--wait", "--json")[0])["result"]["second"] == {
        "x": 2
    }


def test_a_task_of_one_worker_runs_again_with_another_input_and_as_it_was_submitted(shop):
    task = submit_task("echo", {"x": 1}, loom=shop.loom)
    assert task.result(timeout=30) == {"x": 1}
    shop.loom.database.call("UPDATE stages SET max_retries = 7 WHERE goal_id = %(goal)s", {"goal": task.goal_id})
    with pytest.raises(GoalStateError, match="has its result"):
        task.rerun()
    again = task.rerun(changes={"x": 2})
    assert again.result(timeout=30) == {"x": 2}
    found = shop.loom.database.call("SELECT max_retries FROM stages WHERE goal_id = %(goal)s", {"goal": again.goal_id})
    assert found[0][0] == 7


def test_a_session_is_made_filled_listed_shown_searched_renamed_and_deleted(loomq):
    session = loomq("session", "new")[0].strip()
    loomq("submit", "line", "count the herons", "-i", "x=7", "--session", session[:20], "--wait")
    loomq("submit", "fails", "break it", "-i", "x=7", "--session", session, "--deadline", "60", "--wait", code=1)
    assert "there is no session nothing" in loomq("submit", "line", "--session", "nothing", "-i", "x=1", code=4)[1]

    (line,) = json.loads(loomq("session", "list", "--json")[0])["sessions"]
    assert (line["title"], line["messages"], line["goals"]) == ("count the herons", 3, {"completed": 1, "failed": 1})
    assert "count the herons" in loomq("session", "list")[0]
    out, _ = loomq("session", "show", session)
    assert '  {"x": 7}' in out
    assert "  (failed: PipelineWorkerError: worker broken failed in stage broken: ValueError: broken)" in out
    shown = json.loads(loomq("session", "show", session, "--json")[0])
    assert [message["status"] for message in shown["messages"]] == ["completed", "completed", "failed"]
    assert "**herons**" in loomq("session", "search", "herons")[0]
    assert json.loads(loomq("session", "search", "herons", "--json")[0])["hits"][0]["session_id"] == session
    assert loomq("session", "search", "storks") == ("", "nothing was found\n")
    assert json.loads(loomq("session", "rename", session, "Birds", "--json")[0])["title"] == "Birds"
    assert (
        'session "Birds" with 3 messages would be gone for ever; say --yes'
        in loomq("session", "delete", session, code=2)[1]
    )
    assert loomq("session", "delete", session, "--yes")[0] == f"deleted {session}\n"
    assert loomq("session", "list") == ("", "no sessions yet; begin one: loomq session new\n")
