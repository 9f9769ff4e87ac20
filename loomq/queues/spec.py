"""What the router's rules may say (formats.md §4)."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from loomq.config import Name, NotYet, Rate, Size, Spec, contradiction, refuse_no_rate
from loomq.messages import ModelTier

#: Keys that are read and then refused; an issue that gives one its behaviour deletes its row.
NOT_YET: tuple[NotYet, ...] = ()


class TierLimit(Spec):
    """What one tier may take, over the whole cluster; a task over a limit waits."""

    rate: Rate | None = None
    """Starts, as "100/m"."""
    burst: Size | None = None
    """How many may start at once after a pause; default: what a second gives."""
    max_concurrent: Size | None = None
    """How many may run at once."""
    tokens_per_minute: Size | None = None
    """Tokens of language models; set aside by estimate, charged by what a call used."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        refuse_no_rate(self.rate, "rate")
        if self.burst is not None and self.rate is None:
            raise contradiction("burst is how many of a rate may start at once, and there is no rate", "burst")
        return self


class RouterRules(Spec):
    """The router's rules: override > stage or message > worker default."""

    tier_overrides: dict[Name, ModelTier] = Field(default_factory=dict)
    """worker_type: tier"""
    rate_limits: dict[ModelTier, TierLimit] = Field(default_factory=dict)
