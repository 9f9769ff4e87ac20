"""Limits over a whole cluster, on real nodes: rates, slots, keys, budgets, and what a limit must not hold up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import redis

from loomq.embedded.binaries import redis_server
from loomq.embedded.paths import Account
from loomq.errors import GoalFailedError
from loomq.services import inspect, limits
from loomq.services.dead_letters import list_dead_letters
from loomq.services.explain import stage as explained
from loomq.services.submit import submit_goal, submit_task
from loomq.testing import fake_llm, wait_until

STAMP = """
with open(payload["log"], "a") as log:
    log.write(f"{time.time():.6f} {payload['n']}\\n")
return {"output": {"n": payload["n"]}}
"""
SPAN = """
def note(what):
    with open(payload["log"], "a") as log:
        log.write(f"{time.time():.6f} {what} {payload['n']} {payload.get('who')}\\n")
note("+")
time.sleep(payload.get("s", 0.1))
note("-")
return {"output": {"n": payload["n"]}}
"""


@pytest.fixture
def log(tmp_path):
    """Where tasks write down when they ran."""
    return tmp_path / "log"


def begun(log):
    """When each task began, and which."""
    lines = sorted(log.read_text().splitlines()) if log.exists() else []
    words = [line.replace("+ ", "").split() for line in lines if " - " not in line]
    return [(float(at), int(n)) for at, n, *_ in words]


def most_at_once(log, who=None):
    """How many tasks ran at the same time, all of them or somebody's."""
    found = most = 0
    for _, what, _, whose in sorted(line.split() for line in log.read_text().splitlines()):
        if who is None or whose == who:
            found += 1 if what == "+" else -1
            most = max(most, found)
    return most


def held_to(times, per_s, burst, slack_s=0.25):
    """Whether no window of time holds more than its share; a task writes its time down a moment after its start."""
    return all(
        later - first + 1 <= per_s * (times[later] - times[first] + slack_s) + burst
        for first in range(len(times))
        for later in range(first, len(times))
    )


def _all(handles, timeout=60):
    return [handle.result(timeout=timeout) for handle in handles]


def _stage(loom, handle):
    return inspect.goal(loom, handle.goal_id).stages[0]


# Rates


def test_a_rate_holds_over_two_nodes_of_which_one_dies_and_keeps_the_order(project, loom, start_node, log):
    project.worker("slow", STAMP, rate_limit="20/s")
    nodes = [start_node("-c", "2") for _ in range(2)]
    handles = [submit_task("slow", {"log": str(log), "n": n}, loom=loom) for n in range(120)]
    wait_until(lambda: len(begun(log)) > 40, "a part of the work")
    nodes[0].kill()
    _all(handles)
    times = [at for at, _ in begun(log)]
    assert held_to(times, 20, 20)
    assert len(times) >= 0.9 * min(20 * (times[-1] - times[0]) + 20, 120)
    kinds = {event.kind for event in handles[100].events(timeout=5)}
    assert "stage_let_go" in kinds, "what waited is to be seen afterwards"
    order = dict.fromkeys(n for _, n in begun(log))
    # A few run side by side, and what the dead node had in hand comes when it is found.
    assert sum(abs(place - n) > 8 for place, n in enumerate(order)) <= 4
    assert not list_dead_letters(loom=loom)


def test_a_limited_task_waits_outside_the_slots_and_holds_no_other_queue_up(project, loom, start_node, log):
    project.worker("slow", STAMP, rate_limit="1/h")
    project.worker("free")
    project.worker("one", SPAN, max_concurrent=1)
    start_node("-c", "1")
    slow = [submit_task("slow", {"log": str(log), "n": n}, loom=loom) for n in range(30)]
    slow[0].result(timeout=30)
    free = [submit_task("free", {"n": n}, loom=loom) for n in range(20)]
    _all(free, timeout=20)
    waiting = [_stage(loom, handle) for handle in slow[1:]]
    assert {(stage.state, stage.deliveries, stage.attempt) for stage in waiting} == {("ready", 0, 1)}
    assert len(begun(log)) == 1
    (found,) = [each for each in limits.survey(loom) if each.name == "worker:slow"]
    assert (found.kind, found.limit, found.used, found.most, found.waiting) == ("rate", "1/h", 1, 1, 29)
    assert 3000 < found.next_s <= 3600
    assert slow[1].cancel()


