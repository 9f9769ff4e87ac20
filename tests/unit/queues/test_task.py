"""A raw call's payload."""

import pytest

from loomq.queues.task import payload_of


@pytest.mark.parametrize(
    ("args", "kwargs", "payload"),
    [
        (({"x": 1},), {}, {"x": 1}),
        (({},), {}, {}),
        ((), {"payload": {"x": 1}}, {"x": 1}),
        (([{"x": 1}, {"y": 2}],), {}, {"items": [{"x": 1}, {"y": 2}]}),
        ((({"x": 1}, None),), {}, {"items": [{"x": 1}, None]}),
        (([],), {}, {"items": []}),
        ((), {"payload": [1]}, {"items": [1]}),
    ],
)
def test_a_payload_is_one_object_or_the_results_of_a_header(args, kwargs, payload):
    assert payload_of(args, kwargs) == payload


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        (({}, {}), {}),
        (({},), {"payload": {}}),
        ((), {"payload": {}, "more": 1}),
        (({},), {"tier": "local"}),
        ((), {"text": "x"}),
        (("text",), {}),
        ((None,), {}),
        ((3,), {}),
        ((b"x",), {}),
    ],
)
def test_any_other_call_is_refused(args, kwargs):
    with pytest.raises(TypeError, match="payload"):
        payload_of(args, kwargs)
