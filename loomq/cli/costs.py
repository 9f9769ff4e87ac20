"""``loomq costs``: what calls to language models have used and cost."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from loomq.services.costs import Costs
    from loomq.services.views import Spent

GROUPS = ("worker", "model", "provider", "tier", "goal", "day")
_HEADERS = ("calls", "from cache", "prompt tokens", "of them cached", "answer tokens", "cost")


@click.command("costs")
@click.option("--by", type=click.Choice(GROUPS), default="worker", show_default=True, help="Days are of UTC.")
@click.option("--days", type=click.FloatRange(0, min_open=True), metavar="N", help="Only calls of the last N days.")
@json_option
@pass_invocation
def command(invocation: Invocation, by: str, days: float | None, as_json: bool) -> None:
    """Add up what calls to language models have used and cost, over all goals that are kept.

    A price that nobody knows is told as unknown and never counted as 0; docs/models.md says how to set one.
    """
    from loomq.cli.output import console, emit, notice_if_slow, say
    from loomq.services import costs
    from loomq.services.setup import require_schema

    loom = invocation.loom(broker=False)
    with notice_if_slow("starting the private Postgres and Redis …" if loom.is_embedded else "waiting for Postgres …"):
        require_schema(loom)
    found = costs.costs(loom, by, timedelta(days=days) if days else None)
    if as_json:
        emit(found.to_json())
    elif not found.rows:
        say("no language model has been asked yet")
    else:
        console().print(_table(found))


def _table(found: Costs) -> Table:
    from loomq.cli.output import table
    from loomq.cli.terminal import printable

    rows: list[tuple[str, ...]] = [(printable(name), *_cells(spent)) for name, spent in found.rows]
    if found.total is not None and len(rows) > 1:
        rows.append(("total", *_cells(found.total)))
    return table((found.by, *_HEADERS), rows, right=_HEADERS)


def _cells(spent: Spent) -> Sequence[str]:
    from loomq.cli.spending import dollars

    cost = dollars(spent.known_cost)
    if spent.unpriced_calls:
        cost = "unknown" if spent.unpriced_calls == spent.calls else f"{cost} + {spent.unpriced_calls:,} unknown"
    counts = (spent.calls, spent.cached_calls, spent.prompt_tokens, spent.cached_tokens, spent.completion_tokens)
    return [*(f"{count:,}" for count in counts), cost]
