"""Pipelines once over RabbitMQ: the tests that run over Redis each time, where ``LOOMQ_TEST_AMQP_URL`` names one."""

from __future__ import annotations

import os

import pytest
from acceptance import test_pipelines, test_random_pipelines

from tests.chaos import rabbit

URL = os.environ.get("LOOMQ_TEST_AMQP_URL")
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(200),
    pytest.mark.skipif(not URL, reason="LOOMQ_TEST_AMQP_URL names no RabbitMQ"),
]
NODE = ("-c", "4")
OVER_REDIS = (test_pipelines, test_random_pipelines)
VHOST = {}


@pytest.fixture(scope="module", autouse=True)
def _vhost():
    """A virtual host of this run's own."""
    VHOST["url"] = rabbit.own_vhost(URL)
    if VHOST["url"] is None:
        pytest.skip("no rabbitmqctl here may make a virtual host")
    yield
    rabbit.drop_vhost(VHOST["url"])


def stock(project):
    project.settings_given["broker_url"] = VHOST["url"]
    for module in OVER_REDIS:
        module.stock(project)


for found in OVER_REDIS:
    globals().update({name: test for name, test in vars(found).items() if name.startswith("test_")})
