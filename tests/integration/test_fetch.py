"""What a slot takes from the queues by itself, over a real Redis: in Celery's order, and nothing else is touched."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from redis.exceptions import NoPermissionError, ReadOnlyError, ResponseError

from loomq.ids import uuid7
from loomq.queues.fetch import NOTHING, Fetcher
from loomq.queues.names import StageMessage, level, urgency
from loomq.services.submit import submit_goal, submit_task
from loomq.testing import wait_until

WIDE = "\n".join(f"- {{name: s{n}, worker_type: echo, input_mapping: {{}}}}" for n in range(6))


@pytest.fixture
def shop(project):
    project.worker("echo")
    project.worker("other")
    project.pipeline("wide", WIDE)
    return project


@pytest.fixture
def app(shop, loom):
    if not loom.app.is_redis:
        pytest.skip("slots take from the queues of a Redis only")
    return loom.app


@pytest.fixture
def fetcher(app):
    return Fetcher(app.broker)


def redis(app, work):
    return app.broker.run(lambda producer: work(producer.channel.client))


def taken(fetcher, **most):
    """Fetch once; gives the names of the goals' stages as they were taken."""
    found = fetcher.fetch({name.replace("_", "."): number for name, number in most.items()})
    return [key.goal_id for key in found.keys], found


def length(loom, queue="echo.local"):
    return sum(loom.app.broker.lengths([queue])[queue].values())


def test_the_most_urgent_comes_first_and_then_what_came_first(app, loom, fetcher):
    first, second = (submit_task("echo", {}, loom=loom).goal_id for _ in range(2))
    urgent = submit_task("echo", {}, loom=loom, priority="critical").goal_id
    assert [taken(fetcher, echo_local=1)[0] for _ in range(4)] == [[urgent], [first], [second], []]


def test_several_are_taken_of_one_urgency_and_one_queue(app, loom, fetcher):
    submit_task("other", {}, loom=loom)
    goal = submit_goal("", pipeline="wide", loom=loom).goal_id
    urgent = submit_task("echo", {}, loom=loom, priority="high").goal_id
    assert taken(fetcher, echo_local=10)[0] == [urgent]
    assert taken(fetcher, echo_local=10)[0] == [goal], "the first of a goal stands before its others"
    assert taken(fetcher, echo_local=3)[0] == [goal] * 3
    _, rest = taken(fetcher, echo_local=10)
    assert [(key.name, key.item) for key in rest.keys] == [("s4", -1), ("s5", -1)]
    assert (length(loom), length(loom, "other.local")) == (0, 1)


def test_queues_of_the_same_urgency_have_the_same_chance(app, loom, fetcher):
    def put(queue):
        headers = {"loomq": {"priority": 1}, "id": StageMessage(uuid7(), queue).id}
        redis(app, lambda client: client.lpush(f"{queue}.local", json.dumps({"headers": headers})))

    queues = {f"q{number}.local": 1 for number in range(20)}
    found = Counter()
    for queue in ("q3", "q4", "q5"):  # neighbours
        put(queue)
    for _ in range(120):
        (key,) = fetcher.fetch(queues).keys
        found[key.name] += 1
        put(key.name)
    assert sorted(found) == ["q3", "q4", "q5"]
    assert min(found.values()) > 15, "each has 40 on average"


def test_nothing_less_urgent_than_asked_is_taken_or_looked_at(app, loom, fetcher):
    low, high = (submit_task("echo", {}, loom=loom, priority=priority).goal_id for priority in ("low", "high"))
    _call(app)
    least = urgency(level("normal"))
    assert [key.goal_id for key in fetcher.fetch({"echo.local": 5}, least).keys] == [high]
    submit_task("other", {}, loom=loom, priority="low")
    assert fetcher.fetch({"echo.local": 5, "other.local": 0}, urgency(level("high"))) == NOTHING
    assert low not in taken(fetcher, echo_local=5)[0], "it stands behind the raw call"


def test_what_only_celery_may_take_is_left_and_so_is_all_behind_it(app, loom, fetcher):
    submit_task("other", {}, loom=loom)
    goal = submit_task("echo", {}, loom=loom, priority="high").goal_id
    found, _ = taken(fetcher, echo_local=1, other_local=0)
    assert found == [goal], "it is more urgent than what is left to Celery"
    submit_task("echo", {}, loom=loom, priority="low")
    _, left = taken(fetcher, echo_local=1, other_local=0)
    assert (left.keys, left.is_stopped) == ((), True)
    assert (length(loom), length(loom, "other.local")) == (1, 1)


def _call(app):
    app.tasks["loomq.worker.echo"].delay({"x": 1})


def _junk(app):
    redis(app, lambda client: client.lpush("echo.local", b"\x00no JSON"))


def _deep(app):
    redis(app, lambda client: client.lpush("echo.local", b"[" * 100_000))


def _alien(app):
    redis(
        app, lambda client: client.lpush("echo.local", json.dumps({"headers": {"loomq": {"priority": 1}, "id": "x"}}))
    )


