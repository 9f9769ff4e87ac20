"""What the router's rules may say (formats.md §4)."""

from __future__ import annotations

from pydantic import Field

from loomq.config import Name, NotYet, Rate, Size, Spec
from loomq.messages import ModelTier

#: Keys that are read and then refused; an issue that gives one its behaviour deletes its row.
NOT_YET = (NotYet("rate_limits"),)


class TierLimit(Spec):
    """What one tier may take, over the whole cluster; a task over a limit waits."""

    rate: Rate | None = None
    """Dispatches, as "100/m"."""
    burst: Size | None = None
    max_concurrent: Size | None = None
    tokens_per_minute: Size | None = None


class RouterRules(Spec):
    """The router's rules: override > stage or message > worker default."""

    tier_overrides: dict[Name, ModelTier] = Field(default_factory=dict)
    """worker_type: tier"""
    rate_limits: dict[ModelTier, TierLimit] = Field(default_factory=dict)
