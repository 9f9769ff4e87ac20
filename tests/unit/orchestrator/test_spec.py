"""What an orchestrator's file may say."""

import pytest

from loomq.orchestrator.spec import OrchestratorSpec


def test_defaults_are_those_of_the_formats():
    spec = OrchestratorSpec.model_validate({"name": "o"})
    assert (spec.available_workers, spec.max_concurrent_tasks, spec.max_rounds, spec.timeout_seconds) == (
        "all",
        5,
        3,
        300,
    )
    assert spec.checkpoint.model_dump() == {
        "token_threshold": 50_000,
        "recent_window": 5,
        "ttl_seconds": 86_400,
        "store": "postgres",
    }


def test_an_orchestrator_survives_dump_and_load():
    said = {
        "name": "o",
        "kind": "orchestrator",
        "system_prompt": "Plan.",
        "available_workers": [{"name": "w", "description": "d", "input_schema": {}, "default_model_tier": "local"}],
        "synthesis": "llm",
        "plan_cache": {"ttl_seconds": 60},
        "max_concurrent_goals": 2,
    }
    spec = OrchestratorSpec.model_validate(said)
    assert OrchestratorSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    "said", [{"available_workers": "some"}, {"synthesis": "vote"}, {"max_rounds": 0}, {"kind": "x"}]
)
def test_what_makes_no_sense_is_refused(said):
    with pytest.raises(ValueError, match="validation error"):
        OrchestratorSpec.model_validate({"name": "o", **said})
