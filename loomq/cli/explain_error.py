"""``loomq explain-error ID``: what an id such as LQ110 means, why it comes, and what to do."""

from __future__ import annotations

import click

from loomq.cli.options import json_option


def _ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    from loomq.services.explanations import ids

    return [one for one in ids() if one.startswith(incomplete.upper())]


@click.command("explain-error")
@click.argument("id_", metavar="ID", shell_complete=_ids)
@json_option
def command(id_: str, as_json: bool) -> None:
    """Explain the ID of a problem, such as LQ110: what it is, its likely cause, an example, and what to type next."""
    from loomq.cli.output import emit
    from loomq.services.explanations import explain

    found = explain(id_)
    if as_json:
        emit({"schema_version": 1, **found.to_json()})
        return
    print(f"{found.id}: {found.what}")
    print(f"  likely cause  {found.cause}")
    if found.wrong:
        print(f"  wrong         {found.wrong}")
    if found.right:
        print(f"  right         {found.right}")
    print(f"  next          {found.next}")
