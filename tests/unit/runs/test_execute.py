"""What a message carries on by itself, read as a worker process reads it, and the pause before a retry."""

from collections import Counter

import pytest
from celery.app.task import Context
from kombu import Connection, Exchange, Queue

from loomq.ids import uuid7
from loomq.pipelines.canvas import Segment, segments
from loomq.pipelines.spec import PipelineSpec
from loomq.queues.app import LoomCelery
from loomq.queues.limits import Limits
from loomq.queues.names import HEADER, STAGE_GROUP, StageMessage
from loomq.queues.routing import Router
from loomq.runs.faults import backoff_s
from loomq.runs.publish import Publisher
from loomq.runs.snapshot import parse, snapshot_of_pipeline
from loomq.runs.turn import carried_by
from loomq.settings import Settings
from loomq.store.engine import Database
from loomq.workers.spec import WorkerSpec

GOAL = uuid7()
TIERS = ("local", "standard", "frontier")


def _worker(**more):
    said = {"name": "echo", "worker_kind": "processor", "processing_backend": "mine.echo.Backend", **more}
    return WorkerSpec.model_validate(said)


def _plan(parents, **more):
    stages = [
        {"name": name, "worker_type": "echo", "depends_on": list(above), **more.get(name, {})}
        for name, above in parents.items()
    ]
    spec = PipelineSpec.model_validate({"name": "demo", "pipeline_stages": stages})
    return parse(snapshot_of_pipeline("demo", {"demo": spec}, {"echo": _worker()}))


@pytest.fixture
def app(tmp_path):
    """An app whose broker is in memory and whose database does not exist: nothing in here may need it."""

    def connect():
        raise AssertionError("it asks the database")

    made = LoomCelery(
        Settings(project=tmp_path),
        broker_url="memory://",
        database=Database("postgresql://127.0.0.1:1/none", prepare=connect),
        limits=lambda: Limits(Router({"echo": "local"})),
        queues=("echo.local",),
        ensure_broker=lambda: None,
    )
    made.add_worker("echo", None)
    yield made
    made.broker.close()
    made.close()


class Wire:
    """Messages as kombu writes and reads them on any broker."""

    def __init__(self, app, connection):
        self.app = app
        channel = connection.channel()
        self.queues = [Queue(f"echo.{tier}", Exchange(""), f"echo.{tier}", channel=channel) for tier in TIERS]
        for queue in self.queues:
            queue.declare()
            queue.purge()

    def send(self, canvas, **options):
        self.app.broker.run(lambda producer: canvas.apply_async(producer=producer, retry=False, **options))

    def received(self):
        """Take every message off the wire, as the request that a worker process has in hand."""
        found = []
        for queue in self.queues:
            while (message := queue.get(no_ack=True)) is not None:
                args, kwargs, embed = message.payload
                context = Context({**message.headers, "args": args, "kwargs": kwargs, **embed})
                found.append((queue.name, message, context))
        return found


@pytest.fixture
def wire(app):
    """Messages without a server."""
    with Connection("memory://") as connection:
        yield Wire(app, connection)


@pytest.fixture
def publisher(app):
    """What makes canvases of segments."""
    return Publisher(app.loom_settings, app.database, app)


def _on_the_wire(publisher, wire, plan, names):
    for segment in segments(plan.graph, names):
        wire.send(publisher._canvas(GOAL, plan, segment, 1))
    return {context.args[1]: (message, context) for _, message, context in wire.received()}


def _next_of(app, wire, context):
    """Send what Celery's tracer sends after this request's success."""
    (*rest, following) = context.chain
    signature = app.signature(following)
    wire.send(signature, chain=rest)
    ((_, message, found),) = wire.received()
    return message, found


def test_a_stage_of_its_own_carries_nothing(publisher, wire):
    plan = _plan({"a": (), "b": ("a",), "c": ("a",)})
    ((_, context),) = _on_the_wire(publisher, wire, plan, ["a"]).values()
    assert carried_by(context) == ()
    assert StageMessage.parse(context.args) == StageMessage(GOAL, "a")


def test_each_stage_of_a_line_carries_the_next(app, publisher, wire):
    names = [f"s{n}" for n in range(5)]
    plan = _plan({name: (names[at - 1],) if at else () for at, name in enumerate(names)})
    ((_, context),) = _on_the_wire(publisher, wire, plan, ["s0"]).values()
    seen = []
    while True:
        seen.append((context.args[1], carried_by(context)))
        if not context.chain:
            break
        _, context = _next_of(app, wire, context)
    assert seen == [("s0", ("s1",)), ("s1", ("s2",)), ("s2", ("s3",)), ("s3", ("s4",)), ("s4", ())]


