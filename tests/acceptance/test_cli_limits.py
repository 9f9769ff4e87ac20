"""The commands around queues and limits: what they show, what they set, and files that are read again."""

from __future__ import annotations

import json

import pytest

from loomq.services.submit import submit_goal, submit_task
from loomq.testing import wait_until

ECHO = 'return {"output": {"got": payload}}'


@pytest.fixture
def shop(project):
    project.worker("echo", ECHO)
    project.worker("slow", ECHO, rate_limit="1/h")
    project.worker("keyed", ECHO, concurrency_key="payload.who", max_concurrent=2)
    return project


def _queue(loomq, name):
    return next(each for each in json.loads(loomq("queues", "--json")[0])["queues"] if each["name"] == name)


def _limits(loomq):
    return {(each["name"], each["kind"]): each for each in json.loads(loomq("limits", "--json")[0])["limits"]}


def test_queues_tells_what_waits_who_serves_and_how_much_was_done(shop, loom, loomq, start_node):
    waiting = [submit_task("echo", {}, loom=loom) for _ in range(3)]
    lonely = _queue(loomq, "echo.local")
    assert (lonely["waiting"], lonely["on_broker"], lonely["nodes"], lonely["served"]) == (3, 3, [], False)
    assert lonely["oldest_s"] > 0
    assert "none serves it" in loomq("queues")[0]
    start_node("-c", "2")
    for handle in waiting:
        handle.result(timeout=30)
    done = _queue(loomq, "echo.local")
    assert (done["waiting"], done["slots"], len(done["nodes"]), done["per_minute"]) == (0, 2, 1, 3)
    assert done["oldest_s"] is None


def test_a_queue_that_nobody_serves_is_seen_by_status_doctor_show_and_explain(shop, loom, loomq, start_node):
    start_node("-c", "1", "-Q", "slow.local")
    assert json.loads(loomq("status", "--json")[0])["unserved"] == []
    handle = submit_task("echo", {}, loom=loom)
    (found,) = json.loads(loomq("status", "--json")[0])["unserved"]
    assert (found["name"], found["waiting"]) == ("echo.local", 1)
    assert "no live node serves it: loomq worker -Q echo.local" in loomq("status")[0]
    checks = {each["name"]: each for each in json.loads(loomq("doctor", "--json")[0])["checks"]}
    assert (checks["queues"]["status"], checks["queues"]["fix"]) == ("warn", "loomq worker -Q echo.local")
    for command in ("show", "explain"):
        assert "no live worker node serves echo.local" in loomq(command, str(handle.goal_id))[0]
    node = start_node("-c", "1", "-Q", "echo.local")
    handle.result(timeout=30)
    assert json.loads(loomq("status", "--json")[0])["unserved"] == []
    # A node that dies takes its queue with it, within seconds.
    node.kill()
    submit_task("echo", {}, loom=loom)
    wait_until(lambda: json.loads(loomq("status", "--json")[0])["unserved"], "its absence to be noticed", 15)


def test_limits_tells_each_bucket_and_sets_rates_by_hand(shop, loom, loomq, start_node):
    shop.write("deploy/router_rules.yaml", "rate_limits: {local: {max_concurrent: 3, tokens_per_minute: 900}}\n")
    start_node("-c", "2")
    found = _limits(loomq)
    assert set(found) == {
        ("tier:local", "concurrency"),
        ("tier:local", "tokens"),
        ("worker:keyed", "key"),
        ("worker:slow", "rate"),
    }
    assert found["worker:keyed", "key"]["limit"] == "2 at once for each payload.who"
    assert found["worker:slow", "rate"] == {
        "name": "worker:slow",
        "kind": "rate",
        "limit": "1/h",
        "used": 0,
        "most": 1,
        "waiting": 0,
        "next_s": 0.0,
        "set_by": None,
        "fault": None,
    }
    first, second = (submit_task("slow", {}, loom=loom) for _ in range(2))
    first.result(timeout=30)
    assert _limits(loomq)["worker:slow", "rate"]["waiting"] == 1
    table = loomq("limits")[0]
    assert "worker:slow" in table
    assert "1 h 00 min" in table or "59 min" in table

    _, told = loomq("limits", "set", "slow", "100/s")
    assert "worker:slow is 100/s from now on" in told
    second.result(timeout=10)
    assert json.loads(loomq("limits", "set", "tier:local", "0", "--json")[0])["limit"] == "tier:local"
    assert _limits(loomq)["tier:local", "rate"]["limit"] == "none"
    assert json.loads(loomq("limits", "reset", "slow", "--json")[0])["reset"]
    assert not json.loads(loomq("limits", "reset", "slow", "--json")[0])["reset"]


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (("set", "slwo", "1/s"), 'no worker is called "slwo"\n  did you mean "slow"?', 2),
        (("set", "tier:huge", "1/s"), 'no limit is called "tier:huge"', 2),
        (("set", "slow", "often"), 'write "10/s", "100/m" or "1000/h"', 2),
        (("set", "slow", "10/y"), 'write "10/s", "100/m" or "1000/h"', 2),
        (("set", "slow", "--", "-3/s"), 'write "10/s", "100/m" or "1000/h"', 2),
        (("set", "local", "1/s"), "the tier's limit is called tier:local", 2),
        (("reset", "nobody"), 'no worker is called "nobody"', 2),
    ],
)
def test_what_is_no_limit_or_no_rate_is_refused(shop, loomq, arguments, told, code):
    _, said = loomq("limits", *arguments, code=code)
    assert told in said


