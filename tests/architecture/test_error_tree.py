"""The tree drawn in ``loomq/errors.py`` is the truth, and everything in it travels between processes."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import pytest

from loomq import errors

SAMPLES: dict[str, Any] = {
    "message": "the shelf is empty",
    "hint": "fill it: loomq db upgrade",
}
SAMPLES_BY_KIND: list[tuple[str, Any]] = [
    ("bool", True),
    ("float", 2.5),
    ("Mapping", {"why": ["a", 1]}),
    ("Sequence", ("one", "two")),
]


def raisables() -> list[type[BaseException]]:
    families = (errors.LoomqError, errors.LoomqSignal)
    found = [thing for thing in vars(errors).values() if inspect.isclass(thing) and issubclass(thing, families)]
    return [thing for thing in found if thing.__module__ == errors.__name__]


def drawn_tree() -> dict[str, str | None]:
    """Read the docstring's drawing as child to parent."""
    parents: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.fullmatch(r" {4}((?:│   |    )*)([├└]── )?([A-Z]\w+)", line)
        if not drawn:
            continue
        depth = len(drawn[1]) // 4 + bool(drawn[2])
        del above[depth:]
        parents[drawn[3]] = above[-1] if depth else None
        above.append(drawn[3])
    return parents


def sample_of(parameter: inspect.Parameter) -> Any:
    """Make a value for a constructor's argument that differs from its default."""
    if parameter.name in SAMPLES:
        return SAMPLES[parameter.name]
    for kind, sample in SAMPLES_BY_KIND:
        if kind in str(parameter.annotation):
            return sample
    assert "str" in str(parameter.annotation), f"say here what a sample of {parameter} is"
    return f"some {parameter.name}"


def made(kind: type[BaseException]) -> BaseException:
    if issubclass(kind, errors.LoomqSignal):
        return kind("taken back")
    parameters = list(inspect.signature(kind).parameters.values())
    return kind(**{parameter.name: sample_of(parameter) for parameter in parameters})


def test_the_drawn_tree_is_the_tree_of_the_classes():
    families = {"LoomqError", "LoomqSignal"}
    real = {kind.__name__: None if kind.__name__ in families else kind.__base__.__name__ for kind in raisables()}
    assert drawn_tree() == real


@pytest.mark.parametrize("kind", raisables(), ids=lambda kind: kind.__name__)
def test_everything_raised_survives_pickling_with_all_that_it_carries(kind: type[BaseException]):
    error = made(kind)
    error.retryable = not kind.retryable
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert copy.args == error.args
    assert vars(copy) == vars(error)
    assert copy.retryable is not kind.retryable
    assert str(copy) == str(error)


@pytest.mark.parametrize("kind", raisables(), ids=lambda kind: kind.__name__)
def test_everything_raised_says_whether_trying_again_can_help(kind: type[BaseException]):
    assert isinstance(kind.retryable, bool)


@pytest.mark.parametrize(
    "kind", [kind for kind in raisables() if issubclass(kind, errors.LoomqError)], ids=lambda kind: kind.__name__
)
def test_a_fault_shows_its_hint_and_keeps_its_arguments(kind: type[errors.LoomqError]):
    error = made(kind)
    assert error.hint == SAMPLES["hint"]
    assert SAMPLES["message"] in str(error)
    assert SAMPLES["hint"] in str(error)
    assert error.to_json()["type"] == kind.__name__
    for name, parameter in inspect.signature(kind).parameters.items():
        assert getattr(error, name) == sample_of(parameter), name


def test_a_fault_without_a_hint_is_its_message_alone():
    assert str(errors.LoomqError("the shelf is empty")) == "the shelf is empty"
