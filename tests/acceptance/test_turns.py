"""What a slot goes on with when its stage has ended: whoever is next on the queues, by the rules of the queues."""

from __future__ import annotations

import signal

import pytest

from loomq.queues.names import task_name
from loomq.services.submit import submit_goal, submit_task
from loomq.testing import wait_until

#: Longer than a turn, so that it is others' turn after each.
SLOW = 'time.sleep(0.06)\nreturn {"output": {"pid": os.getpid(), "at": time.time()}}'
HOLDING = """
Path(payload["started"]).touch()
while Path(payload["hold"]).exists():
    time.sleep(0.01)
return {"output": {}}
"""


@pytest.fixture
def shop(project):
    project.worker("slow", SLOW)
    project.worker("holding", HOLDING)
    project.worker("other", SLOW)
    project.worker("light", 'time.sleep(payload["s"])\nreturn {"output": {}}')
    project.worker("rare", SLOW, max_concurrent=1)
    links = (("a", ""), ("b", "a"), ("c", "b"))
    stages = [f"- {{name: {name}, worker_type: slow, depends_on: [{above}]}}" for name, above in links]
    project.pipeline("chain", "\n".join(stages))
    return project


@pytest.fixture
def held(shop, loom, start_node):
    """A node whose one slot is busy; gives the node, and a function that lets the slot go."""
    if not loom.app.is_redis:
        pytest.skip("slots take from the queues of a Redis only")
    return start_node("-c", "1"), occupy(shop, loom)


def occupy(shop, loom):
    """Let the one slot be busy; gives a function that lets it go."""
    hold, started = shop.folder / "hold", shop.folder / "started"
    started.unlink(missing_ok=True)
    hold.touch()
    submit_task("holding", {"hold": str(hold), "started": str(started)}, loom=loom)
    wait_until(started.exists, "the slot to be busy")
    return hold.unlink


def sabotage(shop, code):
    """Run code in each process of the project before anything else."""
    shop.env["PYTHONPATH"] = str(shop.folder)
    shop.write("sitecustomize.py", code)


def run_slow(loom, count):
    """Run so many tasks, each of which is delivered once."""
    handles = [submit_task("slow", {"n": n}, loom=loom) for n in range(count)]
    for handle in handles:
        handle.result(timeout=30)
    assert all(handle.stages()[0].deliveries == 1 for handle in handles)


def received(node):
    """How many messages came to the slot through Celery."""
    return node.text().count(" received")


def begun(handles):
    """The handles in the order in which their first stages began."""
    return sorted(handles, key=lambda handle: handle.stages()[0].started_at)


def test_a_slot_takes_what_is_next_by_priority_without_celery(held, loom):
    node, let_go = held
    normal = [submit_task("slow", {"n": n}, loom=loom) for n in range(4)]
    low = submit_task("slow", {}, loom=loom, priority="low")
    urgent = submit_task("slow", {}, loom=loom, priority="critical")
    let_go()
    handles = [urgent, *normal, low]
    for handle in handles:
        handle.result(timeout=30)
    assert begun(handles) == handles
    assert received(node) == 1, "the slot has taken the others by itself"
    assert all(handle.stages()[0].deliveries == 1 for handle in handles)


def test_a_chain_gives_way_to_what_waits_and_none_of_its_stages_is_forgotten(held, loom):
    node, let_go = held
    chains = [submit_goal("", pipeline="chain", loom=loom) for _ in range(3)]
    let_go()
    for chain in chains:
        assert chain.result(timeout=30).keys() >= {"a", "b", "c"}
    firsts = [chain.stages()[0].started_at for chain in chains]
    seconds = [min(one.started_at for one in chain.stages() if one.name == "b") for chain in chains]
    assert max(firsts) < min(seconds), "no chain goes on before each has had its first turn"
    assert received(node) == 1
    assert all(stage.deliveries == 1 for chain in chains for stage in chain.stages())


def test_an_urgent_chain_goes_on_before_less_urgent_work(held, loom):
    _, let_go = held
    chain = submit_goal("", pipeline="chain", loom=loom, priority="critical")
    low = [submit_task("slow", {"n": n}, loom=loom, priority="low") for n in range(4)]
    let_go()
    chain.result(timeout=30)
    for handle in low:
        handle.result(timeout=30)
    ended = max(stage.ended_at for stage in chain.stages())
    assert ended <= min(handle.stages()[0].started_at for handle in low)


def test_raw_calls_and_limited_work_come_through_celery_between_the_others(held, loom):
    node, let_go = held
    before = submit_task("slow", {}, loom=loom)
    call = loom.app.tasks[task_name("slow")].delay({"x": 1})
    rare = submit_task("rare", {}, loom=loom)
    behind = submit_task("slow", {}, loom=loom)
    let_go()
    for handle in (before, rare, behind):
        handle.result(timeout=30)
    assert call.get(timeout=30)["pid"]
    assert begun([behind, before]) == [before, behind]
    assert received(node) >= 3, "the call and what is limited need a message each"


