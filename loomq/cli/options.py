"""Options that commands share, and what they said: one ``Invocation`` a call of the program."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from loomq.loom import Loom
    from loomq.settings import Settings


@dataclass
class Invocation:
    """What the options that every command takes said.

    Args:
        project: The folder with ``workers/``; ``None`` finds it from the current folder upward.
        data: Where embedded services keep their files.
        debug: Show tracebacks.
    """

    project: Path | None = None
    data: Path | None = None
    debug: bool = False

    @property
    def shows_tracebacks(self) -> bool:
        """Whether ``--debug`` or ``LOOMQ_DEBUG`` was given."""
        return self.debug or os.environ.get("LOOMQ_DEBUG", "") not in {"", "0"}

    def settings(self) -> Settings:
        """Read the settings.

        Raises:
            ConfigError: They cannot be used.
        """
        from loomq.settings import Settings

        return Settings.load(project=self.project, data=self.data)

    def loom(self, *, broker: bool, database: bool = True, lenient: bool = False) -> Loom:
        """Wire everything up until the end of the command, after a quick look whether the services answer at all.

        Args:
            broker, database: Whether the command cannot do without it.
            lenient: Go on without the files that have errors, and say so.

        Raises:
            ConfigError: The settings cannot be used.
            DatabaseUnavailableError, BrokerUnavailableError: Nothing listens there.
        """
        from loomq.services.probes import probe_broker, probe_database

        settings = self.settings()
        if database:
            probe_database(settings)
        if broker:
            probe_broker(settings)
        from loomq.logs import guard_last_resort
        from loomq.loom import Loom

        guard_last_resort()
        loom = Loom(settings, lenient=lenient)
        click.get_current_context().call_on_close(loom.close)
        if lenient:
            _tell_left_out(loom)
        return loom

    def ready(self, *, lenient: bool = False) -> Loom:
        """Wire everything up for a command that needs the database alone, which is started if it is ours.

        Args:
            lenient: As ``loom``.

        Raises:
            ConfigError, DatabaseUnavailableError: As ``loom``.
            SchemaOutdatedError: The database has not been migrated.
        """
        from loomq.cli.output import notice_if_slow
        from loomq.services.setup import require_schema

        loom = self.loom(broker=False, lenient=lenient)
        text = "starting the private Postgres and Redis …" if loom.is_embedded else "waiting for Postgres …"
        with notice_if_slow(text):
            require_schema(loom)
        return loom


def _tell_left_out(loom: Loom) -> None:
    from loomq.cli.output import say

    loom.catalog  # noqa: B018  (reads the files)
    left_out = loom.configs.left_out
    if left_out:
        say(f"warning: the project's files have errors, and are left out: {left_out[0].headline()}\n  loomq validate")


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        setattr(context.ensure_object(Invocation), parameter.name or "", value)


_FOLDER = click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path)
_NEW_FOLDER = click.Path(file_okay=False, resolve_path=True, path_type=Path)


def shared_options() -> list[click.Parameter]:
    """Make the options that stand before or after the name of any command."""
    return [
        click.Option(
            ["--project"],
            type=_FOLDER,
            metavar="DIR",
            expose_value=False,
            callback=_keep,
            help="The project's folder; default: found from here upward.",
        ),
        click.Option(
            ["--data"],
            type=_NEW_FOLDER,
            metavar="DIR",
            expose_value=False,
            callback=_keep,
            help="Where embedded services keep their files.",
        ),
        click.Option(
            ["--debug"], is_flag=True, expose_value=False, callback=_keep, help="Show the traceback of an error."
        ),
    ]


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json``: one JSON object on stdout and nothing else there."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and errors as JSON.")(function)


def pass_invocation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give the command its ``Invocation`` as the first argument."""
    return click.make_pass_decorator(Invocation, ensure=True)(function)
