"""The plans that earlier releases wrote down still mean what they meant."""

import json
from pathlib import Path

import pytest

from loomq.pipelines.spec import PipelineSpec
from loomq.runs.snapshot import parse, snapshot_of_worker
from loomq.workers.spec import WorkerSpec

RELEASES = sorted((Path(__file__).parents[2] / "replay").glob("*.json"))


def _plans(file):
    recorded = json.loads(file.read_text())
    submitted = [given for statement, given in recorded["calls"] if "loomq_submit" in statement]
    written = [json.loads(given["body"]) for given in submitted if given["body"]]
    return [pytest.param(body, id=f"{file.stem}-{body['kind']}-{body['name']}") for body in recorded["plans"] + written]


def _keeps(recorded, today):
    """Say whether everything recorded is there today with its value; new keys may have come."""
    if isinstance(recorded, dict):
        return all(key in today and _keeps(value, today[key]) for key, value in recorded.items())
    if isinstance(recorded, list):
        return len(recorded) == len(today) and all(map(_keeps, recorded, today))
    return recorded == today


@pytest.mark.parametrize("body", [plan for file in RELEASES for plan in _plans(file)])
def test_a_recorded_plan_reads_as_it_was_written(body):
    plan = parse(body)

    assert (plan.kind, plan.name) == (body["kind"], body["name"])
    for name, worker in body["workers"].items():
        assert _keeps(worker, WorkerSpec.model_validate(worker).model_dump(mode="json")), name
    if plan.kind == "pipeline":
        assert _keeps(body["pipeline"], PipelineSpec.model_validate(body["pipeline"]).model_dump(mode="json"))
        assert {name: stage.worker.name for name, stage in plan.stages.items()} == {
            stage["name"]: stage["worker_type"] for stage in body["pipeline"]["pipeline_stages"]
        }


def test_a_snapshot_says_nothing_of_later_keys_that_say_nothing_so_that_older_nodes_read_it():
    plain = WorkerSpec.model_validate({"name": "w", "system_prompt": "x"})
    later = WorkerSpec.model_validate({"name": "w", "system_prompt": "x", "stream": True, "cache": {"ttl_seconds": 5}})
    assert not {"stream", "cache"} & snapshot_of_worker(plain)["workers"]["w"].keys()
    assert parse(snapshot_of_worker(plain)).stages["w"].worker == plain
    assert parse(snapshot_of_worker(later)).stages["w"].worker == later
