"""What a pipeline's file may say."""

import pytest
from hypothesis import given
from strategies import pipeline_files

from loomq.errors import ConfigError
from loomq.pipelines.graph import graph_of
from loomq.pipelines.spec import NOT_YET, PipelineSpec, StageSpec


@given(pipeline_files())
def test_a_pipeline_survives_dump_and_load_with_the_same_graph(said):
    spec = PipelineSpec.model_validate(said)
    again = PipelineSpec.model_validate(spec.model_dump(mode="json"))
    assert again == spec
    assert graph_of(again) == graph_of(spec)
    assert [stage.mapping for stage in again.pipeline_stages] == [stage.mapping for stage in spec.pipeline_stages]


def test_limits_that_are_not_written_stay_unknown():
    spec = PipelineSpec.model_validate({"name": "p", "pipeline_stages": [{"name": "a", "worker_type": "w"}]})
    stage = spec.pipeline_stages[0]
    assert (spec.timeout_seconds, stage.timeout_seconds, stage.max_retries, stage.depends_on) == (
        None,
        None,
        None,
        None,
    )


@pytest.mark.parametrize(("stage", "pipeline", "expected"), [(5, 7, 5), (None, 7, 7), (None, None, 60)])
def test_the_limit_of_a_stage_is_its_own_else_the_pipeline_s_else_the_worker_s(stage, pipeline, expected):
    one = StageSpec(name="a", worker_type="w", timeout_seconds=stage)
    spec = PipelineSpec(name="p", pipeline_stages=(one,), timeout_seconds=pipeline)
    assert spec.timeout_of(one, 60) == expected


def test_the_output_is_a_mapping_if_it_is_written():
    said = {"name": "p", "pipeline_stages": [{"name": "a", "worker_type": "w"}]}
    assert PipelineSpec.model_validate(said).output_mapping is None
    spec = PipelineSpec.model_validate({**said, "output": {"x": "a.output.y"}})
    assert spec.output_mapping.apply({}, {"a": {"output": {"y": 1}}}) == {"x": 1}


def test_a_malformed_mapping_is_refused_when_it_is_used():
    with pytest.raises(ConfigError, match="malformed"):
        _ = StageSpec(name="a", worker_type="w", input_mapping={"x": "nowhere"}).mapping


def test_a_malformed_condition_or_for_each_is_refused_when_it_is_used():
    stage = StageSpec(name="a", worker_type="w", condition="x = 1", for_each="'x'")
    with pytest.raises(ConfigError, match="the condition is malformed"):
        _ = stage.when
    with pytest.raises(ConfigError, match="the for_each is malformed"):
        _ = stage.items


def test_a_condition_that_reads_items_is_asked_for_each_of_them():
    said = {"name": "a", "worker_type": "w", "for_each": "goal.context.list"}
    assert StageSpec(**said, condition="index > 0").skips_items
    assert not StageSpec(**said, condition="goal.context.x exists").skips_items
    assert not StageSpec(**said).skips_items


def test_a_pipeline_knows_the_workers_and_tiers_that_its_stages_ask_for():
    stages = [
        {"name": "a", "worker_type": "w", "tier": "frontier", "fallback": {"worker_type": "v", "tier": "local"}},
        {"name": "b", "pipeline": "p", "fallback": {"value": {}}},
        {"name": "c", "worker_type": "w"},
    ]
    spec = PipelineSpec.model_validate({"name": "p", "pipeline_stages": stages})
    assert spec.worker_types == ("v", "w")
    assert spec.tiers_asked == (("w", "frontier"), ("v", "local"))


def test_a_plan_without_the_newer_keys_is_one_that_older_nodes_read():
    older = StageSpec.model_fields.keys() - {"pipeline", "max_parallel", "on_item_failure", "fallback"}
    assert StageSpec(name="a", worker_type="w").model_dump(mode="json").keys() == older
    said = {"for_each": "goal.context.x", "max_parallel": 2, "on_item_failure": "continue", "fallback": {"value": {}}}
    assert (
        said.items() <= StageSpec(name="a", worker_type="w", **said).model_dump(mode="json", exclude_none=True).items()
    )


def test_every_row_of_the_not_yet_table_names_a_key():
    known = set(PipelineSpec.model_fields) | {f"pipeline_stages.*.{key}" for key in StageSpec.model_fields}
    assert {row.path for row in NOT_YET} <= known
