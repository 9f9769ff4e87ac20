"""``loomq init [DIR]``: a new project that runs at once."""

from __future__ import annotations

from pathlib import Path

import click

from loomq.cli.options import json_option

TEMPLATES = ("minimal", "llm", "etl")


@click.command("init")
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option("--template", "-t", type=click.Choice(TEMPLATES), default="minimal", show_default=True)
@json_option
def command(folder: Path, template: str, as_json: bool) -> None:
    """Make a new project in DIR, or here: YAML, its code, and the schemas that editors check it against.

    minimal is one worker in a small pipeline; llm has a language model worker and runs without a model at first; etl
    reads a file, checks it and adds it up two ways at once. No file is ever replaced.
    """
    from loomq.cli.new import tell
    from loomq.services.scaffold import new_project

    tell(new_project(folder, template), as_json=as_json)
