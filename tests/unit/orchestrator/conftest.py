"""An orchestrator with a few workers, and what a model may answer."""

from __future__ import annotations

import pytest

from loomq.orchestrator.manifest import ORCHESTRATOR_INPUT, Frozen, Offer
from loomq.orchestrator.spec import OrchestratorSpec

LOOK = {
    "type": "object",
    "properties": {"q": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["q"],
    "additionalProperties": False,
}


@pytest.fixture
def frozen():
    """The orchestrator."""
    offers = (
        Offer(name="look", description="Look.", input_schema=LOOK, tier="local", tiers=("local", "frontier")),
        Offer(name="free", tier="standard", tiers=("standard",)),
        Offer(name="boss", kind="orchestrator", input_schema=ORCHESTRATOR_INPUT),
    )
    return Frozen(spec=OrchestratorSpec(name="o", system_prompt="Mind the gap."), offers=offers)
