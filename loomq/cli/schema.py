"""``loomq schema KIND``: the JSON Schema of one kind of YAML file, for editors."""

from __future__ import annotations

import json

import click

KINDS = ("orchestrator", "pipeline", "router", "schedule", "worker")


@click.command("schema")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--json", "as_json", is_flag=True, help="The output is JSON with or without it.")
def command(kind: str, as_json: bool) -> None:  # noqa: ARG001  (every command takes --json)
    """Print the JSON Schema of a KIND of file.

    Point an editor at it with a first line such as `# yaml-language-server: $schema=worker.schema.json`.
    """
    from loomq.services.configs import json_schema

    click.echo(json.dumps(json_schema(kind), indent=2, ensure_ascii=False))
