"""input_mapping: parsed once into paths and literals, applied to a goal and the outputs of its stages."""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.errors import ConfigError
from loomq.pipelines.paths import MISSING, Expression, Literal, Path, parse_expression
from loomq.pipelines.scanner import MalformedError
from loomq.problems import dotted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Fault", "Literal", "Mapping", "Path", "parse_mapping"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one expression of a mapping.

    Args:
        target: The keys of the mapping that lead to the expression.
        message: What is wrong, in one line.
        offset: The character of the expression where it goes wrong, from 0.
        hint: The way out.
    """

    target: tuple[str, ...]
    message: str
    offset: int = 0
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Mapping:
    """A parsed ``input_mapping``.

    Args:
        entries: Targets in the order written; a nested mapping is a ``Mapping``.
    """

    entries: tuple[tuple[str, Expression | Mapping], ...] = ()

    @classmethod
    def parse(cls, raw: MappingABC[str, Any], *, has_items: bool = False) -> Mapping:
        """Parse what the YAML says.

        Args:
            has_items: It is that of a stage with ``for_each``.

        Raises:
            ConfigError: Any expression is malformed; the message names all of them.
        """
        mapping, faults = parse_mapping(raw, has_items=has_items)
        if faults:
            told = "; ".join(f"{dotted(fault.target)}: {fault.message}" for fault in faults)
            raise ConfigError(f"the mapping is malformed: {told}", hint=faults[0].hint or None)
        return mapping

    @property
    def paths(self) -> tuple[tuple[tuple[str, ...], Path], ...]:
        """Every path with the keys of its target, nested ones too."""
        return tuple(self._walk(()))

    @property
    def roots(self) -> tuple[str, ...]:
        """The stages that the paths start at, each once, in the order written."""
        return stages_of(path for _, path in self.paths)

    @property
    def needs(self) -> tuple[str, ...]:
        """Those of ``roots`` that at least one path cannot do without."""
        return stages_of(path for _, path in self.paths if not path.is_optional)

    @property
    def reads_item(self) -> bool:
        """Whether it differs from item to item of a ``for_each``."""
        return any(path.of_item for _, path in self.paths)

    def apply(self, goal: MappingABC[str, Any], stages: MappingABC[str, Any]) -> dict[str, Any]:
        """Build the payload.

        Args:
            goal: ``{"goal_id", "instruction", "context"}``.
            stages: For each finished stage ``{"output", "model_used", "processing_time_ms", "started_at", …}``; a
                skipped stage is absent. Values are taken over, not copied.

        Raises:
            PipelineMappingError: A required path leads nowhere; it names the path and what is there.
        """
        return self.evaluate({**stages, "goal": goal})

    def evaluate(self, roots: MappingABC[str, Any]) -> dict[str, Any]:
        """Build the object that the entries describe; arguments and errors as in ``Path.evaluate``."""
        payload: dict[str, Any] = {}
        for target, entry in self.entries:
            value = entry.evaluate(roots)
            if value is not MISSING:
                payload[target] = value
        return payload

    def _walk(self, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Path]]:
        for target, entry in self.entries:
            if isinstance(entry, Mapping):
                yield from entry._walk((*above, target))  # noqa: SLF001  (one of us)
            elif isinstance(entry, Path):
                yield (*above, target), entry


def stages_of(paths: Iterable[Path]) -> tuple[str, ...]:
    """Give the stages that paths start at, each once, in their order."""
    return tuple(dict.fromkeys(path.stage for path in paths if path.stage is not None))


def parse_mapping(
    raw: MappingABC[str, Any], above: tuple[str, ...] = (), *, has_items: bool = False
) -> tuple[Mapping, list[Fault]]:
    """Parse what the YAML says, collecting every fault; entries at fault are left out.

    Args:
        raw: ``target: path`` pairs; a nested mapping builds a nested object.
        above: The keys that lead to ``raw``, for the faults.
        has_items: It is that of a stage with ``for_each``.
    """
    entries: list[tuple[str, Expression | Mapping]] = []
    faults: list[Fault] = []
    for target, written in raw.items():
        here = (*above, target)
        if isinstance(written, MappingABC):
            nested, below = parse_mapping(written, here, has_items=has_items)
            entries.append((target, nested))
            faults += below
        elif isinstance(written, str):
            try:
                entries.append((target, parse_expression(written, has_items=has_items)))
            except MalformedError as error:
                faults.append(Fault(here, error.message, error.offset, error.hint))
        elif isinstance(written, bool | int | float):
            entries.append((target, Literal(written)))
        else:
            what = "a list" if isinstance(written, list) else "nothing"
            faults.append(Fault(here, f"must be a path, a quoted literal or a nested mapping, not {what}"))
    return Mapping(tuple(entries)), faults
