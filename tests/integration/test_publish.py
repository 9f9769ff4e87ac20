"""What is sent where there is room, and what is not: over real queues, with nodes as far as the rows know them."""

from __future__ import annotations

import time

import pytest

from loomq.ids import uuid7
from loomq.services.submit import submit_goal, submit_task
from loomq.store import nodes
from loomq.store.nodes import Node
from tests.rows import at_once


@pytest.fixture
def shop(project):
    project.worker("echo")
    project.worker("rated", rate_limit="1/h")
    project.worker("one", max_concurrent=1)
    project.worker("two", max_concurrent=1)
    project.settings_given["window_min"] = 8
    return project


def _serve(loom, *queues, slots=2):
    nodes.beat(loom.database, Node(uuid7(), f"n{uuid7()}", 1, "prefork", slots, queues, "0"))
    loom.publisher.windows._served_read_at = float("-inf")


def _length(loom, queue="echo.local"):
    return loom.app.broker.lengths([queue])[queue]


def _states(loom):
    return dict(map(tuple, loom.database.call("SELECT state, count(*) FROM stages WHERE item < 0 GROUP BY 1", {})))


def test_a_full_queue_takes_urgent_goals_and_no_others(shop, loom):
    for _ in range(10):
        submit_task("echo", {}, loom=loom)
    assert _states(loom) == {"published": 8, "ready": 2}
    submit_task("echo", {}, loom=loom, priority="low")
    urgent = submit_task("echo", {}, loom=loom, priority="critical")
    assert _states(loom) == {"published": 9, "ready": 3}
    assert urgent.stages()[0].state == "published"
    assert _length(loom)[0] == 1
    assert loom.publisher.top_up("echo", "local") == 0


def test_of_one_goal_only_the_first_stands_in_front(shop, loom):
    shop.pipeline("wide", "\n".join(f"- {{name: s{n}, worker_type: echo, input_mapping: {{}}}}" for n in range(4)))
    submit_goal("", pipeline="wide", loom=loom)
    submit_task("echo", {}, loom=loom)
    # Redis' lists of normal urgency: 6 for the first of each goal, 7 for the others.
    assert (_length(loom)[6], _length(loom)[7]) == (2, 3)
    bulk = loom.database.call("SELECT name FROM stages WHERE bulk ORDER BY 1", {})
    assert [name for (name,) in bulk] == ["s1", "s2", "s3"]


def test_a_goal_whose_first_was_taken_gets_its_next_turn_though_the_queue_is_full(shop, loom):
    shop.pipeline("wide", "\n".join(f"- {{name: s{n}, worker_type: echo, input_mapping: {{}}}}" for n in range(12)))
    submit_goal("", pipeline="wide", loom=loom)
    _serve(loom, "echo.local", slots=1)
    assert sum(_length(loom).values()) == 8
    client = loom.app.broker.run(lambda producer: producer.channel)
    client.client.rpop(client._q_for_pri("echo.local", 6))
    loom.database.call("UPDATE stages SET state = 'claimed', node = goal_id WHERE state = 'published' AND NOT bulk", {})
    assert loom.publisher.top_up("echo", "local", at_least=4) == 1
    assert _length(loom)[6] == 1
    assert loom.publisher.top_up("echo", "local", at_least=4) == 0


def test_limited_work_is_sent_when_it_may_start_and_somebody_serves_it(shop, loom):
    first = submit_task("rated", {}, loom=loom)
    assert first.stages()[0].state == "ready"
    assert loom.publisher.feed("worker:rated").wait_s > 0
    _serve(loom, "rated.local")
    submit_task("rated", {}, loom=loom)
    assert _states(loom) == {"published": 1, "ready": 1}
    assert loom.publisher.feed("worker:rated").sent == 0
    assert loom.app.limiter.take("rated", "local", 0).wait_s == 0
    loom.database.call("UPDATE stages SET state = 'claimed', node = goal_id WHERE state = 'published'", {})
    fed = loom.publisher.feed("worker:rated")
    assert (fed.sent, fed.wait_s > 3000) == (0, True)


