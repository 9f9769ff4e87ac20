"""What is known of the values behind a path: possible, impossible, or unknown, and then allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from loomq.problems import listed, suggest

TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_MAX_REFS = 32


@dataclass(frozen=True, slots=True)
class Impossible:
    """A step that no value fitting the schema can take.

    Args:
        message: Why.
        hint: The nearest thing that is possible.
    """

    message: str
    hint: str = ""


class Option(Protocol):
    """One thing that is known of values: a schema, or how loomq itself puts them together."""

    def types(self) -> frozenset[str]:
        """Give the JSON types that values may have."""

    def child(self, part: str | int) -> Shape | Impossible:
        """Step down by a key or an index."""

    def element(self) -> Shape:
        """Give the shape of any item, of those values that are lists."""

    def near(self, part: str | int) -> str:
        """Give the nearest declared key, when this one is not declared and yet allowed."""

    def required(self) -> frozenset[str]:
        """Give the keys that every value must have."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The values that one of several options allows."""

    options: tuple[Option, ...]

    @classmethod
    def of(cls, schema: Mapping[str, Any] | None) -> Shape:
        """Make the shape of a contract; no contract allows everything."""
        return ANYTHING if schema is None else cls((Schema(schema, schema),))

    @classmethod
    def of_value(cls, value: Any) -> Shape:
        """Make the shape of one value that is known."""
        if isinstance(value, Mapping):
            return cls((Fields({str(key): cls.of_value(below) for key, below in value.items()}),))
        if isinstance(value, list):
            return cls((Items(cls(tuple(option for one in value for option in cls.of_value(one).options))),))
        return cls.of({"const": value})

    def __or__(self, other: Shape) -> Shape:
        return Shape((*self.options, *other.options))

    def types(self) -> frozenset[str]:
        """Give the JSON types that values may have."""
        return frozenset().union(*(option.types() for option in self.options))

    def child(self, part: str | int) -> Shape | Impossible:
        """Step down by a key or an index.

        Args:
            part: A key, or a list index; digits as text may be either.
        """
        found = [option.child(part) for option in self.options]
        possible = [one for one in found if isinstance(one, Shape)]
        if possible:
            return Shape(tuple(option for one in possible for option in one.options))
        return next((one for one in found if isinstance(one, Impossible)), Impossible("there is nothing"))

    def element(self) -> Shape:
        """Give the shape of any item, of those values that are lists."""
        lists = [option.element() for option in self.options if "array" in option.types()]
        found = tuple(option for one in lists for option in one.options)
        return Shape(found) if found else ANYTHING

    def undeclared(self, part: str | int) -> str:
        """Give the nearest declared key, when an open object does not declare this one but a similar one."""
        near = [option.near(part) for option in self.options]
        return near[0] if near and all(near) else ""

    def required(self) -> frozenset[str]:
        """Give the keys that every value must have."""
        names = [option.required() for option in self.options]
        return frozenset.intersection(*names) if names else frozenset()


@dataclass(frozen=True, slots=True)
class Fields:
    """An object that loomq puts together of what it knows: it has these keys, or some of them, and no others."""

    below: Mapping[str, Shape]

    def types(self) -> frozenset[str]:
        """It is an object."""
        return frozenset({"object"})

    def child(self, part: str | int) -> Shape | Impossible:
        """Step down by a key."""
        found = self.below.get(str(part))
        return found or Impossible(f'there is no "{part}"', _known_keys(str(part), sorted(self.below)))

    def element(self) -> Shape:
        """It is no list."""
        return ANYTHING

    def near(self, part: str | int) -> str:  # noqa: ARG002  (as an Option is asked)
        """It declares every key."""
        return ""

    def required(self) -> frozenset[str]:
        """It promises no key."""
        return frozenset()


