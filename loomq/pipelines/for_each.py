"""for_each: the list that a stage runs once an item over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.errors import PipelineMappingError
from loomq.pipelines.mapping import stages_of
from loomq.pipelines.paths import MISSING, Literal, Path, parse_expression
from loomq.pipelines.scanner import MalformedError
from loomq.pipelines.shapes import type_of

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class ForEach:
    """A parsed ``for_each``.

    Args:
        path: Where the list is.
    """

    path: Path

    @classmethod
    def parse(cls, text: str) -> ForEach:
        """Parse what the YAML says.

        Raises:
            MalformedError: It is no path, or cannot lead to a list.
        """
        found = parse_expression(text, has_items=True)
        if isinstance(found, Literal):
            raise MalformedError("for_each needs the path of a list, not a literal", 0)
        if found.of_item:
            hint = "items begin only with this list; run a pipeline with a for_each of its own for each item"
            raise MalformedError(f"for_each cannot read {found.root}", 0, hint)
        if found.default is not MISSING and not isinstance(found.default, list):
            raise MalformedError(f"the default is {type_of(found.default)}, and for_each needs a list", 0)
        return cls(found)

    @property
    def roots(self) -> tuple[str, ...]:
        """The stage that the path starts at, if it does."""
        return stages_of([self.path])

    @property
    def needs(self) -> tuple[str, ...]:
        """That of ``roots`` which the path cannot do without."""
        return () if self.path.is_optional else self.roots

    def evaluate(self, roots: Mapping[str, Any]) -> list[Any]:
        """Give the items; none for an optional path that leads nowhere.

        Args:
            roots: ``goal`` and the stages by name.

        Raises:
            PipelineMappingError: A required path leads nowhere, or there is no list.
        """
        value = self.path.evaluate(roots)
        if value is MISSING:
            return []
        if not isinstance(value, list):
            raise PipelineMappingError(f"for_each needs a list, and {self.path.text} is {type_of(value)}")
        return value
