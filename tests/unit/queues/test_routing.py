"""Which queue a task goes to."""

import pytest

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
        ("loomq.worker.unknown", None),
        ("loomq.worker.ghost", None),
        ("celery.chord", None),
        ("mine.task", None),
    ],
)
def test_a_task_sent_without_a_queue_goes_to_its_workers_default(task, route):
    assert ROUTER.celery_route(task) == route
    assert ROUTER.celery_route(task, (1,), {"x": 2}, {"priority": 3}, task=None) == route
