"""What calls to language models have cost and what is special about their answers, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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


def told_budget(budget: Mapping[str, Any]) -> str:
    """Tell what a goal may spend."""
    cost, tokens = budget.get("max_cost"), budget.get("max_tokens")
    return ", ".join([*([dollars(cost)] if cost is not None else []), *([f"{tokens:,} tokens"] if tokens else [])])


def told_notes(notes: Mapping[str, Any]) -> Iterator[str]:
    """Tell what is special about an answer: how it was read, what was missing, who gave it."""
    if "repair" in notes:
        yield _REPAIRS.get(notes["repair"], notes["repair"])
    yield from (f"did without {mode}" for mode in notes.get("degraded_modes", ()))
    yield from (f"answered by {model}" for model in notes.get("stood_in", ()))
    if faults := notes.get("refused_plan"):
        yield f"its first plan was refused: {'; '.join(faults)}"
    if made := notes.get("checkpoints"):
        yield f"what was before is compressed: {made} checkpoint{'' if made == 1 else 's'} made"
    if lost := notes.get("lost_minutes"):
        yield f"of {lost} of them the model's text was no good: they hold the beginnings of results instead"
    if cut := notes.get("shortened"):
        yield f"the model was told {cut} earlier result{'' if cut == 1 else 's'} only in part"


def told_change(asked: Mapping[str, Any], state: str) -> str:
    """Tell of a change of a silo that an answer asked for."""
    if "silo_updates" in asked:  # not even a list of changes
        return f"silo_updates {state}"
    return f"{asked.get('action')} {asked.get('filename')} in silo {asked.get('silo')} {state}"
