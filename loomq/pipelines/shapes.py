"""What a JSON Schema says about the values behind a path: possible, impossible, or unknown, and then allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Shape:
    """The values that one of several schemas allows.

    Args:
        options: Schemas, any of which may hold; ``True`` allows everything.
        root: The document that ``#/…`` references start at.
    """

    options: tuple[Any, ...]
    root: Any

    @classmethod
    def of(cls, schema: Mapping[str, Any] | None) -> Shape:
        """Make the shape of a contract; no contract allows everything."""
        return ANYTHING if schema is None else cls((schema,), schema)

    def types(self) -> frozenset[str]:
        """Give the JSON types that values may have."""
        return frozenset().union(*(self._types(option) for option in self.options))

    def child(self, part: str | int) -> Shape | Impossible:
        """Step down by a key or an index.

        Args:
            part: A key, or a list index; digits as text may be either.
        """
        found = [self._child(option, part) for option in self.options]
        possible = [one for one in found if isinstance(one, Shape)]
        if possible:
            return Shape(tuple(option for one in possible for option in one.options), self.root)
        return next(one for one in found if isinstance(one, Impossible))

    def undeclared(self, part: str | int) -> str:
        """Give the nearest declared key, when an open object does not declare this one but a similar one."""
        near = [self._near(option, part) for option in self.options]
        return near[0] if near and all(near) else ""

    def required(self) -> frozenset[str]:
        """Give the keys that every value must have."""
        names = []
        for option in self.options:
            schema = self._resolved(option)
            listed_names = schema.get("required", ()) if isinstance(schema, Mapping) else ()
            names.append(frozenset(name for name in listed_names if isinstance(name, str)))
        return frozenset.intersection(*names) if names else frozenset()

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
                below = Shape(tuple(branches), self.root).child(part)
                if isinstance(below, Impossible):
                    return below
                known = known or below
            elif word in schema:
                known = known or ANYTHING
        for one in schema.get("allOf", ()):
            if isinstance(one, Mapping) and "$ref" not in one:
                below = Shape((one,), self.root).child(part)
                if isinstance(below, Impossible):
                    return below
                known = known or (below if below != ANYTHING else None)
        return known or ANYTHING

    def _property(self, schema: Mapping[str, Any], name: str) -> Shape | Impossible:
        properties = schema.get("properties", {})
        if name in properties:
            below = properties[name]
            return Impossible(f'"{name}" is not allowed') if below is False else Shape((below,), self.root)
        if schema.get("patternProperties"):
            return ANYTHING
        rest = schema.get("additionalProperties", True)
        if rest is False:
            names = sorted(properties)
            hint = suggest(name, names) or (f"there are: {listed(names)}" if names else "it has no keys at all")
            return Impossible(f'there is no "{name}"', hint)
        return Shape((rest,), self.root) if isinstance(rest, Mapping) else ANYTHING

    def _item(self, schema: Mapping[str, Any], index: int) -> Shape | Impossible:
        most = schema.get("maxItems")
        if isinstance(most, int) and index >= most:
            return Impossible(f"a list of at most {most} has no item {index}")
        first = schema.get("prefixItems", [])
        below = first[index] if index < len(first) else schema.get("items", True)
        if below is False:
            return Impossible(f"a list of {len(first)} has no item {index}")
        return Shape((below,), self.root) if isinstance(below, Mapping) else ANYTHING

    def _near(self, option: Any, part: str | int) -> str:
        schema = self._resolved(option)
        if not isinstance(schema, Mapping) or not isinstance(part, str):
            return ""
        properties = schema.get("properties", {})
        closed = schema.keys() & {"additionalProperties", "patternProperties", "anyOf", "oneOf", "allOf"}
        return "" if closed or part in properties else suggest(part, properties)


ANYTHING = Shape((True,), True)


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
