"""``loomq sweep``: repair without a worker node, one sweeper at a time, and a leadership that ends with its process."""

from __future__ import annotations

import json
import signal

import pytest

from loomq.ids import uuid7
from loomq.runs.sweep import LEADERSHIP
from loomq.services.submit import submit_task
from loomq.store import nodes, stages
from loomq.store.stages import Place, StageKey
from loomq.store.survey import survey
from loomq.testing import wait_until


@pytest.fixture
def shop(project):
    project.worker("echo")
    return project


def _length(loom):
    return sum(loom.app.broker.lengths(["echo.local"])["echo.local"].values())


def _hold(loom, lease_s):
    handle = submit_task("echo", {}, loom=loom)
    key = StageKey(handle.goal_id, "echo")
    assert stages.claim(loom.database, key, uuid7(), Place(uuid7(), 1, "m"), lease_s)
    return handle


def test_a_sweeper_of_its_own_repairs_until_it_is_asked_to_end(shop, loom, loomq):
    submit_task("echo", {}, loom=loom)
    loom.database.call("UPDATE stages SET published_at = clock_timestamp() - interval '1 minute'", {})
    loom.app.broker.run(lambda producer: producer.channel.client.flushdb())

    process = loomq.start("sweep", "--json")
    wait_until(lambda: _length(loom) == 1, "the lost message")
    assert nodes.leader(loom.database, LEADERSHIP).who.startswith(f"{process.pid}@")
    _, told = loomq("sweep", "--once")
    assert f"{process.pid}@" in told
    assert f"{process.pid}@" in loomq("status")[0]

    process.send_signal(signal.SIGTERM)
    out, err = loomq.finish(process)
    first = json.loads(out.splitlines()[0])
    assert (first["lost"], first["topped_up"], first["faults"]) == (1, 1, [])
    assert "messages are sent again" in err
    assert nodes.leader(loom.database, LEADERSHIP) is None


def test_one_pass_says_what_it_repaired(shop, loom, loomq):
    wait_until(lambda: survey(loom.database, 0).uptime_s > loom.settings.lease_seconds, "the server's grace to end")
    _hold(loom, 0)
    assert "1  stages taken back whose lease ran out" in loomq("sweep", "--once")[0]
    assert nodes.leader(loom.database, LEADERSHIP) is None
    _hold(loom, 0)
    found = json.loads(loomq("sweep", "--once", "--json")[0])
    assert (found["led"], found["taken_back"], found["lost"]) == (True, 1, 0)
    _hold(loom, 60)
    assert loomq("sweep", "--once")[0] == "nothing to repair\n"


def test_what_one_pass_cannot_do_is_said_and_fails_it(shop, loomq):
    shop.settings_given["broker_url"] = "redis://127.0.0.1:1/0"
    out, err = loomq("sweep", "--once", code=1)
    assert out == "nothing to repair\n"
    assert "not done: the broker at redis://127.0.0.1:1/0 does not answer" in err


def test_a_sweeper_outlives_its_services(shop, loom, loomq):
    shop.settings_given["broker_url"] = "redis://127.0.0.1:1/0"
    process = loomq.start("sweep")
    wait_until(lambda: nodes.leader(loom.database, LEADERSHIP), "the sweeper")
    _hold(loom, 0)
    wait_until(lambda: not survey(loom.database, 0).expired, "the lease to be taken back")
    process.send_signal(signal.SIGINT)
    loomq.finish(process)
