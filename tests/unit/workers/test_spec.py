"""What a worker's file may say."""

import pytest
from hypothesis import given
from strategies import worker_files

from loomq.workers.spec import NOT_YET, WorkerSpec

PROCESSOR = {"name": "w", "worker_kind": "processor", "processing_backend": "a.B"}


@given(worker_files())
def test_a_worker_survives_dump_and_load(said):
    spec = WorkerSpec.model_validate(said)
    assert WorkerSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert WorkerSpec.model_validate_json(spec.model_dump_json()) == spec


def test_the_tier_is_the_one_written_else_the_kind_s_own():
    assert WorkerSpec.model_validate(PROCESSOR).tier == "local"
    assert WorkerSpec.model_validate({"name": "w", "system_prompt": "x"}).tier == "standard"
    assert WorkerSpec.model_validate({**PROCESSOR, "default_tier": "frontier"}).tier == "frontier"
    assert WorkerSpec.model_validate({**PROCESSOR, "default_model_tier": "frontier"}).tier == "frontier"


def test_defaults_are_those_of_the_formats():
    spec = WorkerSpec.model_validate(PROCESSOR)
    assert (spec.timeout_seconds, spec.max_retries, spec.max_output_tokens, spec.tool_timeout_seconds) == (
        60,
        2,
        2000,
        30,
    )
    assert spec.retry_backoff.model_dump() == {"initial": 1, "max": 60, "jitter": True}
    assert spec.temperature is None
    assert spec.reset_after_task is True


@pytest.mark.parametrize(
    "said",
    [
        {"name": "w"},
        {"name": "w", "worker_kind": "processor"},
        {"name": "w", "system_prompt": "x", "processing_backend": "a.B"},
        {**PROCESSOR, "default_tier": "local", "default_model_tier": "local"},
        {**PROCESSOR, "retry_backoff": {"initial": 9, "max": 3}},
        {**PROCESSOR, "resolve_file_refs": ["a"]},
        {**PROCESSOR, "processing_backend": "no_dot"},
        {**PROCESSOR, "processing_backend": "a.b; import os"},
        {**PROCESSOR, "timeout_seconds": True},
        {**PROCESSOR, "rate_limit": "10/d"},
        {**PROCESSOR, "reset_after_task": False},
        {**PROCESSOR, "name": "a.b"},
        {**PROCESSOR, "name": "a" * 200},
    ],
)
def test_what_makes_no_sense_is_refused(said):
    with pytest.raises(ValueError, match="validation error"):
        WorkerSpec.model_validate(said)


def test_every_row_of_the_not_yet_table_names_a_key():
    assert {row.path for row in NOT_YET} <= set(WorkerSpec.model_fields)
