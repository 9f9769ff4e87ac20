"""Judge a storm by its witnesses, in figures; those in ``ZEROS`` must be zero."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from typing import Any

from tests.chaos import shapes
from tests.chaos.ledger import Ledger
from tests.chaos.nemeses import POISON
from tests.chaos.storm import Storm

ZEROS = (
    "lost",
    "hung",
    "failed",
    "dead",
    "doubled",
    "early_joins",
    "wrong_results",
    "unknown_goals",
    "unfinished_rows",
    "node_exits",
    "internal_errors",
)
_INTERNAL = ("a step of the sweeper failed", "the node's agent met an error")
_REFUSED = ("its result is refused", "an error came after the end of stage")


def report(storm: Storm) -> dict[str, Any]:
    """Give the figures of a storm that is over; its Postgres must still answer."""
    with storm.world.servers.connect() as connection:
        ledger = Ledger.read(storm.world.folder / "ledger", connection)
        rows = _Rows(connection)
    given = storm.given
    ids = {goal.goal_id for goal in given}
    graphs = {goal.goal_id: shapes.SHAPES[goal.shape] for goal in given}
    recoveries = _recoveries(storm, ledger)
    of_kills = [seconds for kind in recoveries if "_kill" in kind for seconds in recoveries[kind]]
    return {
        "seed": storm.seed,
        "goals": len(given),
        "effects": sum(1 for times in ledger.accepted.values() if times),
        "effects_extra": sum(ledger.finishes.values()) - len(ledger.finishes),
        "faults": {**storm.struck, **({POISON: ledger.poisoned} if ledger.poisoned else {})},
        "faults_missed": dict(storm.missed),
        "lost": len(ids - rows.goals.keys()) + storm.goals - len(given),
        "hung": sum(rows.goals.get(goal) == "open" for goal in ids),
        "failed": sum(rows.goals.get(goal) in {"failed", "cancelled"} for goal in ids),
        "doubled": sum(len(times) - 1 for times in ledger.accepted.values() if len(times) > 1),
        "early_joins": sum(_early(ledger, goal, graph) for goal, graph in graphs.items()),
        "zombie_writes_refused": sum(map(storm.world.supervisor.logged, _REFUSED)),
        "wrong_results": sum(_wrong(rows, ledger, goal) for goal in given),
        "unknown_goals": len(rows.goals.keys() - ids),
        "unfinished_rows": rows.unfinished,
        "dead": rows.dead,
        "most_deliveries": rows.most_deliveries,
        "submit_p99_ms": round(quantile(storm.client.took_ms, 0.99)),
        "submit_refused": storm.client.refused,
        "recovery_p50_s": round(quantile(of_kills, 0.5), 2),
        "recovery_p99_s": round(quantile(of_kills, 0.99), 2),
        "recovery_worst_s": {kind: round(max(found), 2) for kind, found in recoveries.items()},
        "freed_p99_s": round(quantile(_freed(storm, ledger), 0.99), 2),
        "details": {**storm.target.details, "answers_swallowed": storm.world.servers.swallowed()},
        "internal_errors": sum(map(storm.world.supervisor.logged, _INTERNAL)),
        "node_exits": _node_exits(storm),
        "duration_s": round(time.monotonic() - storm.began, 1),
    }


def faults_of(figures: dict[str, Any]) -> list[str]:
    """List the figures that ought to be zero and are not."""
    return [name for name in ZEROS if figures.get(name)]


def tell(figures: dict[str, Any]) -> None:
    """Write the figures to stdout as one line."""
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


class _Rows:
    """What loomq's own rows say in the end."""

    def __init__(self, connection: Any) -> None:
        self.goals = {str(goal): state for goal, state in connection.execute("SELECT id, state FROM goals")}
        self.outputs: dict[str, dict[str, Any]] = {}
        for goal, name, output in connection.execute(
            "SELECT goal_id, name || coalesce(':' || nullif(item, -1), ''), output FROM stages WHERE state = 'done'"
        ):
            self.outputs.setdefault(str(goal), {})[name] = output
        self.dead, self.most_deliveries = connection.execute(
            "SELECT count(*) FILTER (WHERE state = 'dead'), coalesce(max(deliveries), 0) FROM stages"
        ).fetchone()
        # Of goals that are done: stages that have not ended, joins that still wait, leaves that still count.
        (self.unfinished,) = connection.execute(
            "SELECT count(*) FROM goals g JOIN stages s ON s.goal_id = g.id"
            " WHERE g.state = 'done' AND (s.state <> CASE WHEN s.name = ANY (%s) THEN 'skipped' ELSE 'done' END"
            " OR s.waits_for <> 0 OR g.leaves_left <> 0)",
            [sorted(shapes.SKIPPED)],
        ).fetchone()


def _early(ledger: Ledger, goal: str, graph: dict[str, tuple[str, ...]]) -> int:
    """Count the effects of a goal that began before each of their parents' completion was accepted."""
    return sum(
        began < min(ledger.accepted.get((goal, parent)) or [float("inf")])
        for stage, parents in graph.items()
        for parent in parents
        for began in ledger.starts.get((goal, stage), ())
    )


def _wrong(rows: _Rows, ledger: Ledger, goal: Any) -> int:
    """Count the stages of a done goal whose output is not what it ought to be, or that nobody ever worked on."""
    if rows.goals.get(goal.goal_id) != "done":
        return 0
    outputs = rows.outputs.get(goal.goal_id, {})
    return sum(
        outputs.get(stage) != {"value": value}
        or not ledger.finishes[goal.goal_id, stage]
        or not ledger.accepted.get((goal.goal_id, stage))
        for stage, value in shapes.expected(goal.shape, goal.n).items()
    )


def _recoveries(storm: Storm, ledger: Ledger) -> dict[str, list[float]]:
    """Say how long what each kind of fault hit took to go on, in seconds.

    A stage that lost its process: from the fault to its next claim, which includes its wait on the queue, unless its
    completion got through in spite of the fault. A server: from when it was back to the next completion of any stage.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for hit in storm.target.hits:
        claims = ledger.claims.get((hit.goal, hit.stage), [])
        mine = [at for at, token in claims if token == hit.token]
        following = [at for at, token in claims if token != hit.token and at > max([hit.at, *mine])]
        if following:
            found[hit.kind].append(following[0] - hit.at)
        elif not ledger.accepted.get((hit.goal, hit.stage)):
            found[hit.kind].append(time.time() - hit.at)
    for kind, at in storm.target.back:
        following_accept = ledger.first_accept_after(at)
        if following_accept is not None:
            found[kind].append(following_accept - at)
    return found


def _freed(storm: Storm, ledger: Ledger) -> list[float]:
    """Say how long stages whose process was killed took to be ready for another."""
    found = []
    for hit in storm.target.hits:
        following = [at for at in ledger.readied.get((hit.goal, hit.stage), ()) if at > hit.at]
        if following and hit.kind.endswith("_kill"):
            found.append(following[0] - hit.at)
    return found


def _node_exits(storm: Storm) -> int:
    """Count the ends of nodes that no fault brought about; one that was killed last may not have been started again."""
    starts_again = sum(node.starts - 1 for node in storm.world.supervisor.nodes)
    return max(0, starts_again - storm.target.details["nodes_killed"])


def quantile(values: list[float], share: float) -> float:
    """Give the smallest value that so large a share of them does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