def _no_headers(app):
    redis(app, lambda client: client.lpush("echo.local", json.dumps({"headers": ["loomq"], "body": ""})))


def _number(app):
    redis(app, lambda client: client.lpush("echo.local", b"7"))


def _item_too_large(app):
    _stage(app, f"{uuid7()}:a:99999999999")


def _unprintable(app):
    _stage(app, f"{uuid7()}:a\0b")


def _nested(app):
    headers = json.dumps({"loomq": {"priority": 1}, "id": StageMessage(uuid7(), "a").id})
    item = '{"headers": ' + headers[:-1] + ', "deep": ' + "[" * 960 + "]" * 960 + "}}"
    redis(app, lambda client: client.lpush("echo.local", item))


def _stage(app, message_id):
    message = json.dumps({"headers": {"loomq": {"priority": 1}, "id": message_id}})
    redis(app, lambda client: client.lpush("echo.local", message))


def _large(app):
    headers = {"loomq": {"priority": 3}, "id": StageMessage(uuid7(), "a").id}
    redis(app, lambda client: client.lpush("echo.local", json.dumps({"headers": headers, "body": "x" * 70_000})))


@pytest.mark.parametrize(
    "put", [_call, _junk, _deep, _alien, _no_headers, _number, _large, _item_too_large, _unprintable, _nested]
)
def test_a_raw_call_and_what_cannot_be_read_are_left_where_they_are(app, loom, fetcher, put):
    put(app)
    before = redis(app, lambda client: {key: client.lrange(key, 0, -1) for key in client.keys("echo.local*")})
    for _ in range(2):
        _, found = taken(fetcher, echo_local=5)
        assert (found.keys, found.is_stopped) == ((), True)
    assert redis(app, lambda client: {key: client.lrange(key, 0, -1) for key in client.keys("echo.local*")}) == before


def test_what_stands_before_a_raw_call_is_taken(app, loom, fetcher):
    before = submit_task("echo", {}, loom=loom).goal_id
    _call(app)
    behind = submit_task("echo", {}, loom=loom).goal_id
    assert taken(fetcher, echo_local=5)[0] == [before]
    assert taken(fetcher, echo_local=5)[1].is_stopped
    assert behind not in taken(fetcher, echo_local=5)[0]


def test_what_is_put_back_is_next_in_turn_again(app, loom, fetcher):
    goals = [submit_task("echo", {}, loom=loom).goal_id for _ in range(5)]
    assert taken(fetcher, echo_local=1)[0] == goals[:1]
    found, fetched = taken(fetcher, echo_local=3)
    assert found == goals[1:4]
    fetcher.put_back(fetched)
    assert taken(fetcher, echo_local=9)[0] == goals[1:]


def test_nothing_is_taken_of_no_queue_or_from_a_broker_that_is_not_there(shop, app, loom, fetcher):
    submit_task("echo", {}, loom=loom)
    assert fetcher.fetch({}) is NOTHING
    elsewhere = shop.loom(broker_url="redis://127.0.0.1:1/0")
    assert Fetcher(elsewhere.app.broker).fetch({"echo.local": 1}) is NOTHING
    elsewhere.close()


@pytest.mark.parametrize(
    "error",
    [
        NoPermissionError("this user has no permissions to run the 'evalsha' command"),
        ResponseError("unknown command 'EVALSHA'"),
        ResponseError("CROSSSLOT Keys in request don't hash to the same slot"),
    ],
)
def test_a_broker_that_runs_no_scripts_is_asked_once_and_stays_in_use(app, loom, fetcher, monkeypatch, caplog, error):
    def refused(*_arguments):
        raise error

    goal = submit_task("echo", {}, loom=loom).goal_id
    with monkeypatch.context() as patch:
        patch.setattr("loomq.queues.scripts.Script.run", refused)
        assert fetcher.fetch({"echo.local": 1}) is NOTHING
    assert fetcher.fetch({"echo.local": 1}) is NOTHING
    assert "runs no scripts" in caplog.text
    assert app.broker.is_open, "it answers; only this is refused"
    assert taken(Fetcher(app.broker), echo_local=1)[0] == [goal]


def test_a_broker_that_cannot_do_it_just_now_is_asked_again(app, loom, fetcher, monkeypatch):
    def refused(*_arguments):
        raise ReadOnlyError("You can't write against a read only replica.")

    goal = submit_task("echo", {}, loom=loom).goal_id
    with monkeypatch.context() as patch:
        patch.setattr("loomq.queues.scripts.Script.run", refused)
        assert fetcher.fetch({"echo.local": 1}) is NOTHING
    wait_until(lambda: app.broker.is_open, "the pause after a failure to be over")
    assert taken(fetcher, echo_local=1)[0] == [goal]


def test_a_restarted_server_is_told_the_script_anew(app, loom, fetcher):
    assert fetcher.fetch({"echo.local": 1}) == NOTHING
    redis(app, lambda client: client.script_flush())
    goal = submit_task("echo", {}, loom=loom).goal_id
    assert taken(fetcher, echo_local=1)[0] == [goal]
