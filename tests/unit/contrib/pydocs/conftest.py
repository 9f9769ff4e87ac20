"""A workspace of the test's own, and the shipped stages without services."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from loomq.contracts import Contract
from loomq.contrib.pydocs.place import workspace
from loomq.llm.fake_server import extractive
from loomq.llm.parsing import parse_object
from loomq.pipelines.spec import PipelineSpec
from loomq.registry import load_dotted
from loomq.workers.base import SyncProcessingBackend
from loomq.workers.prompt import request_of
from loomq.workers.spec import WorkerSpec

REPOSITORY = Path(__file__).parents[4]


@pytest.fixture
def space(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOMQ_PROJECT", str(tmp_path))
    monkeypatch.setenv("LOOMQ_DATA", str(tmp_path / "data"))
    return workspace()


@pytest.fixture
def run_stages(space):
    """Run stages of ``pydocs`` in the order written, both contracts checked; ``given`` stands for those left out, and
    the extractive summarizer for the language model."""

    def run(given, *, goal_id="g1", context=None, **backend_config):
        pipeline = read(PipelineSpec, "pipelines/pydocs.yaml")
        goal = {"goal_id": goal_id, "instruction": "", "context": context or {}}
        done = {name: {"output": output} for name, output in given.items()}
        for stage in pipeline.pipeline_stages:
            if stage.name in done:
                continue
            worker = read(WorkerSpec, f"workers/{stage.worker_type}.yaml")
            payload = json.loads(json.dumps(stage.mapping.apply(goal, done)))
            Contract(worker.input_schema).check(payload, "input", stage=stage.name)
            if worker.worker_kind == "llm":
                prompt = request_of(worker, payload, 1).messages[0].content
                output = parse_object(extractive.answer(prompt)).value
                done[stage.name] = {"model_used": extractive.LABEL}
            else:
                kind = load_dotted(worker.processing_backend, allow=(), expect=SyncProcessingBackend)
                config = worker.backend_config | backend_config.get(stage.name, {})
                output = kind(**config).process_sync(payload, config)["output"]
            Contract(worker.output_schema).check(output, "output", stage=stage.name)
            assert len(json.dumps(output)) < 64 * 1024
            done.setdefault(stage.name, {})["output"] = output
        return {name: result["output"] for name, result in done.items()}, pipeline.output_mapping.apply(goal, done)

    return run


def read(kind, path):
    return kind.model_validate(yaml.safe_load((REPOSITORY / path).read_text()))