@dataclass(frozen=True, slots=True)
class Items:
    """A list that loomq puts together, of any length."""

    item: Shape

    def types(self) -> frozenset[str]:
        """It is a list."""
        return frozenset({"array"})

    def child(self, part: str | int) -> Shape | Impossible:
        """Step down by an index."""
        is_index = isinstance(part, int) or part.isdecimal()
        return self.item if is_index else Impossible(f'array has no "{part}"')

    def element(self) -> Shape:
        """Every item has the same shape."""
        return self.item

    def near(self, part: str | int) -> str:  # noqa: ARG002  (as an Option is asked)
        """It has no keys."""
        return ""

    def required(self) -> frozenset[str]:
        """It has no keys."""
        return frozenset()


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON Schema.

    Args:
        said: The schema, or a part of one; ``True`` allows everything.
        root: The document that ``#/…`` references start at.
    """

    said: Any
    root: Any

    def types(self) -> frozenset[str]:
        """Give the JSON types that values may have."""
        return self._types(self.said)

    def child(self, part: str | int) -> Shape | Impossible:
        """Step down by a key or an index."""
        return self._child(self.said, part)

    def element(self) -> Shape:
        """Give the shape of any item, of those values that are lists; anything where schemas are combined."""
        schema = self._resolved(self.said)
        if not isinstance(schema, Mapping) or schema.keys() & {"anyOf", "oneOf", "allOf"}:
            return ANYTHING
        below = [*schema.get("prefixItems", []), schema.get("items", True)]
        known = tuple(Schema(one, self.root) for one in below if one is not False)
        return Shape(known) if known else ANYTHING

    def near(self, part: str | int) -> str:
        """Give the nearest declared key, when an open object does not declare this one but a similar one."""
        schema = self._resolved(self.said)
        if not isinstance(schema, Mapping) or not isinstance(part, str):
            return ""
        properties = schema.get("properties", {})
        closed = schema.keys() & {"additionalProperties", "patternProperties", "anyOf", "oneOf", "allOf"}
        return "" if closed or part in properties else suggest(part, properties)

    def required(self) -> frozenset[str]:
        """Give the keys that every value must have."""
        schema = self._resolved(self.said)
        listed_names = schema.get("required", ()) if isinstance(schema, Mapping) else ()
        return frozenset(name for name in listed_names if isinstance(name, str))

    def _resolved(self, schema: Any) -> Any:
        for _ in range(_MAX_REFS):
            if not isinstance(schema, Mapping) or not schema.keys() & {"$ref", "$dynamicRef"}:
                return schema
            target = _pointed(self.root, schema.get("$ref"))
            # Keywords beside a reference narrow it further; what narrows is left out, never what widens.
            schema = True if target is None else target
        return True

    def _types(self, option: Any) -> frozenset[str]:
        schema = self._resolved(option)
        if schema is False:
            return frozenset()
        if not isinstance(schema, Mapping):
            return TYPES
        found = TYPES
        if "type" in schema:
            said = schema["type"]
            found = frozenset([said] if isinstance(said, str) else said)
        elif "const" in schema:
            found = frozenset({type_of(schema["const"])})
        elif isinstance(schema.get("enum"), list):
            found = frozenset(type_of(value) for value in schema["enum"])
        for word in ("anyOf", "oneOf"):
            if isinstance(schema.get(word), list):
                found = meet(found, frozenset().union(*(self._types_below(one) for one in schema[word])))
        for one in schema.get("allOf", ()):
            found = meet(found, self._types_below(one))
        return found

    def _types_below(self, option: Any) -> frozenset[str]:
        # A reference inside a combination may lead back here: unknown is the safe answer.
        refers = isinstance(option, Mapping) and option.keys() & {"$ref", "$dynamicRef"}
        return TYPES if refers else self._types(option)

    def _child(self, option: Any, part: str | int) -> Shape | Impossible:
        schema = self._resolved(option)
        if schema is False:
            return Impossible("nothing is allowed there")
        if not isinstance(schema, Mapping):
            return ANYTHING
        types = self._types(schema)
        as_key = isinstance(part, str) and "object" in types
        as_index = "array" in types and (isinstance(part, int) or part.isdecimal())
        if not as_key and not as_index:
            return Impossible(f'{" or ".join(sorted(types))} has no "{part}"')
        found: list[Shape | Impossible] = []
        if as_key:
            found.append(self._property(schema, str(part)))
        if as_index:
            found.append(self._item(schema, int(part)))
        own = next((one for one in found if isinstance(one, Shape)), found[0])
        return self._combined(schema, part, own)

    def _combined(self, schema: Mapping[str, Any], part: str | int, own: Shape | Impossible) -> Shape | Impossible:
        if isinstance(own, Impossible):
            return own
        known = own if own != ANYTHING else None
        for word in ("anyOf", "oneOf"):
            branches = [one for one in schema.get(word, ()) if not (isinstance(one, Mapping) and "$ref" in one)]
            if branches and len(branches) == len(schema[word]):
                below = self._any_of(branches).child(part)
                if isinstance(below, Impossible):
                    return below
                known = known or below
            elif word in schema:
                known = known or ANYTHING
        for one in schema.get("allOf", ()):
            if isinstance(one, Mapping) and "$ref" not in one:
                below = self._any_of([one]).child(part)
                if isinstance(below, Impossible):
                    return below
                known = known or (below if below != ANYTHING else None)
        return known or ANYTHING

    def _property(self, schema: Mapping[str, Any], name: str) -> Shape | Impossible:
        properties = schema.get("properties", {})
        if name in properties:
            below = properties[name]
            return Impossible(f'"{name}" is not allowed') if below is False else self._any_of([below])
        if schema.get("patternProperties"):
            return ANYTHING
        rest = schema.get("additionalProperties", True)
        if rest is False:
            names = sorted(properties)
            return Impossible(f'there is no "{name}"', _known_keys(name, names))
        return self._any_of([rest]) if isinstance(rest, Mapping) else ANYTHING

    def _item(self, schema: Mapping[str, Any], index: int) -> Shape | Impossible:
        most = schema.get("maxItems")
        if isinstance(most, int) and index >= most:
            return Impossible(f"a list of at most {most} has no item {index}")
        first = schema.get("prefixItems", [])
        below = first[index] if index < len(first) else schema.get("items", True)
        if below is False:
            return Impossible(f"a list of {len(first)} has no item {index}")
        return self._any_of([below]) if isinstance(below, Mapping) else ANYTHING

    def _any_of(self, schemas: list[Any]) -> Shape:
        return Shape(tuple(Schema(one, self.root) for one in schemas))


ANYTHING = Shape((Schema(True, True),))


def type_of(value: Any) -> str:
    """Name the JSON type of a value."""
    if value is None:
        return "null"
    names = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list | tuple, "array"))
    return next((name for kind, name in names if isinstance(value, kind)), "object")


def meet(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    """Give the types that both allow; an integer is a number."""
    found = one & other
    for narrow, wide in ((one, other), (other, one)):
        if "integer" in narrow and "number" in wide:
            found |= {"integer"}
    return found


def _known_keys(name: str, names: list[str]) -> str:
    return suggest(name, names) or (f"there are: {listed(names)}" if names else "it has no keys at all")


def _pointed(root: Any, reference: Any) -> Any:
    """Follow ``#/a/b``; None for anything that is not a plain pointer into the same document."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    found = root
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, Mapping) and key in found:
            found = found[key]
        else:
            return None
    return found