def test_watch_goes_on_until_it_is_interrupted(shop, loomq):
    process = loomq.start("queues", "--watch", "--json")
    first = json.loads(process.stdout.readline())
    second = json.loads(process.stdout.readline())
    assert first["queues"][0]["name"] == second["queues"][0]["name"] == "echo.local"
    process.terminate()
    process.communicate(timeout=20)


# Files that are read again


def _nodes(loomq, code=0):
    return json.loads(loomq("reload", "--json", code=code)[0])["nodes"]


def _reloaded(loomq, code=0):
    (node,) = _nodes(loomq, code)
    return node


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_running_node_takes_new_workers_rules_and_limits(shop, loom, loomq, start_node, pool):
    node = start_node("-P", pool, "-c", "2")
    submit_task("echo", {}, loom=loom).result(timeout=30)
    assert _reloaded(loomq) == {
        "node": _reloaded(loomq)["node"],
        "outcome": "read",
        "change": {"added": [], "changed": [], "removed": [], "queues": [], "rules": False},
        "error": None,
    }
    shop.worker("fresh", 'return {"output": {"new": True}}')
    shop.pipeline("both", "- {name: a, worker_type: fresh, input_mapping: {}}")
    shop.write("deploy/router_rules.yaml", "tier_overrides: {echo: standard}\n")
    change = _reloaded(loomq)["change"]
    assert (change["added"], change["queues"], change["rules"]) == (
        ["both", "fresh"],
        ["echo.standard", "fresh.local"],
        True,
    )

    submitter = shop.loom()  # a process that has read the files as they are now
    assert submit_goal("", pipeline="both", loom=submitter).result(timeout=30)["a"] == {"new": True}
    assert submitter.app.tasks["loomq.worker.fresh"].delay({}).get(timeout=30) == {"new": True}
    moved = submit_task("echo", {"n": 1}, loom=submitter)
    assert moved.result(timeout=30) == {"got": {"n": 1}}
    assert "echo.standard" in node.text()
    stale = submit_task("echo", {"n": 2}, loom=loom)  # one that has not: its message goes to the queue of before
    assert stale.result(timeout=30) == {"got": {"n": 2}}
    submitter.close()


def test_a_node_is_known_to_serve_what_it_took_at_a_reload(shop, loom, loomq, start_node):
    shop.env["LOOMQ_TIER"] = "local"
    tier = start_node("-c", "1", "-Q", "echo.local,slow.local")
    shop.env.clear()
    own = start_node("-c", "1", "-Q", "echo.local")
    shop.worker("fresh", 'return {"output": {"new": True}}')
    shop.worker("far", default_model_tier="frontier")
    answers = {node["change"]["queues"][0] if node["change"]["queues"] else None for node in _nodes(loomq)}
    assert answers == {"fresh.local", None}, "only the tier's node takes what is new in its tier"
    wait_until(lambda: _queue(loomq, "fresh.local")["slots"] == 1, "the node to say so")
    submitter = shop.loom()
    handle = submit_task("fresh", {}, loom=submitter)
    assert handle.result(timeout=20) == {"new": True}
    lonely = submit_task("far", {}, loom=submitter)
    told = loomq("explain", str(lonely.goal_id))[0]
    assert "no live worker node serves far.frontier: loomq worker -Q far.frontier" in told
    (shop.folder / "workers" / "far.yaml").unlink()
    assert "worker far has no file any more" in loomq("explain", str(lonely.goal_id))[0]
    assert (tier.process.poll(), own.process.poll()) == (None, None)
    submitter.close()


@pytest.mark.parametrize("command", ["queues", "limits", "status"])
def test_a_broken_file_does_not_keep_anybody_from_looking(shop, loomq, command):
    shop.write("deploy/router_rules.yaml", "rate_limits: {local: {rate: fast}}\n")
    shop.write("workers/echo.yaml", "name: echo\n")
    out, told = loomq(command, "--json")
    assert json.loads(out)
    assert "warning: the project's files have errors, and are left out" in told


def test_work_that_waits_follows_a_rule_that_changes(shop, loom, loomq, start_node):
    start_node("-c", "1", "-Q", "echo.standard")
    waiting = submit_task("echo", {"n": 1}, loom=loom)
    shop.write("deploy/router_rules.yaml", "tier_overrides: {echo: standard}\n")
    assert _reloaded(loomq)["outcome"] == "read"
    assert waiting.result(timeout=30) == {"got": {"n": 1}}


def test_a_broken_file_is_refused_and_the_node_goes_on_with_what_it_had(shop, loom, loomq, start_node):
    start_node("-c", "1")
    assert "worker:slow" in loomq("limits")[0]
    loom.app  # noqa: B018  (this process has read the files as they were)
    shop.write("workers/echo.yaml", "name: echo\nworker_kind: proccessor\n")
    _, told = loomq("reload", code=2)
    assert "worker_kind" in told
    answers = loom.app.control.broadcast("loomq_reload", reply=True, timeout=10, limit=1)
    (said,) = answers[0].values()
    assert "worker_kind" in said["error"]
    assert said["refused"]["type"] == "ConfigError"
    assert submit_task("echo", {"n": 1}, loom=loom).result(timeout=30) == {"got": {"n": 1}}


def test_a_reload_without_nodes_checks_the_files(shop, loomq):
    out, told = loomq("reload")
    assert (out, "no live worker node" in told) == ("", True)


def test_a_task_of_a_worker_that_nobody_knows_is_refused_where_it_is_sent(shop, loom):
    from loomq.errors import UnknownNameError

    with pytest.raises(UnknownNameError, match='no worker is called "ehco"') as caught:
        loom.app.send_task("loomq.worker.ehco", [{}])
    assert caught.value.hint == 'did you mean "echo"?'
