"""Which queue a task goes to."""

import pytest

from loomq.errors import UnknownNameError
from loomq.queues.routing import Router

ROUTER = Router(
    defaults={"a": "local", "b": "standard", "c": "frontier"},
    overrides={"b": "local", "ghost": "frontier"},
    asked=frozenset({("a", "frontier"), ("b", "frontier"), ("c", "frontier")}),
)


@pytest.mark.parametrize(
    ("worker", "tier", "queue"),
    [
        ("a", "local", "a.local"),
        ("a", "frontier", "a.frontier"),
        ("b", "standard", "b.local"),
        ("b", "frontier", "b.local"),
        ("c", "local", "c.local"),
        ("ghost", "local", "ghost.frontier"),
        ("unknown", "local", "unknown.local"),
    ],
)
def test_an_override_wins_over_what_was_asked(worker, tier, queue):
    assert ROUTER.queue(worker, tier) == queue


def test_the_queues_in_use_are_those_that_something_may_be_sent_to():
    assert ROUTER.queues_in_use == ("a.frontier", "a.local", "b.local", "c.frontier")
    assert Router().queues_in_use == ()


@pytest.mark.parametrize(
    ("task", "route"),
    [
        ("loomq.worker.a", {"queue": "a.local"}),
        ("loomq.worker.b", {"queue": "b.local"}),
        ("loomq.worker.c", {"queue": "c.frontier"}),
        ("celery.chord", None),
        ("mine.task", None),
    ],
)
def test_a_task_sent_without_a_queue_goes_to_its_workers_default(task, route):
    assert ROUTER.celery_route(task) == route
    assert ROUTER.celery_route(task, (1,), {"x": 2}, {"priority": 3}, task=None) == route


@pytest.mark.parametrize(("worker", "near"), [("unknown", "known workers: a, b, c"), ("ghost", "known workers")])
def test_a_worker_that_no_file_has_is_refused_with_the_names_that_there_are(worker, near):
    with pytest.raises(UnknownNameError, match=f'no worker is called "{worker}"') as caught:
        ROUTER.celery_route(f"loomq.worker.{worker}")
    assert near in caught.value.hint


def test_a_task_that_says_its_queue_is_left_alone():
    assert ROUTER.celery_route("loomq.worker.gone", (), {}, {"queue": "gone.local"}) is None


def test_a_worker_without_a_tier_to_go_by_is_refused():
    assert ROUTER.tier("c") == "frontier"
    assert ROUTER.tier("b") == "local"
    with pytest.raises(UnknownNameError, match="no worker is called"):
        ROUTER.tier("unknown")