def test_the_parts_of_a_diamond_carry_its_join(publisher, wire):
    plan = _plan({"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")})
    sent = _on_the_wire(publisher, wire, plan, ["b", "c"])
    assert {name: carried_by(context) for name, (_, context) in sent.items()} == {"b": ("d",), "c": ("d",)}
    for _, context in sent.values():
        assert context.group == f"{STAGE_GROUP}{GOAL}-d"


def test_a_run_in_a_chord_carries_its_next_and_only_its_end_the_join(app, publisher, wire):
    parents = {"a1": (), "a2": ("a1",), "a3": ("a2",), "b": (), "join": ("a3", "b"), "after": ("join",)}
    sent = _on_the_wire(publisher, wire, _plan(parents), ["a1", "b"])
    assert set(sent) == {"a1", "b"}
    assert carried_by(sent["b"][1]) == ("join",)
    assert carried_by(sent["a1"][1]) == ("a2",)
    _, second = _next_of(app, wire, sent["a1"][1])
    assert carried_by(second) == ("a3",)
    _, third = _next_of(app, wire, second)
    assert (third.args[1], carried_by(third)) == ("a3", ("join",))
    body = app.signature(third.chord)
    assert StageMessage.parse(body.args) == StageMessage(GOAL, "join")
    assert (body.id, body.immutable) == (f"{GOAL}:join", True)


def test_what_users_attach_is_not_ours_to_count(app, wire):
    first = app.signature("mine.task", args=(1, 2), immutable=True)
    user_chain = Context({"chain": [dict(first)], "chord": dict(first), "args": ()})
    assert carried_by(user_chain) == ()
    assert carried_by(Context({"args": ()})) == ()


def test_a_message_says_which_stage_how_urgent_and_where_to(app, publisher, wire):
    urgent = {"priority": "critical", "tier": "frontier"}
    plan = _plan({"a": (), "b": ("a",)}, b=urgent)
    (message, context) = _on_the_wire(publisher, wire, plan, ["a"])["a"]
    assert (context.id, context.task) == (f"{GOAL}:a", "loomq.worker.echo")
    assert getattr(context, HEADER) == {"priority": 1}
    assert message.properties["priority"] == 3

    wire.send(app.signature(context.chain[-1]))
    ((queue, message, context),) = wire.received()
    assert (queue, context.id, message.properties["priority"]) == ("echo.frontier", f"{GOAL}:b", 9)


def test_a_fan_of_fifty_sends_each_stage_once(publisher, wire):
    names = [f"p{n}" for n in range(50)]
    plan = _plan({**dict.fromkeys(names, ()), "join": tuple(names)})
    (segment,) = segments(plan.graph, names)
    assert segment == Segment(tuple((name,) for name in names), "join")
    wire.send(publisher._canvas(GOAL, plan, segment, 1))
    assert Counter(context.args[1] for _, _, context in wire.received()) == dict.fromkeys(names, 1)


@pytest.mark.parametrize(
    "parents", [{"a": ()}, {"a": (), "b": ("a",)}, {"a": (), "b": (), "c": ("b",), "d": ("a", "c")}]
)
def test_all_is_sent_on_the_one_connection_that_knows_when_to_give_up(app, publisher, wire, parents):
    plan = _plan(parents)
    (segment,) = segments(plan.graph, [name for name in parents if not parents[name]])
    wire.send(publisher._canvas(GOAL, plan, segment, 1))
    assert wire.received()
    assert app.amqp._producer_pool is None


# The pause before a retry


def _stage(**backoff):
    spec = PipelineSpec.model_validate({"name": "demo", "pipeline_stages": [{"name": "s", "worker_type": "echo"}]})
    return parse(snapshot_of_pipeline("demo", {"demo": spec}, {"echo": _worker(retry_backoff=backoff)})).stages["s"]


def test_the_pause_doubles_up_to_its_longest():
    stage = _stage(initial=0.5, max=6, jitter=False)
    assert [backoff_s(stage, attempt) for attempt in range(1, 8)] == [0.5, 1, 2, 4, 6, 6, 6]


@pytest.mark.parametrize("attempt", [1, 2, 3, 9])
def test_jitter_spreads_the_pause_and_never_makes_it_longer(attempt):
    longest = min(2 * 2 ** (attempt - 1), 30)
    found = [backoff_s(_stage(initial=2, max=30, jitter=True), attempt) for _ in range(200)]
    assert min(found) >= longest / 2
    assert max(found) <= longest
    assert max(found) - min(found) > longest / 4


def test_no_pause_is_no_pause():
    assert backoff_s(_stage(initial=0, max=0), 5) == 0


@pytest.mark.parametrize("initial", [1, 0.5])
def test_the_pause_before_the_ten_thousandth_attempt_is_still_its_longest(initial):
    assert backoff_s(_stage(initial=initial, max=60, jitter=False), 10_000) == 60
