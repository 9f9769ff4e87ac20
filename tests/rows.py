"""Rows for tests of the store: goals and stages as submit writes them, and threads that act at once."""

from __future__ import annotations

import json
import threading
from typing import Any

from loomq.ids import uuid7
from loomq.store import backlog, goals, letters, openings, stages
from loomq.store.backlog import URGENCIES, Fairness
from loomq.store.goals import NewGoal, NewStage, Submission
from loomq.store.openings import Element
from loomq.store.stages import Place, StageKey

PLACE = Place(uuid7(), 4242, "message")
NO = {"type": "PipelineWorkerError", "message": "no", "retryable": False}


def new_goal(**over: Any) -> NewGoal:
    """A goal of one leaf, with anything said otherwise."""
    plain = {
        "id": uuid7(),
        "pipeline": "demo",
        "kind": "pipeline",
        "instruction": "go",
        "context": {"n": 1},
        "priority": 1,
        "leaves_left": 1,
    }
    return NewGoal(**{**plain, **over})


def new_stage(name: str, **over: Any) -> NewStage:
    """A stage that is ready, waits for nobody and leads nowhere, with anything said otherwise."""
    plain = {
        "worker": "echo",
        "tier": "local",
        "priority": 1,
        "state": "ready",
        "waits_for": 0,
        "children": (),
        "reads": (),
        "timeout_s": 60.0,
        "max_retries": 2,
    }
    return NewStage(name, **{**plain, **over})


def submit(database, *new_stages: NewStage, key: str | None = None, **goal: Any):
    """Write a goal with these stages and give its id."""
    leaves = sum(not stage.children for stage in new_stages)
    row = new_goal(**{"leaves_left": leaves, **goal})
    return submit_row(database, row, new_stages, key=key)[0]


def submit_row(
    database, goal: NewGoal, new_stages, *, snapshot: str = "h", body=None, known_snapshots=None, key: str | None = None
):
    """Write one goal; gives its id, and whether it is new."""
    submission = Submission(goal, new_stages, snapshot, {} if body is None else body, key)
    known = set() if known_snapshots is None else known_snapshots
    return goals.submit(database, [submission], known_snapshots=known)[0]


def submit_dag(database, parents: dict[str, tuple[str, ...]], *, children: dict[str, tuple[str, ...]] | None = None):
    """Write a goal of that DAG; ``children`` puts those of some stages into an order of its own."""
    below = {name: tuple(child for child in parents if name in parents[child]) for name in parents}
    below.update(children or {})
    return submit(
        database,
        *(
            new_stage(
                name,
                state="waiting" if above else "ready",
                waits_for=len(above),
                children=below[name],
                reads=above,
            )
            for name, above in parents.items()
        ),
    )


def claim(database, goal_id, name: str, *, place: Place = PLACE, lease_s: float = 15):
    """Claim a stage that must be there to claim."""
    found = stages.claim(database, StageKey(goal_id, name), uuid7(), place, lease_s)
    assert found is not None, f"{name} is not there to claim"
    return found


def complete(database, claimed, output: str = "{}", **more: Any):
    """Complete a claimed stage."""
    return stages.complete(database, claimed.key, claimed.token, output=output, **more)


def run(database, goal_id, *names: str):
    """Claim and complete stages, one after the other; gives the last outcome."""
    return [complete(database, claim(database, goal_id, name), f'{{"by": "{name}"}}') for name in names][-1]


def row(database, goal_id, name: str):
    """Read one stage's row."""
    (found,) = [row for row in goals.stages_of(database, goal_id) if row.name == name]
    return found


def states_of(database, goal_id) -> dict[str, str]:
    """Read the state of each stage."""
    return {row.name: row.state for row in goals.stages_of(database, goal_id, outputs=False)}


def alter(database, goal_id, name: str, assignments: str) -> None:
    """Rewrite a stage's row, so that a test need not wait for the clock."""
    database.call(
        f"UPDATE stages SET {assignments} WHERE goal_id = %(goal)s AND name = %(name)s",
        {"goal": goal_id, "name": name},
    )


def fan_out(database, count, *, claimed=None, goal=None, leaf=False, **more):
    """Write a goal whose stage ``each`` stands before ``after``, and fan the stage out; gives the goal's id."""
    if goal is None:
        below = () if leaf else ("after",)
        rest = () if leaf else (new_stage("after", state="waiting", waits_for=1, reads=("each",)),)
        goal = submit(database, new_stage("each", children=below), *rest, **more.pop("goal_is", {}))
    held = claimed or claim(database, goal, "each")
    elements = [Element(index, index) for index in range(count)]
    assert openings.expand(database, held.key, held.token, elements, reads=(), **more).verdict == "accepted"
    return goal


def take_item(database, goal, item, place=PLACE):
    """Claim an item of stage ``each``; ``None`` if it is not there to claim."""
    return stages.claim(database, StageKey(goal, "each", item), uuid7(), place, 15)


def lose(database, held, *, retryable=False):
    """Let a claimed stage fail, for good or with attempts left."""
    return stages.fail(database, held.key, held.token, error=NO, retryable=retryable)


def take(database, limit, worker="echo", tier="local", *, free=None, age_s=3600.0, share=0.0):
    """Take waiting stages of one route for publishing, on a queue that has room for all of them."""
    room = [limit] * URGENCIES if free is None else free
    return backlog.take_ready(database, [(worker, tier)], [room], limit, Fairness(age_s, share))


def due(database, goal):
    """The stages of a goal that a message would be sent for."""
    query = (
        "SELECT name, item FROM stages WHERE goal_id = %(goal)s AND state = 'ready'"
        " AND coalesce(not_before, now()) <= now()"
    )
    return {(name, item) for name, item in database.call(query, {"goal": goal})}


def replay(database, goal, name="each", item=-1, payload=None):
    """Replay a dead letter, maybe with another input."""
    key = StageKey(goal, name, item)
    return letters.replay(database, key, actor="ann", request=uuid7(), payload=payload and json.dumps(payload))


def heard(listener, *, last: str) -> list[str]:
    """Collect what is notified up to the payload that contains ``last``; all there was is in it once that came."""
    found: list[str] = []

    def is_last(payload: str) -> bool:
        found.append(payload)
        return last in payload

    assert listener.wait(10, is_last), f"{last} was never heard, only {found}"
    return found


def at_once(*works) -> list[Any]:
    """Run callables in threads that start together; gives their results in order, or raises the first error."""
    barrier = threading.Barrier(len(works))
    found: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def run_one(at: int) -> None:
        try:
            barrier.wait(10)
            found[at] = works[at]()
        except BaseException as error:  # noqa: BLE001  (whatever it is belongs to the test's own thread)
            errors.append(error)

    threads = [threading.Thread(target=run_one, args=(at,)) for at in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]
    return found