def test_what_a_slot_does_not_take_any_more_when_its_node_leaves_stays_for_others(held, loom, start_node):
    node, let_go = held
    waiting = [submit_task("slow", {"n": n}, loom=loom) for n in range(5)]
    node.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not loom.database.call("SELECT 1 FROM nodes", {}), "the node to take its leave")
    let_go()
    wait_until(lambda: node.process.poll() is not None, "the node to end")
    assert node.process.returncode == 0
    assert {handle.stages()[0].state for handle in waiting} == {"published"}
    assert sum(loom.app.broker.lengths(["slow.local"])["slow.local"].values()) == 5
    start_node("-c", "1")
    for handle in waiting:
        handle.result(timeout=30)
    assert begun(waiting) == waiting
    assert all(handle.stages()[0].deliveries == 1 for handle in waiting)


def test_a_process_that_dies_with_what_it_has_fetched_loses_nothing(shop, loom, start_node):
    sabotage(
        shop,
        """
        import os, signal
        from pathlib import Path

        HERE = Path(__file__).parent / "died"


        def patched(*arguments):
            found = original(*arguments)
            if found.keys and not HERE.exists():
                HERE.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return found


        import loomq.queues.fetch as module

        original = module.Fetcher.fetch
        module.Fetcher.fetch = patched
        """,
    )
    start_node("-c", "1")
    handles = [submit_task("slow", {"n": n}, loom=loom) for n in range(6)]
    for handle in handles:
        handle.result(timeout=60)
    assert (shop.folder / "died").exists()
    assert max(handle.stages()[0].deliveries for handle in handles) <= 2


def test_of_a_batch_in_which_one_takes_long_others_get_the_rest(shop, loom, start_node):
    if not loom.app.is_redis:
        pytest.skip("slots take from the queues of a Redis only")
    # Whether a worker takes next to nothing is measured, which is this machine's business and not this test's.
    sabotage(shop, "import loomq.runs.turns as module\n\nmodule.Turns.at_once = lambda self, worker: 64\n")
    node = start_node("-c", "1")
    let_go = occupy(shop, loom)
    batch = [submit_task("light", {"s": 0 if n else 1.2}, loom=loom) for n in range(8)]
    let_go()
    for handle in batch:
        handle.result(timeout=30)
    assert node.text().count("is handed back") == 7
    assert all(handle.stages()[0].deliveries == 1 for handle in batch), "what was not begun does not count"


def test_a_rate_that_is_set_by_hand_holds_within_a_turn(held, loom):
    _, let_go = held
    handles = [submit_task("slow", {"n": n}, loom=loom) for n in range(6)]
    loom.app.control.rate_limit(task_name("slow"), "1/h")
    wait_until(lambda: loom.database.call("SELECT 1 FROM limit_overrides", {}), "the rate to be set")
    let_go()

    def states():
        return sorted(handle.stages()[0].state for handle in handles)

    wait_until(lambda: "published" not in states() and "claimed" not in states(), "all to have run or to wait")
    assert states() == ["done", *["ready"] * 5]


def test_a_slot_of_the_solo_pool_gives_way_to_what_else_its_process_does(shop, loom, start_node):
    node = start_node("-P", "solo")
    run_slow(loom, 4)
    assert received(node) == 4


def test_slots_leave_a_queue_alone_that_their_node_was_told_to_leave(held, loom):
    node, let_go = held
    kept = submit_task("slow", {}, loom=loom)
    left = submit_task("other", {}, loom=loom)
    loom.app.control.cancel_consumer("other.local")
    serves = "SELECT 1 FROM nodes WHERE 'slow.local' = ANY (queues) AND NOT 'other.local' = ANY (queues)"
    wait_until(lambda: loom.database.call(serves, {}), "the node to say what it serves")
    let_go()
    kept.result(timeout=30)
    submit_task("slow", {}, loom=loom).result(timeout=30)
    assert left.stages()[0].state == "published"
    loom.app.control.add_consumer("other.local")
    left.result(timeout=30)
    assert node.process.poll() is None


def test_a_fetch_that_fails_in_any_way_costs_no_result(shop, loom, start_node):
    sabotage(
        shop,
        """
        import loomq.queues.fetch as module


        def broken(*_arguments):
            raise KeyError("something that nobody thought of")


        module.Fetcher.fetch = broken
        """,
    )
    node = start_node("-c", "1")
    run_slow(loom, 3)
    assert "something that nobody thought of" in node.text()


def test_a_message_that_cannot_be_claimed_costs_no_result(shop, loom, start_node):
    sabotage(
        shop,
        """
        import loomq.store.turns as module

        original = module.turn


        def broken(database, ends, place, lease_s, backlog=None, pulled=()):
            if pulled:
                raise ValueError("something that nobody thought of")
            return original(database, ends, place, lease_s, backlog)


        module.turn = broken
        """,
    )
    node = start_node("-c", "1")
    run_slow(loom, 4)
    assert "is recorded without it" in node.text()


def test_what_a_nodes_processes_share_stays_shared(shop, loom, start_node):
    shop.worker("frozen", 'import gc\nreturn {"output": {"kept": gc.get_freeze_count()}}')
    start_node("-c", "1")
    kept = submit_task("frozen", {}, loom=loom).result(timeout=30)["kept"]
    assert kept > 10_000, "the collector would write to the pages of all that was loaded before the fork"