def test_a_rate_set_by_hand_holds_for_nodes_that_run_and_for_later_ones(project, loom, start_node, log):
    project.worker("slow", STAMP)
    start_node("-c", "2")
    _all([submit_task("slow", {"log": str(log), "n": n}, loom=loom) for n in range(5)])
    said = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "loomq", "control", "rate_limit", "loomq.worker.slow", "4/s"],
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "new rate limit set for the whole cluster: 4/s" in said.stdout + said.stderr
    start_node("-c", "2")
    log.write_text("")
    _all([submit_task("slow", {"log": str(log), "n": n}, loom=loom) for n in range(16)])
    times = [at for at, _ in begun(log)]
    assert held_to(times, 4, 4)
    assert times[-1] - times[0] > 2.5
    (found,) = limits.survey(loom)
    assert (found.name, found.limit, found.set_by.startswith("celery control")) == ("worker:slow", "4/s", True)
    assert limits.set_rate(loom, "slow", "0") == "worker:slow"
    log.write_text("")
    _all([submit_task("slow", {"log": str(log), "n": n}, loom=loom) for n in range(30)], timeout=10)
    assert limits.reset_rate(loom, "slow") == ("worker:slow", True)


def test_after_a_wipe_of_redis_there_is_at_most_one_more_burst(project, loom, start_node, log):
    project.worker("slow", STAMP, rate_limit="10/s")
    start_node("-c", "2")
    handles = [submit_task("slow", {"log": str(log), "n": n}, loom=loom) for n in range(60)]
    wait_until(lambda: len(begun(log)) > 20, "a part of the work")
    loom.app.broker.run(lambda producer: producer.channel.client.flushdb())
    _all(handles)
    times = [at for at, _ in begun(log)]
    assert held_to(times, 10, 20)


