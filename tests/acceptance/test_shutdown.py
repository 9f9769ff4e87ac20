"""A node that is told to stop finishes what it can, hands the rest back, and is gone in time."""

from __future__ import annotations

import signal
import time

import pytest

from loomq.services.submit import submit_task
from loomq.testing import wait_until

HOLDING = """
Path(payload["started"]).write_text(str(os.getpid()))
while Path(payload["hold"]).exists():
    time.sleep(0.02)
return {"output": {"pid": os.getpid()}}
"""


def _start_held(project, loom):
    """Hand in a task that runs until its file is gone; gives its handle and the file."""
    hold, started = project.folder / "hold", project.folder / "started"
    hold.touch()
    handle = submit_task("holding", {"hold": str(hold), "started": str(started)}, loom=loom)
    wait_until(lambda: started.exists() and started.read_text(), "the stage to start")
    return handle, hold


def _ended(node):
    wait_until(lambda: node.process.poll() is not None, "the node to end")
    return node.process.returncode


def _stage(handle):
    (stage,) = handle.stages()
    return stage


def test_work_that_ends_in_time_is_finished_by_the_node_that_stops(project, loom, start_node):
    project.worker("holding", HOLDING)
    node = start_node("-c", "1")
    handle, hold = _start_held(project, loom)

    node.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in node.text(), "the node to hear it")
    hold.unlink()

    assert handle.result(timeout=20)["pid"]
    assert _ended(node) == 0
    assert _stage(handle).deliveries == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_work_that_does_not_end_in_time_is_handed_back_uncounted_and_runs_elsewhere_at_once(
    project, loom, start_node, pool
):
    project.worker("holding", HOLDING)
    project.settings_given |= {"shutdown_seconds": 0.5, "lease_seconds": 60}
    node = start_node("-c", "1", "-P", pool)
    handle, hold = _start_held(project, loom)

    asked = time.monotonic()
    node.process.send_signal(signal.SIGTERM)
    wait_until(lambda: _stage(handle).state == "ready", "the stage to be handed back")
    assert _stage(handle).deliveries == 0
    assert "is handed back" in node.text()
    assert _ended(node) == 0
    assert "WorkerLostError" not in node.text()
    assert time.monotonic() - asked < 15  # far below the lease, which nobody waited for

    hold.unlink()
    start_node("-c", "1")
    assert handle.result(timeout=20)
    assert _stage(handle).deliveries == 1
    assert _stage(handle).history == []


def test_a_node_that_is_shut_down_by_remote_control_hands_back_as_well(project, loom, start_node):
    project.worker("holding", HOLDING)
    project.settings_given |= {"shutdown_seconds": 0.5, "lease_seconds": 60}
    node = start_node("-c", "1")
    handle, _ = _start_held(project, loom)

    loom.app.control.shutdown()

    wait_until(lambda: _stage(handle).state == "ready", "the stage to be handed back")
    assert _ended(node) == 0


def test_a_node_that_must_stop_at_once_frees_what_it_has_in_hand(project, loom, start_node):
    project.worker("holding", HOLDING)
    project.settings_given |= {"lease_seconds": 60}
    node = start_node("-c", "1")
    handle, hold = _start_held(project, loom)

    asked = time.monotonic()
    node.process.send_signal(signal.SIGQUIT)  # what an impatient operator, or a second Ctrl-C, says
    wait_until(lambda: _stage(handle).state in {"ready", "published"}, "the stage to be free")
    wait_until(lambda: node.process.poll() is not None, "the node to end")
    assert time.monotonic() - asked < 15

    hold.unlink()
    start_node("-c", "1")
    assert handle.result(timeout=20)
