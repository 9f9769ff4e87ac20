"""Kill the process at each point of a conversation, once for every round: what is paid, and what is written."""

from __future__ import annotations

from collections import Counter

from deaths import DEATHS, died_in

from loomq.services import costs
from loomq.services.submit import submit_task
from loomq.store import silos
from loomq.testing import fake_llm, wait_until
from loomq.testing.llm import Rule

# The project's own code, which a worker process imports with its tool: it wraps what it finds in the product.
CODE = (
    DEATHS
    + """
import json

from loomq.knowledge import updates
from loomq.runs import silos as runs_silos
from loomq.store import journal, silos, turns
from loomq.tools.base import SyncToolProvider, call_context


around(journal, "read")
around(journal, "keep_call", lambda *a: f".{json.loads(a[-1])['round']}")
around(journal, "keep_result", lambda *a: f".{a[3]}")
around(turns, "turn")
around(silos, "apply_next")
around(runs_silos, "apply_update")


class Count(SyncToolProvider):
    def get_definition(self):
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        return {"name": "count", "description": "Count on.", "parameters": schema}

    def execute_sync(self, arguments):
        with (HERE / "calls.txt").open("a") as out:
            out.write(f"{arguments['n']} {call_context().idempotency_key}\\\\n")
        return json.dumps({"next": arguments["n"] + 1})
"""
)
WORKER = """
name: clerk
system_prompt: Work.
output_schema: {type: object, properties: {ok: {type: boolean}}, required: [ok]}
knowledge_silos:
  - {name: count, type: tool, provider: mine.tools.Count}
  - {name: notes, type: folder, path: notes, permissions: read_write}
"""
ROUNDS = 3  # two of them with tools
MOST_TASKS = 12
APPLIED = {f"{name}.{when}" for name in ("apply_next", "apply_update") for when in ("before", "after")}


def answer(call):
    if call.tool_results < ROUNDS - 1:
        return Rule.model_validate({"tool_calls": [{"name": "count", "arguments": {"n": call.tool_results}}]})
    changes = [{"silo": "notes", "action": "add", "filename": name, "content": name} for name in ("a.md", "b.md")]
    return Rule.model_validate({"json": {"ok": True, "silo_updates": changes}})


def test_a_death_at_any_point_of_a_conversation_pays_for_no_round_twice_and_makes_each_change_once(
    project, loom, start_node
):
    project.write("mine/tools.py", CODE.replace("\\\\n", "\\n"))
    project.write("workers/clerk.yaml", WORKER)
    project.settings_given |= {"max_deliveries": 100, "lease_seconds": 2}
    with fake_llm([answer]) as server:
        project.env = {**server.environment("openai"), "HOME": str(project.folder)}
        start_node("-c", "1")
        handles = []
        while not died_in(project) >= APPLIED and len(handles) < MOST_TASKS:
            handles.append(submit_task("clerk", {"n": len(handles)}, loom=loom))
            assert handles[-1].result(timeout=100) == {"ok": True}
            wait_until(lambda: not silos.has_pending(loom.database, "notes"), "the changes")
        paid = len(server.journal)

    died = died_in(project)
    kept = {f"keep_call.{when}.{number}" for when in ("before", "after") for number in range(ROUNDS)}
    results = {f"keep_result.{when}.{number}" for when in ("before", "after") for number in range(ROUNDS - 1)}
    assert died == {"read.before", "read.after", "turn.before", "turn.after", *kept, *results, *APPLIED}
    # Only a death between an answer and its row costs a call.
    assert paid == ROUNDS * len(handles) + sum(point.startswith("keep_call.before") for point in died)
    made = Counter(line.split()[0] for line in (project.folder / "calls.txt").read_text().splitlines())
    keys = {line.split()[1] for line in (project.folder / "calls.txt").read_text().splitlines()}
    assert len(keys) == 2 * len(handles)  # what is made again has the same key
    assert sum(made.values()) == len(keys) + sum(point.startswith("keep_result.before") for point in died)
    assert {file.name: file.read_text() for file in (project.folder / "notes").iterdir()} == {
        "a.md": "a.md", "b.md": "b.md",
    }  # fmt: skip
    for handle in handles:
        assert [one.state for one in silos.of_goal(loom.database, handle.goal_id)] == ["applied", "applied"]
    ((_, spent),) = costs.costs(loom, "worker", None).rows
    assert spent.calls == ROUNDS * len(handles)
    assert [(stage.attempt, stage.state) for handle in handles for stage in handle.stages()] == [(1, "done")] * len(
        handles
    )