class OwnRedis:
    """A Redis for the limits alone, which may go away."""

    def __init__(self, folder):
        self.socket = folder / "limits.sock"
        self.url = f"redis+socket://{self.socket}"
        self._command = [
            redis_server(Account(os.geteuid(), os.getegid(), foreign=False)),
            *("--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(folder)),
        ]

    def start(self):
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        wait_until(self._answers, "the limits' Redis")

    def kill(self):
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _answers(self):
        try:
            with redis.Redis(unix_socket_path=str(self.socket)) as client:
                return client.ping()
        except redis.RedisError:
            return False


@contextmanager
def _own_redis(tmp_path_factory):
    server = OwnRedis(tmp_path_factory.mktemp("r"))
    server.start()
    try:
        yield server
    finally:
        server.kill()


def test_without_the_limits_redis_limited_tasks_wait_and_others_go_on(project, start_node, log, tmp_path_factory):
    project.worker("slow", STAMP, rate_limit="10/s")
    project.worker("free")
    with _own_redis(tmp_path_factory) as server:
        project.settings_given["redis_url"] = server.url
        loom = project.loom()
        start_node("-c", "2")
        _all([submit_task("slow", {"log": str(log), "n": n}, loom=loom) for n in range(3)])
        server.kill()
        slow = [submit_task("slow", {"log": str(log), "n": 100 + n}, loom=loom) for n in range(40)]
        _all([submit_task("free", {}, loom=loom) for _ in range(10)], timeout=20)
        assert len(begun(log)) == 3
        (found,) = limits.survey(loom)
        assert found.fault.startswith("the Redis of the limits at")
        server.start()
        _all(slow)
        times = [at for at, n in begun(log) if n >= 100]
        assert held_to(times, 10, 10)
        loom.close()


def test_code_that_hangs_or_ends_its_process_when_it_is_imported_fails_its_task_though_it_has_limits(
    project, loom, start_node, log
):
    for name, first in (("stuck", "import time\ntime.sleep(600)\n"), ("gone", "raise SystemExit(3)\n")):
        project.worker(name, timeout_seconds=0.5, max_retries=0, rate_limit="100/s")
        project.write(f"mine/{name}.py", first + (project.folder / f"mine/{name}.py").read_text())
    project.worker("well", rate_limit="100/s")
    start_node("-c", "1")
    handles = [submit_task(name, {}, loom=loom) for name in ("stuck", "gone")]
    for handle in handles:
        with pytest.raises(GoalFailedError):
            handle.result(timeout=30)
    _all([submit_task("well", {}, loom=loom)])


def test_a_payload_that_breaks_its_contract_uses_up_nothing_of_a_rate(project, loom, start_node):
    schema = "{type: object, properties: {n: {type: integer}}, required: [n]}"
    project.worker("strict", rate_limit="2/h", input_schema=schema, max_retries=0)
    project.pipeline("p", "- {name: s, worker_type: strict, input_mapping: {n: goal.context.n}}")
    start_node("-c", "1")
    for _ in range(4):
        with pytest.raises(GoalFailedError):
            submit_goal("", pipeline="p", context={"n": "x"}, loom=loom).result(timeout=30)
    _all([submit_goal("", pipeline="p", context={"n": 1}, loom=loom)])


# Slots


def test_max_concurrent_holds_over_nodes_and_a_killed_holders_slot_comes_back(project, loom, start_node, log):
    project.worker("two", SPAN, max_concurrent=2)
    nodes = [start_node("-c", "3") for _ in range(2)]
    handles = [submit_task("two", {"log": str(log), "n": n, "s": 0.15}, loom=loom) for n in range(30)]
    _all(handles[:10])
    assert most_at_once(log) == 2
    log.write_text("")
    submit_task("two", {"log": str(log), "n": 99, "s": 600}, loom=loom, priority="critical")
    wait_until(lambda: any(n == 99 for _, n in begun(log)), "the long one")
    by_pid = {node.pid: node for node in nodes}
    (holder,) = [node for node in by_pid.values() if _holds(loom, node)]
    holder.kill()
    _all(handles, timeout=60)
    assert most_at_once(log) <= 3  # the killed one never says that it ended


def _holds(loom, node):
    query = "SELECT count(*) FROM stages s JOIN nodes n ON n.id = s.node WHERE s.state = 'claimed' AND n.pid = %(pid)s"
    query += " AND s.timeout_s >= 0 AND EXISTS (SELECT 1 FROM goals g WHERE g.id = s.goal_id AND g.priority = 3)"
    return loom.database.call(query, {"pid": node.pid})[0][0] > 0


def test_a_tiers_slots_are_shared_by_its_workers(project, loom, start_node, log):
    for name in ("one", "other"):
        project.worker(name, SPAN)
    project.write("deploy/router_rules.yaml", "rate_limits: {local: {max_concurrent: 2}}\n")
    start_node("-c", "4")
    handles = [
        submit_task(name, {"log": str(log), "n": n, "who": name}, loom=loom)
        for n in range(8)
        for name in ("one", "other")
    ]
    _all(handles)
    assert most_at_once(log) == 2
    firsts = [line.split()[3] for line in log.read_text().splitlines() if line.split()[1] == "+"][:6]
    assert set(firsts) == {"one", "other"}, "neither keeps the other waiting"


def test_a_concurrency_key_lets_each_value_run_one_at_a_time(project, loom, start_node, log):
    project.worker("keyed", SPAN, concurrency_key="payload.who")
    project.worker("shared", SPAN, concurrency_key="press")
    project.worker("sharing", SPAN, concurrency_key="press")
    start_node("-c", "4")
    handles = [
        submit_task("keyed", {"log": str(log), "n": n, "who": who, "s": 0.2}, loom=loom)
        for n in range(5)
        for who in "ab"
    ]
    _all(handles)
    assert (most_at_once(log, "a"), most_at_once(log, "b"), most_at_once(log)) == (1, 1, 2)
    assert {_stage(loom, handle).deliveries for handle in handles} == {1}
    (listed, *_) = [each for each in limits.survey(loom) if each.kind == "key"]
    assert (listed.name, listed.limit) == ("worker:keyed", "1 at once for each payload.who")
    log.write_text("")
    _all([submit_task(name, {"log": str(log), "n": n}, loom=loom) for n in range(3) for name in ("shared", "sharing")])
    assert most_at_once(log) == 1


def test_a_backend_that_serializes_its_writes_runs_alone_in_the_cluster(project, loom, start_node, log):
    project.worker("writer", SPAN)
    file = project.folder / "mine" / "writer.py"
    file.write_text(file.read_text().replace("Backend):\n", "Backend):\n    serialize_writes = True\n\n"))
    for _ in range(2):
        start_node("-c", "2")
    _all([submit_task("writer", {"log": str(log), "n": n}, loom=loom) for n in range(8)])
    assert most_at_once(log) == 1


# Budgets


def test_a_token_budget_is_kept_by_what_calls_really_used(project, loom, start_node):
    project.write(
        "workers/ask.yaml",
        "name: ask\nsystem_prompt: Answer.\nmax_output_tokens: 100\ndefault_model_tier: standard\n",
    )
    # A call sets some 120 tokens aside and uses 50; there are 600 at once and 10 a second.
    project.write("deploy/router_rules.yaml", "rate_limits: {standard: {tokens_per_minute: 600}}\n")
    with fake_llm([{"json": {"ok": True}, "prompt_tokens": 30, "completion_tokens": 20}]) as server:
        project.env.update(server.environment("anthropic"))
        start_node("-P", "threads", "-c", "10")
        handles = [submit_task("ask", {"n": n}, loom=loom) for n in range(14)]
        _all(handles)
        took = [_stage(loom, handle) for handle in handles]
        span_s = (max(stage.ended_at for stage in took) - min(stage.queued_at for stage in took)).total_seconds()
        assert 600 + 10 * span_s + 1 >= 14 * 50
        assert span_s < 40, "what was set aside and not used comes back"
        assert len(server.journal) == 14
        (found,) = limits.survey(loom)
        assert (found.name, found.kind, found.limit) == ("tier:standard", "tokens", "600/m")
        assert found.used <= 600


# Pipelines and raw calls


def test_pipelines_items_and_raw_calls_keep_limits(project, loom, start_node, log):
    project.worker("root", 'return {"output": {"items": list(range(12))}}')
    project.worker("limited", SPAN, max_concurrent=2)
    project.pipeline(
        "fan",
        """
        - {name: root, worker_type: root, input_mapping: {n: goal.context.n}}
        - {name: each, worker_type: limited, for_each: root.output.items, input_mapping: {n: item, log: goal.context.l}}
        - {name: left, worker_type: limited, input_mapping: {n: goal.context.n, log: goal.context.l}}
        - {name: right, worker_type: limited, input_mapping: {n: goal.context.n, log: goal.context.l}}
        - {name: last, worker_type: limited, input_mapping: {n: left.output.n, log: goal.context.l}, depends_on: [left]}
        """,
    )
    start_node("-c", "6")
    handle = submit_goal("", pipeline="fan", context={"n": 1, "l": str(log)}, loom=loom)
    calls = [loom.app.tasks["loomq.worker.limited"].delay({"n": n, "log": str(log)}) for n in range(6)]
    result = handle.result(timeout=60)
    assert [item["n"] for item in result["each"]["items"]] == list(range(12))
    assert [call.get(timeout=60) for call in calls] == [{"n": n} for n in range(6)]
    assert most_at_once(log) == 2


def test_who_asks_why_a_task_waits_is_told_its_limit(project, loom, start_node, log):
    project.worker("slow", STAMP, rate_limit="1/h")
    start_node("-c", "1")
    first, second = (submit_task("slow", {"log": str(log), "n": n}, loom=loom) for n in range(2))
    first.result(timeout=30)
    told = explained(loom, second.goal_id, "slow")
    assert told.why.startswith("it is due, and waits: by the rate of worker:slow (1/h) the next of 1 may start in 3,")
    assert json.loads(json.dumps(told.to_json()))["why"] == told.why


# Priorities and turns


@pytest.mark.parametrize(("priority", "works"), [("critical", True), ("critical", False), ("high", True)])
def test_under_a_backlog_of_a_thousand_the_urgent_starts_next(project, loom, start_node, log, priority, works):
    project.worker("short", ("time.sleep(0.004)\n" if works else "") + STAMP + "\n", timeout_seconds=30)
    backlog = [submit_task("short", {"log": str(log), "n": n}, loom=loom) for n in range(1000)]
    start_node("-c", "1")
    wait_until(lambda: len(begun(log)) > 20, "the backlog to be worked on")
    before = len(begun(log))
    urgent = submit_task("short", {"log": str(log), "n": 5000}, loom=loom, priority=priority)
    urgent.result(timeout=30)
    order = [n for _, n in begun(log)]
    place = order.index(5000)
    submitted = inspect.goal(loom, urgent.goal_id).created_at.timestamp()
    after = [at for at, n in begun(log)[:place] if at > submitted]
    # What takes next to nothing is taken several at a time: those in hand may begin, and no more.
    most = 2 if works else 65
    assert len(after) <= most, f"{len(after)} others began between its row's birth and its start"
    assert before <= place < 900
    backlog[0].result(timeout=10)


def test_a_small_goal_does_not_wait_behind_the_items_of_a_large_one(project, loom, start_node, log):
    project.worker("root", 'return {"output": {"items": list(range(400))}}')
    project.worker("item", STAMP.replace("return", "time.sleep(0.02)\nreturn"))
    project.pipeline(
        "fan",
        """
        - {name: root, worker_type: root, input_mapping: {n: goal.context.n}}
        - {name: each, worker_type: item, for_each: root.output.items, input_mapping: {n: item, log: goal.context.log}}
        """,
    )
    start_node("-c", "2")
    large = submit_goal("", pipeline="fan", context={"n": 1, "log": str(log)}, loom=loom)
    wait_until(lambda: len(begun(log)) > 10, "the items")
    for n in range(5):
        small = submit_task("item", {"log": str(log), "n": 1000 + n}, loom=loom)
        small.result(timeout=20)
        row = inspect.goal(loom, small.goal_id).stages[0]
        between = [
            at for at, m in begun(log) if m < 1000 and row.queued_at.timestamp() < at < row.started_at.timestamp()
        ]
        assert len(between) <= 3
    assert large.status() == "processing"
    assert large.cancel()
