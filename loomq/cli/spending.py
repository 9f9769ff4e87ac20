"""What calls to language models have cost, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loomq.services.views import Spent

_REPAIRS = {
    "unescaped": "the answer's JSON had line breaks within texts",
    "fenced": "the answer's JSON was taken out of a fenced block",
    "yaml": "the answer was YAML",
    "surrounded": "the answer's JSON was taken out of the text around it",
}
_CENT = 0.01


def told_cost(spent: Spent) -> str:
    """Tell what calls to models have cost, and what of it nobody knows."""
    parts = [f"{spent.calls:,} call{'' if spent.calls == 1 else 's'}"]
    if spent.cached_calls:
        parts.append(f"{spent.cached_calls:,} from the cache, which cost nothing")
    if spent.open_calls:
        parts.append(f"{spent.open_calls:,} whose end nobody saw, counted at the most")
    told = f"({', '.join(parts)})"
    if not spent.unpriced_calls:
        return f"{dollars(spent.known_cost)} {told}"
    if spent.unpriced_calls == spent.calls:
        return f"unknown: what the model costs is not known {told}"
    return f"{dollars(spent.known_cost)} and more: what {spent.unpriced_calls:,} of them cost is not known {told}"


def dollars(amount: float | None) -> str:
    """Write an amount of US dollars, of small ones the digits that matter; ``None`` is unknown, and never 0."""
    if amount is None:
        return "unknown"
    if amount >= 1 or not amount:
        return f"${amount:,.2f}"
    return f"${amount:.4f}" if amount >= _CENT else f"${amount:.2g}" if amount >= _CENT / 100 else f"${amount:.7f}"


def told_repair(repair: str) -> str:
    """Tell what had to be done to read an answer."""
    return _REPAIRS.get(repair, repair)
