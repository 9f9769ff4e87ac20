"""Random DAGs at once on real worker processes: each stage runs once, after its parents, and gives what it must."""

from __future__ import annotations

import json
import random

from benchmarks.dags import asking_diamonds, fans, n_shapes, series_parallel, tangled, timed
from loomq.services.submit import submit_goal

NODE = ("-P", "threads", "-c", "16")
WAIT = """
time.sleep(payload["ms"] / 4000)
return {"output": {"n": 1 + max(payload.get("above", {}).values(), default=0)}}
"""


def _chosen():
    rng = random.Random(7)
    parents = {
        "tangled": tangled(rng, 20),
        "tangled_too": tangled(rng, 13),
        "series_parallel": series_parallel(rng, 20),
        "fans": fans(rng, 16),
        "n_shapes": n_shapes(12),
    }
    return [*(timed(name, rng, above) for name, above in parents.items()), asking_diamonds(rng, 3)]


DAGS = _chosen()


def stock(project):
    project.worker("wait", WAIT)
    for dag in DAGS:
        project.write(f"pipelines/{dag.name}.yaml", json.dumps(dag.pipeline()))


def test_random_dags_at_once_run_each_stage_once_and_after_its_parents(shop):
    handles = [submit_goal("go", pipeline=dag.name, context={}, loom=shop.loom) for dag in DAGS for _ in range(2)]
    for at, handle in enumerate(handles):
        dag, result = DAGS[at // 2], handle.result(timeout=60)
        del result["_timeline"]
        assert result == dag.expected()
        stages = {stage.name: stage for stage in handle.stages()}
        assert {name for name, stage in stages.items() if stage.state == "skipped"} == dag.skipped
        for name in result:
            for parent in set(dag.parents[name]) - dag.skipped:
                assert stages[parent].ended_at <= stages[name].started_at
            assert stages[name].attempt == 1
    told = (
        "SELECT goal_id, stage, item FROM events WHERE kind = 'stage_completed'"
        " GROUP BY goal_id, stage, item HAVING count(*) > 1"
    )
    assert shop.loom.database.call(told, {}) == []
