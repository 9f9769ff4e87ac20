"""What monitors such as Flower hear of tasks: all of it, though it is sent a moment later and several at a time."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from contextlib import contextmanager

import pytest

from loomq.services.submit import submit_task
from loomq.testing import wait_until

HELD = """
Path(payload["started"]).touch()
while not Path(payload["go"]).exists():
    time.sleep(0.02)
return {"output": {}}
"""
ALL_OF_IT = {"task-received", "task-started", "task-succeeded"}


@contextmanager
def _monitor(loom):
    """Listen as a monitor does; gives the events as they come."""
    heard: list[dict] = []
    with loom.app.connection_for_read() as connection:
        receiver = loom.app.events.Receiver(connection, handlers={"*": heard.append})
        thread = threading.Thread(target=lambda: receiver.capture(wakeup=False), daemon=True)
        thread.start()
        try:
            yield heard
        finally:
            receiver.should_stop = True
            thread.join(10)


def _kinds(heard, task_id):
    return {event["type"] for event in heard if event.get("uuid") == task_id}


def _start(start_node, heard, pool):
    node = start_node("-c", "1", "-P", pool)
    wait_until(lambda: any(event["type"] == "worker-online" for event in heard), "the node's first event")
    return node


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_monitor_hears_of_each_task_to_the_last_one_before_a_node_stops(project, loom, start_node, pool):
    project.settings_given["straight_on"] = False  # each stage is a message of its own
    project.worker("echo")
    with _monitor(loom) as heard:
        node = _start(start_node, heard, pool)
        handles = [submit_task("echo", {"n": n}, loom=loom) for n in range(20)]
        for handle in handles:
            handle.result(timeout=30)
        node.process.send_signal(signal.SIGTERM)
        wait_until(lambda: node.process.poll() is not None, "the node to end")
        ids = [f"{handle.goal_id}:echo" for handle in handles]
        wait_until(lambda: all(_kinds(heard, one) == ALL_OF_IT for one in ids), "the events of all tasks")
        told = Counter((event["uuid"], event["type"]) for event in heard if event["type"].startswith("task-"))
    assert set(told.values()) == {1}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_monitor_hears_of_what_ends_while_a_node_stops(project, loom, start_node, pool):
    project.worker("held", HELD)
    go, started = project.folder / "go", project.folder / "started"
    with _monitor(loom) as heard:
        node = _start(start_node, heard, pool)
        handle = submit_task("held", {"go": str(go), "started": str(started)}, loom=loom)
        wait_until(started.exists, "the task to start")
        node.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Warm shutdown" in node.text(), "the node to hear it")
        go.touch()
        wait_until(lambda: node.process.poll() is not None, "the node to end")
        wait_until(lambda: _kinds(heard, f"{handle.goal_id}:held") == ALL_OF_IT, "the events of its task")


def test_a_monitor_hears_of_a_task_of_the_solo_pool_before_the_next_one_ends(project, loom, start_node):
    project.settings_given["straight_on"] = False  # each stage is a message of its own
    project.worker("held", HELD)

    def hand_in(name):
        go, started = project.folder / f"{name}-go", project.folder / f"{name}-started"
        return submit_task("held", {"go": str(go), "started": str(started)}, loom=loom), go, started

    with _monitor(loom) as heard:
        _start(start_node, heard, "solo")
        (first, go_first, _), (second, go_second, second_started) = hand_in("first"), hand_in("second")
        go_first.touch()
        wait_until(second_started.exists, "the second task to start")
        wait_until(lambda: "task-succeeded" in _kinds(heard, f"{first.goal_id}:held"), "the event of the first one")
        go_second.touch()
        second.result(timeout=30)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_monitor_hears_of_what_ended_just_before_a_node_lost_its_broker(project, loom, start_node, pool):
    project.worker("echo")
    if not loom.app.is_redis:
        pytest.skip("a Redis closes its clients' connections when it is told to")
    with _monitor(loom) as heard:
        _start(start_node, heard, pool)
        for _ in range(3):
            handle = submit_task("echo", {}, loom=loom)
            handle.result(timeout=30)
            _cut_off(loom)
            task_id = f"{handle.goal_id}:echo"
            wait_until(lambda task_id=task_id: _kinds(heard, task_id) == ALL_OF_IT, "the events of its task")


def _cut_off(loom):
    """Close the connection on which the node waits for messages."""

    def close(client):
        mine = client.connection_pool.connection_kwargs.get("db", 0)
        found = [one["id"] for one in client.client_list() if (one["cmd"], int(one["db"])) == ("brpop", mine)]
        for number in found:
            client.client_kill_filter(_id=number)
        return found

    wait_until(lambda: loom.app.broker.run(lambda producer: close(producer.channel.client)), "a connection to cut off")
