"""Show something once, or again and again until Ctrl-C."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

_EVERY_S = 2.0


def watch_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--watch``."""
    return click.option("--watch", "-w", is_flag=True, help="Show it every 2 seconds, until Ctrl-C.")(function)


def show(look: Callable[[], tuple[dict[str, Any], RenderableType]], *, as_json: bool, watch: bool) -> None:
    """Show what ``look`` finds: one JSON object (with ``watch`` one a line), or what a terminal shows.

    Args:
        look: Gives the JSON object and what people see.
    """
    from loomq.cli.output import console, emit

    if not watch:
        found, seen = look()
        if as_json:
            emit(found)
        else:
            console().print(seen)
        return
    try:
        _again_and_again(look, as_json=as_json)
    except KeyboardInterrupt:
        return


def _again_and_again(look: Callable[[], tuple[dict[str, Any], RenderableType]], *, as_json: bool) -> None:
    from rich.live import Live

    from loomq.cli.output import console
    from loomq.cli.terminal import is_terminal

    out = console()
    if as_json or not is_terminal(sys.stdout):
        while True:
            found, seen = look()
            if as_json:
                print(json.dumps(found, ensure_ascii=False), flush=True)
            else:
                out.print(seen)
            time.sleep(_EVERY_S)
    with Live(look()[1], console=out, auto_refresh=False) as live:
        while True:
            time.sleep(_EVERY_S)
            live.update(look()[1], refresh=True)
