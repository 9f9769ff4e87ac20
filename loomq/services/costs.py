"""What calls to language models have cost, over all goals that are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.services.views import SCHEMA_VERSION, Spent, cost_json
from loomq.store import spending

if TYPE_CHECKING:
    from datetime import timedelta

    from loomq.loom import Loom

#: What costs may be added up by.
GROUPS = tuple(spending.GROUPS)
_MOST = 200


@dataclass(frozen=True)
class Costs:
    """Costs by one thing.

    Args:
        by: One of ``GROUPS``.
        rows: The thing's name, and what was spent on it, the first of them: what cost most, of days the newest.
        total: Of all, those too that are not among the rows; ``None`` if nothing was spent.
    """

    by: str
    rows: tuple[tuple[str, Spent], ...]
    total: Spent | None

    def to_json(self) -> dict[str, Any]:
        """Describe them."""
        return {
            "schema_version": SCHEMA_VERSION,
            "by": self.by,
            "rows": [{self.by: name, **(cost_json(spent) or {})} for name, spent in self.rows],
            "total": cost_json(self.total),
        }


def costs(loom: Loom, by: str, within: timedelta | None) -> Costs:
    """Add up what was spent.

    Args:
        by: One of ``GROUPS``.
        within: Only calls that are no older.

    Raises:
        DatabaseUnavailableError: Postgres does not answer.
    """
    rows = tuple(spending.by(loom.database, by, within, _MOST))
    return Costs(by, rows, spending.total(loom.database, within))
