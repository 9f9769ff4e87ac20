"""Which semaphore a task needs for itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomq.workers.concurrency import of_key, of_writes
from loomq.workers.spec import WorkerSpec


def _spec(**more):
    said = {"name": "w", "worker_kind": "processor", "processing_backend": "mine.a.B", **more}
    return WorkerSpec.model_validate(said)


@pytest.mark.parametrize(
    ("key", "payload", "name"),
    [
        ("payload.customer", {"customer": "ann"}, "w:ann"),
        ("payload.customer", {"customer": 7}, "w:7"),
        ("payload.customer.id", {"customer": {"id": "x", "n": 1}}, "w:x"),
        ("payload.customer.id", {"customer": "no object"}, "w:null"),
        ("payload.customer", {}, "w:null"),
        ("payload.tags", {"tags": {"b": 1, "a": [2]}}, 'w:{"a": [2], "b": 1}'),
        ("gpu", {"gpu": "ignored"}, "gpu"),
    ],
)
def test_a_path_makes_one_semaphore_a_value_and_a_name_is_shared(key, payload, name):
    assert of_key(_spec(concurrency_key=key), payload) == (name, 1)
    assert of_key(_spec(concurrency_key=key, max_concurrent=3), payload) == (name, 3)


def test_without_a_key_there_is_none():
    assert of_key(_spec(max_concurrent=3), {"a": 1}) is None


@given(st.text(max_size=3000), st.text(max_size=3000))
def test_any_value_makes_a_short_name_of_its_own(one, other):
    names = [of_key(_spec(concurrency_key="payload.v"), {"v": value}).name for value in (one, other)]
    assert all(len(name) < 250 for name in names)
    assert (names[0] == names[1]) == (one == other)


def test_a_secret_for_a_key_is_not_shown():
    secret = "sk-ant-" + "a1B2" * 12
    assert secret not in of_key(_spec(concurrency_key="payload.k"), {"k": secret}).name


@pytest.mark.parametrize("key", ["Payload.x", "payload", "payload.", "a b", "payload.a..b", "", "x" * 300])
def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(ValueError, match="validation error"):
        _spec(concurrency_key=key)


def test_backends_that_write_alone_share_a_semaphore_if_they_are_the_same():
    first = of_writes(_spec(backend_config={"file": "a", "n": 1}))
    assert first == of_writes(_spec(name="other", backend_config={"n": 1, "file": "a"}))
    assert first != of_writes(_spec(backend_config={"file": "b", "n": 1}))
    assert first.slots == 1
