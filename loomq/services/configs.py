"""What a face may ask about the project's YAML: is it right, and what may it say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.catalog import load_catalog
from loomq.kinds import KINDS
from loomq.registry import project_on_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loomq.problems import Problem
    from loomq.settings import Settings


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a validation.

    Args:
        problems: Everything found, by file and line.
        files: How many files were found right.
    """

    problems: tuple[Problem, ...]
    files: int

    @property
    def errors(self) -> int:
        """How many problems stop a file from being used."""
        return sum(problem.severity == "error" for problem in self.problems)

    @property
    def is_valid(self) -> bool:
        """Whether every file can be used; warnings do not count."""
        return not self.errors


def validate(settings: Settings, paths: Sequence[Path] = ()) -> Report:
    """Check a project's files, or the given ones against the project.

    Args:
        settings: Names the project and the packages that YAML may import from.
        paths: Files or folders; empty means the whole project.
    """
    project_on_path(settings.project)
    catalog, problems = load_catalog(settings, paths, imports=True)
    return Report(tuple(problems), len(catalog.files))


def kinds() -> tuple[str, ...]:
    """List the kinds of files."""
    return tuple(sorted(KINDS))


def json_schema(kind: str) -> dict[str, Any]:
    """Give the JSON Schema that editors check a kind of file against.

    Args:
        kind: One of ``kinds()``.
    """
    schema = KINDS[kind].model.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
