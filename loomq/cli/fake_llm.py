"""``loomq fake-llm``: serve a fake language model provider on this machine, until Ctrl-C or for one command."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loomq.cli.options import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loomq.llm.fake_server.server import FakeServer
    from loomq.settings import Settings

_FILE = click.Path(dir_okay=False, path_type=Path)
_PORT = 11435


@click.command("fake-llm", context_settings={"allow_interspersed_args": False})
@click.option("--port", type=click.IntRange(0, 65535), help=f"0 takes a free one, as with COMMAND; else {_PORT}.")
@click.option("--rules", type=_FILE, metavar="FILE", help="YAML that says what is answered; default: an echo.")
@click.option("--journal", type=_FILE, metavar="FILE", help="Append each request to it, a line of JSON; keys hidden.")
@click.option("--extractive", is_flag=True, help="Answer with a summary of the prompt's own sentences; needs no key.")
@click.option("--unless-configured", is_flag=True, help="Leave COMMAND alone if a model is configured for it.")
@click.argument("child", metavar="[-- COMMAND ...]", nargs=-1, type=click.UNPROCESSED)
@json_option
@pass_invocation
def command(
    invocation: Invocation,
    port: int | None,
    rules: Path | None,
    journal: Path | None,
    extractive: bool,
    unless_configured: bool,
    child: tuple[str, ...],
    as_json: bool,
) -> int:
    """Serve a fake language model provider that speaks as Anthropic, OpenAI and Ollama do, until Ctrl-C.

    It listens on this machine only and is no language model: it answers what its rules say.

    With a COMMAND it serves for as long as that runs, on all tiers of its environment, and ends with its exit code.
    """
    from loomq.cli.waiting import termination_as_interrupt

    if extractive and rules:
        raise click.UsageError("--extractive answers by itself; it takes no --rules")
    if child and as_json:
        raise click.UsageError("--json says where the server is; with a COMMAND nobody reads that")
    if unless_configured and not child:
        raise click.UsageError("--unless-configured needs a COMMAND: … --unless-configured -- COMMAND")
    if child:
        return _for_command(
            child,
            lambda: _server(port or 0, rules, journal, extractive=extractive),
            settings=invocation.settings() if unless_configured else None,
        )
    with termination_as_interrupt():
        try:
            with _server(_PORT if port is None else port, rules, journal, extractive=extractive) as server:
                _tell(server, extractive=extractive, as_json=as_json)
                server.stopping.wait()
        except KeyboardInterrupt:
            print(file=sys.stderr)
    return 0


def _for_command(child: Sequence[str], make: Callable[[], FakeServer], settings: Settings | None) -> int:
    """Run a command beside a server that all tiers of its environment go to.

    Args:
        settings: Given if a model that is configured is to be used instead of the server.
    """
    from loomq.cli.child import run_child
    from loomq.cli.output import say
    from loomq.errors import ConfigError
    from loomq.llm.http import HttpPool
    from loomq.llm.tiers import Tiers
    from loomq.messages import ModelTier

    why = ""
    if settings is not None:
        tiers = Tiers(HttpPool(), insecure=settings.insecure)
        tiers.settings  # noqa: B018  (a file with errors is told, and not taken for none)
        try:
            backend = tiers.backend(ModelTier.STANDARD)
        except ConfigError as error:
            why = f"{error.message}; "
        else:
            say(f"language model: {backend.model} of {backend.provider}")
            return run_child(child, os.environ, nullcontext())
    server = make()
    model = server.offer.models[0]
    say(f"{why}{server.offer.labels.get(model, model)} answers at {server.url}")
    models = {f"{tier.upper()}_MODEL": model for tier in ModelTier}
    return run_child(child, {**os.environ, **server.environment("openai"), **models}, server)


def _server(port: int, rules: Path | None, journal: Path | None, *, extractive: bool) -> FakeServer:
    from loomq.errors import EnvironmentNotReadyError
    from loomq.llm.fake_server.rules import RulesFile, load_rules
    from loomq.llm.fake_server.server import FakeServer, extractive_server

    said = load_rules(rules) if rules else RulesFile()
    try:
        if extractive:
            return extractive_server(port=port, journal_file=journal)
        return FakeServer(said.rules, models=said.models, port=port, journal_file=journal)
    except OSError as error:
        raise EnvironmentNotReadyError(
            f"port {port} cannot be listened on: {error.strerror}", hint="take a free one: --port 0"
        ) from None


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
