"""What the router's rules may say."""

import pytest

from loomq.queues.spec import RouterRules


def test_rules_survive_dump_and_load():
    limit = {"rate": "100/m", "burst": 20, "max_concurrent": 4, "tokens_per_minute": 100_000}
    rules = RouterRules.model_validate(
        {"tier_overrides": {"w": "local"}, "rate_limits": {"local": limit, "standard": {}}}
    )
    assert RouterRules.model_validate(rules.model_dump(mode="json")) == rules
    assert rules.tier_overrides["w"] == "local"


@pytest.mark.parametrize(
    "said",
    [
        {"tier_overrides": {"w": "huge"}},
        {"tier_overrides": {"a.b": "local"}},
        {"rate_limits": {"huge": {}}},
        {"rate_limits": {"local": {"rate": "often"}}},
        {"rate_limits": {"local": {"burst": 0}}},
        {"rate_limits": {"local": {"burst": 3}}},
        {"rate_limits": {"local": {"rate": "0/s"}}},
        {"rate_limits": {"local": {"max_concurrent": 0}}},
        {"rate_limits": {"local": {"tokens_per_minute": 0}}},
    ],
)
def test_what_makes_no_sense_is_refused(said):
    with pytest.raises(ValueError, match="validation error"):
        RouterRules.model_validate(said)
