"""The comparisons of conditions over JSON values: unlike types are never equal and have no order, nothing raises."""

from __future__ import annotations

import operator
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Test = Callable[[Any, Any], bool]


def equal(found: Any, literal: Any) -> bool:
    """Say whether two JSON values are the same; ``true`` is not 1, and 1 is 1.0.

    It goes no deeper than the literal, whose depth the parser bounds.
    """
    if isinstance(found, dict) and isinstance(literal, dict):
        return found.keys() == literal.keys() and all(equal(found[key], literal[key]) for key in literal)
    if isinstance(found, list) and isinstance(literal, list):
        return len(found) == len(literal) and all(map(equal, found, literal))
    if _is_number(found) and _is_number(literal):
        return bool(found == literal)
    return type(found) is type(literal) and not isinstance(found, dict | list) and bool(found == literal)


def is_in(found: Any, literal: Any) -> bool:
    """Say whether a value is an item of a list, or a text part of a text."""
    if isinstance(literal, list):
        return any(equal(found, one) for one in literal)
    return isinstance(found, str) and isinstance(literal, str) and found in literal


def contains(found: Any, literal: Any) -> bool:
    """Say whether a list has an item, an object a key, or a text a part."""
    if isinstance(found, list):
        return any(equal(one, literal) for one in found)
    return isinstance(found, str | dict) and isinstance(literal, str) and literal in found


def _ordered(test: Test) -> Test:
    def compare(found: Any, literal: Any) -> bool:
        both_text = isinstance(found, str) and isinstance(literal, str)
        return (both_text or (_is_number(found) and _is_number(literal))) and test(found, literal)

    return compare


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


ORDER: Mapping[str, Test] = MappingProxyType(
    {"<": _ordered(operator.lt), "<=": _ordered(operator.le), ">": _ordered(operator.gt), ">=": _ordered(operator.ge)}
)
#: For each operator, whether it holds for a value that was found and the literal beside it.
TESTS: Mapping[str, Test] = MappingProxyType(
    {
        "==": equal,
        "!=": lambda found, literal: not equal(found, literal),
        **ORDER,
        "in": is_in,
        "not-in": lambda found, literal: not is_in(found, literal),
        "contains": contains,
    }
)
