"""Nodes and leadership: on the server's clock, one leader at a time."""

from rows import at_once, claim, new_stage, submit

from loomq.ids import uuid7
from loomq.store import nodes
from loomq.store.engine import Database
from loomq.store.nodes import Node, Served
from loomq.store.stages import Place


def _node(**more):
    plain = {
        "id": uuid7(),
        "hostname": "h",
        "pid": 1,
        "pool": "prefork",
        "slots": 2,
        "queues": ("a.local",),
        "version": "0",
    }
    return Node(**{**plain, **more})


def _let_run_out(database, name):
    database.call("UPDATE leases SET until = clock_timestamp() - interval '1 second' WHERE name = %(n)s", {"n": name})


def _silence(database, node, seconds):
    database.call(
        f"UPDATE nodes SET seen_at = clock_timestamp() - interval '{seconds} seconds' WHERE id = %(id)s",
        {"id": node.id},
    )


def test_one_of_many_leads(database_url):
    database = Database(database_url, pool_size=10)
    holders = [uuid7() for _ in range(20)]
    answers = at_once(*[lambda h=holder: nodes.lead(database, "sweeper", h, 30) for holder in holders])
    (leader,) = [holder for holder, answer in zip(holders, answers, strict=True) if answer is not None]
    assert nodes.lead(database, "sweeper", leader, 30) == {}
    assert [nodes.lead(database, "sweeper", holder, 30) for holder in holders if holder != leader] == [None] * 19
    database.close()


def test_a_leadership_that_ran_out_is_the_next_ones_with_its_memory(database):
    first, second = uuid7(), uuid7()
    assert nodes.lead(database, "sweeper", first, 30) == {}
    nodes.remember(database, "sweeper", first, {"epoch": "e1"})
    assert nodes.lead(database, "sweeper", first, 30) == {"epoch": "e1"}
    assert nodes.lead(database, "sweeper", second, 30) is None
    _let_run_out(database, "sweeper")
    assert nodes.lead(database, "sweeper", second, 30) == {"epoch": "e1"}
    assert nodes.lead(database, "sweeper", first, 30) is None


def test_a_leadership_that_ran_out_goes_to_one_of_those_who_want_it(database_url):
    database = Database(database_url, pool_size=10)
    assert nodes.lead(database, "sweeper", uuid7(), 30) == {}
    for _ in range(5):
        _let_run_out(database, "sweeper")
        answers = at_once(*[lambda: nodes.lead(database, "sweeper", uuid7(), 30)] * 10)
        assert sum(answer is not None for answer in answers) == 1
    database.close()


def test_only_the_leader_remembers_and_steps_down(database):
    leader, other = uuid7(), uuid7()
    nodes.lead(database, "sweeper", leader, 30)
    nodes.remember(database, "sweeper", other, {"epoch": "stolen"})
    nodes.step_down(database, ["sweeper"], other)
    assert nodes.lead(database, "sweeper", other, 30) is None
    assert nodes.lead(database, "sweeper", leader, 30) == {}


def test_who_steps_down_leaves_all_named_leaderships_at_once(database):
    leader, other = uuid7(), uuid7()
    for name in ("sweeper", "beat", "kept"):
        nodes.lead(database, name, leader, 30)
    nodes.step_down(database, ["sweeper", "beat"], leader)
    answers = [nodes.lead(database, name, other, 30) for name in ("sweeper", "beat", "kept")]
    assert answers == [{}, {}, None]


def test_a_node_is_live_as_long_as_it_is_heard_of(database):
    node = _node(hostname="h1", pid=7, slots=3, queues=("a.local", "b.local"), version="1.2")
    nodes.beat(database, node)
    ((found, started, seen),) = nodes.live(database, 60)
    assert found == node
    assert started <= seen
    _silence(database, node, 120)
    assert nodes.live(database, 60) == []
    nodes.beat(database, node)
    ((_, started_again, seen_again),) = nodes.live(database, 60)
    assert (started_again, seen_again >= seen) == (started, True)


def test_a_beat_tells_of_changed_slots_and_queues(database):
    node = _node()
    nodes.beat(database, node)
    changed = _node(id=node.id, slots=9, queues=("c.local",))
    nodes.beat(database, changed)
    assert [found for found, _, _ in nodes.live(database, 60)] == [changed]


def test_a_node_that_left_is_gone_and_a_silent_one_is_forgotten_in_time(database):
    left, silent, here = _node(), _node(), _node()
    for node in (left, silent, here):
        nodes.beat(database, node)
    nodes.leave(database, left.id)
    assert {found.id for found, _, _ in nodes.live(database, 60)} == {silent.id, here.id}
    _silence(database, silent, 400)
    nodes.forget(database, 300)
    assert {found.id for found, _, _ in nodes.live(database, 10_000)} == {here.id}


def test_slots_add_up_over_the_live_nodes_of_a_queue(database):
    nodes.beat(database, _node(slots=2, queues=("a.local", "b.local")))
    nodes.beat(database, _node(slots=3, queues=("a.local",)))
    silent = _node(slots=50, queues=("a.local",))
    nodes.beat(database, silent)
    _silence(database, silent, 120)
    assert nodes.served(database, 60) == {"a.local": Served(2, 5), "b.local": Served(1, 2)}


def test_a_node_whose_slots_are_all_in_use_may_hold_messages_of_its_queues(database):
    free, full, silent = _node(slots=2), _node(slots=1, queues=("b.local", "c.local")), _node(slots=1)
    for node in (free, full, silent):
        nodes.beat(database, node)
        goal_id = submit(database, new_stage("a"))
        claim(database, goal_id, "a", place=Place(node.id, 1, "m"))
    _silence(database, silent, 120)
    assert nodes.full_queues(database, 60) == {"b.local", "c.local"}


def test_the_leader_is_known_by_name_since_it_leads(database):
    assert nodes.leader(database, "sweeper") is None
    node, other = _node(hostname="n1@h"), uuid7()
    nodes.beat(database, node)
    nodes.lead(database, "sweeper", node.id, 30, "7@h")
    first = nodes.leader(database, "sweeper")
    nodes.lead(database, "sweeper", node.id, 30, "7@h")
    second = nodes.leader(database, "sweeper")
    assert (first.holder, first.who) == (node.id, "n1@h")
    assert (second.since, second.renewed_at > first.renewed_at) == (first.since, True)
    nodes.step_down(database, ["sweeper"], node.id)
    assert nodes.leader(database, "sweeper") is None
    nodes.lead(database, "sweeper", other, 30, "8@h")
    found = nodes.leader(database, "sweeper")
    assert (found.who, found.since > first.since) == ("8@h", True)


def test_who_does_not_lead_writes_nothing(database):
    nodes.lead(database, "sweeper", uuid7(), 30)
    before = database.call("SELECT xmin, xmax, ctid FROM leases", {})
    assert nodes.lead(database, "sweeper", uuid7(), 30) is None
    assert database.call("SELECT xmin, xmax, ctid FROM leases", {}) == before
