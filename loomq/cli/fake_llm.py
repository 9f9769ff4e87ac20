"""``loomq fake-llm``: serve a fake language model provider on this machine until Ctrl-C."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loomq.cli.options import json_option

if TYPE_CHECKING:
    from loomq.llm.fake_server.server import FakeServer

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("fake-llm")
@click.option("--port", type=click.IntRange(0, 65535), default=11435, show_default=True, help="0 takes a free one.")
@click.option("--rules", type=_FILE, metavar="FILE", help="YAML that says what is answered; default: an echo.")
@click.option("--journal", type=_FILE, metavar="FILE", help="Append each request to it, a line of JSON; keys hidden.")
@click.option("--extractive", is_flag=True, help="Answer with a summary of the prompt's own sentences; needs no key.")
@json_option
def command(port: int, rules: Path | None, journal: Path | None, extractive: bool, as_json: bool) -> None:
    """Serve a fake language model provider that speaks as Anthropic, OpenAI and Ollama do, until Ctrl-C.

    It listens on this machine only and is no language model: it answers what its rules say.
    """
    from loomq.cli.waiting import termination_as_interrupt
    from loomq.errors import EnvironmentNotReadyError

    if extractive and rules:
        raise click.UsageError("--extractive answers by itself; it takes no --rules")
    with termination_as_interrupt():
        try:
            try:
                server = _server(port, rules, journal, extractive=extractive)
            except OSError as error:
                raise EnvironmentNotReadyError(
                    f"port {port} cannot be listened on: {error.strerror}", hint="take a free one: --port 0"
                ) from None
            with server:
                _tell(server, extractive=extractive, as_json=as_json)
                server.stopping.wait()
        except KeyboardInterrupt:
            print(file=sys.stderr)


def _server(port: int, rules: Path | None, journal: Path | None, *, extractive: bool) -> FakeServer:
    from loomq.llm.fake_server.rules import RulesFile, load_rules
    from loomq.llm.fake_server.server import FakeServer, extractive_server

    if extractive:
        return extractive_server(port=port, journal_file=journal)
    said = load_rules(rules) if rules else RulesFile()
    return FakeServer(said.rules, models=said.models, port=port, journal_file=journal)


def _tell(server: FakeServer, *, extractive: bool, as_json: bool) -> None:
    """Say where it is, and what to set so that loomq asks it."""
    from loomq.cli.output import emit, say

    variables = server.environment("openai")
    if extractive:
        variables = {
            name: value for name, value in variables.items() if name.startswith("OPENAI") and "KEY" not in name
        }
    if as_json:
        emit({"schema_version": 1, "url": server.url, "models": list(server.offer.models), "environment": variables})
        sys.stdout.flush()
        return
    lines = [f"export {name}={value}" for name, value in variables.items()]
    say(
        "\n".join(
            [f"a fake language model provider listens at {server.url}; to use it:", "", *lines, "", "Ctrl-C ends it"]
        )
    )
