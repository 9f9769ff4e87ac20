"""What a response says about trying again, and keys that cannot be ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from pydantic import SecretStr

from loomq.errors import ConfigError
from loomq.llm.endpoint import LONGEST_RETRY_AFTER_S, Endpoint, retry_after_s
from loomq.llm.http import HttpPool


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-4"}, 0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "999999"}, LONGEST_RETRY_AFTER_S),
        ({"retry-after": "9", "retry-after-ms": "1500"}, 1.5),
    ],
)
def test_the_wait_that_a_provider_asks_for_is_read(headers, seconds):
    assert retry_after_s(headers) == seconds


def test_the_wait_may_be_a_date():
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < retry_after_s({"retry-after": date}) <= 30


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "ключ", "tab\t"])
def test_a_key_that_cannot_be_one_is_refused_and_not_repeated(key):
    with pytest.raises(ConfigError) as caught:
        Endpoint(HttpPool(), "X", "https://x", SecretStr(key), "X_API_KEY")
    assert "X_API_KEY" in str(caught.value)
    assert key not in str(caught.value)


def test_an_endpoint_does_not_show_its_key():
    assert "canary" not in repr(Endpoint(HttpPool(), "X", "https://x", SecretStr("canary"), "X_API_KEY"))
