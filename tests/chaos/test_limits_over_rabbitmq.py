"""Limits and priorities once over RabbitMQ: the tests that run over Redis each time, with the limits' Redis apart."""

from __future__ import annotations

import os

import pytest
from acceptance import test_limits

from loomq.loom import Loom
from loomq.settings import Settings
from tests.chaos import rabbit
from tests.conftest import Project, broker_database

URL = os.environ.get("LOOMQ_TEST_AMQP_URL")
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(200),
    pytest.mark.skipif(not URL, reason="LOOMQ_TEST_AMQP_URL names no RabbitMQ"),
]
ON_REDIS = {
    "test_after_a_wipe_of_redis_there_is_at_most_one_more_burst",  # wipes its broker
    "test_without_the_limits_redis_limited_tasks_wait_and_others_go_on",
}


@pytest.fixture
def broker_url():
    """A virtual host of this test's own."""
    url = rabbit.own_vhost(URL)
    if url is None:
        pytest.skip("no rabbitmqctl here may make a virtual host")
    yield url
    rabbit.drop_vhost(url)


@pytest.fixture
def project(tmp_path, database_url, broker_url, server_urls):
    """A project on RabbitMQ, whose limits are kept in a Redis of the run."""
    found = Project(tmp_path, database_url, broker_url)
    found.settings_given["redis_url"] = broker_database(server_urls[1], 4)
    probe = Loom(Settings.load(**found.settings_given))
    probe.app.limiter._broker.run(lambda producer: producer.channel.client.flushdb())
    probe.close()
    return found


log = test_limits.log
globals().update(
    {name: test for name, test in vars(test_limits).items() if name.startswith("test_") and name not in ON_REDIS}
)
