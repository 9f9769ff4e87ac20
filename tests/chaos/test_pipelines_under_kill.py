"""A node dies in the middle of goals of each shape: another ends them, and with the result of an undisturbed run."""

from __future__ import annotations

import os
import signal

import pytest
import shapes

from loomq.services.submit import submit_goal
from loomq.testing import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(200)]
NODE = ("-c", "2")
PATIENCE_S = 90
AT_ONCE = 2

WAIT = "time.sleep(0.15)\n"
ADD = WAIT + 'return {"output": {"n": 1 + sum(payload.values())}}'
LIST = WAIT + 'return {"output": {"items": list(range(payload["n"]))}}'
DOUBLE = """
time.sleep(0.15)
if payload["x"] == 5:
    raise BackendError("no 5")
return {"output": {"x": 2 * payload["x"], "index": payload["index"]}}
"""
FAIL = WAIT + 'raise BackendError("it never works")'
TOTAL = WAIT + 'return {"output": {"total": sum(one["x"] for one in payload["all"] if one)}}'
STAGES = {
    # Conditions on an N shape: one side is skipped, and what needs it.
    "asking": """
  - {name: a, worker_type: add, input_mapping: {n: goal.context.n}}
  - {name: b, worker_type: add, input_mapping: {n: goal.context.n}}
  - {name: yes, worker_type: add, condition: a.output.n > 0, input_mapping: {n: a.output.n}}
  - {name: no, worker_type: add, condition: a.output.n < 0, input_mapping: {n: a.output.n, m: b.output.n}}
  - {name: needs_no, worker_type: add, input_mapping: {n: no.output.n}}
  - {name: may, worker_type: add, input_mapping: {n: yes.output.n, m: no.output.n?}}
  - {name: end, worker_type: add, input_mapping: {n: may.output.n, m: b.output.n, k: needs_no.output.n?}}
""",
    "fanning": """
  - {name: numbers, worker_type: numbers, input_mapping: {n: goal.context.n}}
  - name: double
    worker_type: double
    for_each: numbers.output.items
    max_parallel: 3
    on_item_failure: continue
    condition: item != 2
    input_mapping: {x: item, index: index}
  - name: again
    worker_type: add
    for_each: numbers.output.items
    input_mapping: {x: item, index: index}
  - {name: total, worker_type: total, input_mapping: {all: double.output.items, more: again.output.items}}
""",
    "nested": """
  - {name: before, worker_type: add, input_mapping: {n: goal.context.n}}
  - {name: inner, pipeline: asking, input_mapping: {n: before.output.n}}
  - {name: each, pipeline: asking, for_each: goal.context.many, max_parallel: 2, input_mapping: {n: item}}
  - {name: after, worker_type: add, input_mapping: {n: inner.output.end.n, m: "each.output.items[2].end.n"}}
""",
    "partial": """
  - {name: good, worker_type: add, input_mapping: {n: goal.context.n}}
  - {name: bad, worker_type: failing, input_mapping: {n: goal.context.n}}
  - {name: stands_in, worker_type: failing, fallback: {worker_type: add}, input_mapping: {n: goal.context.n}}
  - {name: after_good, worker_type: add, input_mapping: {n: good.output.n}}
  - {name: after_bad, worker_type: add, input_mapping: {n: bad.output.n}}
  - name: join
    worker_type: add
    input_mapping: {n: after_good.output.n, m: stands_in.output.n, k: after_bad.output.n?}
""",
}


def stock(project):
    for name, code in {"add": ADD, "numbers": LIST, "double": DOUBLE, "failing": FAIL, "total": TOTAL}.items():
        project.worker(name, code, max_retries=0)
    for name, stages in STAGES.items():
        project.pipeline(name, stages, extra="on_failure: continue_partial\n" if name == "partial" else "")


class Town:
    """The project, with two nodes, and what each shape gives when nothing happens."""

    def __init__(self, shop):
        self.shop, self.loom = shop, shop.loom
        self.nodes = [shop.node, self.start()]
        shop.loom.database.call(shapes.LOG_ENDS, {})
        self.undisturbed = {shape: self.told(self.submit(shape)) for shape in STAGES}

    def start(self):
        return type(self.shop.node)(self.shop.project, *NODE)

    def submit(self, shape):
        return submit_goal("go", pipeline=shape, context={"n": 9, "many": [1, 2, 3, 4]}, loom=self.loom)

    def told(self, handle):
        """Give what a goal came to: its result, and the state of each stage and item of it and of its parts."""
        result = handle.result(timeout=PATIENCE_S)
        del result["_timeline"]
        states = self.ask(
            "SELECT coalesce(g.parent_stage, '') AS part, coalesce(g.parent_item, -1), s.name, s.item, s.state"
            " FROM stages s JOIN goals g ON g.id = s.goal_id WHERE g.id = %(goal)s OR g.parent_goal = %(goal)s"
            " ORDER BY 1, 2, 3, 4",
            goal=handle.goal_id,
        )
        return result, [tuple(row) for row in states]

    def ask(self, query, **values):
        return self.loom.database.call(query, values)

    def done(self):
        return self.ask("SELECT count(*) FROM stages WHERE state = 'done'")[0][0]

    def kill(self, handles):
        """Kill the first node while it works on one of the goals or of their parts."""
        victim = self.nodes.pop(0)

        def works():
            return self.ask(
                "SELECT 1 FROM stages s JOIN nodes n ON n.id = s.node JOIN goals g ON g.id = s.goal_id"
                " WHERE s.state = 'claimed' AND n.pid = %(pid)s AND coalesce(g.parent_goal, g.id) = ANY (%(goals)s)",
                pid=victim.pid,
                goals=[handle.goal_id for handle in handles],
            )

        def is_caught():
            os.killpg(victim.pid, signal.SIGSTOP)  # so that it cannot finish between the look and the end
            if works():
                return True
            os.killpg(victim.pid, signal.SIGCONT)
            return False

        wait_until(lambda: works() and is_caught(), "the node to have a stage in hand")
        victim.kill()


@pytest.fixture(scope="module")
def town(shop):
    found = Town(shop)
    yield found
    for node in found.nodes:
        node.kill()


@pytest.mark.parametrize("share", [0.2, 0.6])
@pytest.mark.parametrize("shape", STAGES)
def test_a_node_that_dies_in_the_middle_changes_nothing_but_the_time(town, shape, share):
    result, states = town.undisturbed[shape]
    before, whole = town.done(), AT_ONCE * sum(state == "done" for *_, state in states)
    handles = [town.submit(shape) for _ in range(AT_ONCE)]
    wait_until(lambda: town.done() >= before + share * whole, "the middle of the goals")
    town.kill(handles)

    for handle in handles:
        assert town.told(handle) == (result, states)
    goals = [handle.goal_id for handle in handles]
    family = "(SELECT id FROM goals WHERE coalesce(parent_goal, id) = ANY (%(goals)s))"
    assert town.ask(f"SELECT 1 FROM events WHERE kind = 'stage_taken_back' AND goal_id IN {family}", goals=goals)
    assert (
        town.ask(
            f"SELECT count(*) FROM ends WHERE goal_id IN {family}"
            f" UNION ALL SELECT count(*) FROM stages WHERE state = 'done' AND goal_id IN {family}",
            goals=goals,
        )
        == [(whole,)] * 2
    )
    town.nodes.append(town.start())
