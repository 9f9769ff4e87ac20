"""``loomq validate``: every problem of the project's YAML, each at its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loomq.cli.options import Invocation

if TYPE_CHECKING:
    from loomq.services.configs import Report

SHOWN = 50


@click.command("validate")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; the same as --format json.")
@click.option("--format", "form", type=click.Choice(["text", "json", "github"]), default="text", show_default=True)
@click.pass_context
def command(context: click.Context, paths: tuple[Path, ...], as_json: bool, form: str) -> None:
    """Check YAML files: keys, types, contracts, and what they say about each other.

    PATHS are files or folders; without any, the whole project is checked. Exit code 2 means problems.
    """
    from loomq.services.configs import validate

    report = validate(context.ensure_object(Invocation).settings(), paths)
    if as_json or form == "json":
        click.echo(json.dumps(_as_json(report), ensure_ascii=False, indent=2))
    else:
        _print(report, github=form == "github")
    context.exit(0 if report.is_valid else 2)


def _as_json(report: Report) -> dict[str, object]:
    return {
        "schema_version": 1,
        "valid": report.is_valid,
        "files": report.files,
        "problems": [problem.to_json() for problem in report.problems],
    }


def _print(report: Report, *, github: bool) -> None:
    for problem in report.problems[:SHOWN]:
        click.echo(problem.github() if github else problem.render())
    rest = len(report.problems) - SHOWN
    if rest > 0:
        click.echo(f"… and {rest} more", err=True)
    click.echo(_summary(report), err=True)


def _summary(report: Report) -> str:
    if not report.problems:
        return f"{_counted(report.files, 'file')}, no problems"
    files = len({problem.file for problem in report.problems})
    return f"{_counted(len(report.problems), 'problem')} in {_counted(files, 'file')}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