def test_a_worker_that_nobody_serves_does_not_use_up_its_tiers_slots(shop, loom):
    shop.write("deploy/router_rules.yaml", "rate_limits: {local: {max_concurrent: 2}}\n")
    _serve(loom, "two.local")
    for worker in ("one", "one", "one", "two", "two"):
        submit_task(worker, {}, loom=loom)
    sent = loom.database.call("SELECT worker, count(*) FROM stages WHERE state = 'published' GROUP BY 1", {})
    assert [tuple(row) for row in sent] == [("two", 1)]


def _told(loom, monkeypatch):
    """Note when the queues are looked at and when messages are sent."""
    told = []
    for owner, name in ((loom.app.broker, "lengths"), (loom.publisher, "publish")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, name=name, original=original: told.append(name) or original(*a))
    return told


def _fill(shop):
    """Fill the queue as another process does, so that this one has not seen it."""
    other = shop.loom()
    for _ in range(10):
        submit_task("echo", {}, loom=other)
    other.close()


def _pass_a_moment(loom, publisher=None):
    """Let what was seen of the queues become old."""
    seen = (publisher or loom.publisher).windows._seen
    seen.update({queue: (time.monotonic() - 1, lengths) for queue, (_, lengths) in seen.items()})


def test_who_has_seen_room_sends_first_and_looks_afterwards(shop, loom, monkeypatch):
    told = _told(loom, monkeypatch)
    submit_task("echo", {}, loom=loom)
    assert told[:2] == ["lengths", "publish"]
    _pass_a_moment(loom)
    told.clear()
    submit_task("echo", {}, loom=loom)
    assert told == ["publish", "lengths"]


def test_who_has_not_looked_for_long_sends_one_too_many_at_most(shop, loom):
    submit_task("echo", {}, loom=loom)
    _fill(shop)
    assert _states(loom) == {"published": 8, "ready": 3}
    for _ in range(3):
        _pass_a_moment(loom)
        submit_task("echo", {}, loom=loom)
    assert _states(loom) == {"published": 9, "ready": 5}


def test_only_one_of_many_threads_goes_by_an_old_look(shop, loom):
    submit_task("echo", {}, loom=loom)
    _fill(shop)
    _pass_a_moment(loom)
    at_once(*[lambda: submit_task("echo", {}, loom=loom)] * 8)
    assert _states(loom)["published"] <= 9


def test_a_raw_call_is_sent_by_celery_and_asks_first(shop, loom, monkeypatch):
    told = _told(loom, monkeypatch)
    echo = loom.app.tasks["loomq.worker.echo"]
    for _ in range(2):
        echo.delay({})
        assert told == ["lengths"]
        _pass_a_moment(loom, loom.app.runner._publisher)
        told.clear()


def test_several_first_stages_are_not_sent_by_what_was_seen_long_ago(shop, loom):
    shop.pipeline("wide", "\n".join(f"- {{name: s{n}, worker_type: echo, input_mapping: {{}}}}" for n in range(4)))
    submit_goal("", pipeline="wide", loom=loom)
    _fill(shop)
    sent = _states(loom)["published"]
    _pass_a_moment(loom)
    submit_goal("", pipeline="wide", loom=loom)
    assert _states(loom)["published"] == sent


def test_a_broker_that_goes_away_costs_no_goal_and_what_was_seen_of_it_counts_no_more(shop, loom, monkeypatch):
    submit_task("echo", {}, loom=loom)
    told = _told(loom, monkeypatch)
    _pass_a_moment(loom)
    loom.app.broker._closed_until = time.monotonic() + 60  # as after a call that it did not answer
    submit_task("echo", {}, loom=loom)
    assert _states(loom) == {"published": 1, "ready": 1}
    submit_task("echo", {}, loom=loom)
    assert _states(loom) == {"published": 1, "ready": 2}
    assert told.count("publish") == 1
    loom.app.broker.ping()
    submit_task("echo", {}, loom=loom)
    assert _states(loom) == {"published": 2, "ready": 2}
