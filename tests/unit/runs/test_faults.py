"""Whatever a worker raises becomes a fault that names its stage and can be stored."""

import json
from pathlib import Path

import pytest

from loomq.errors import (
    BackendError,
    ImportRefusedError,
    PipelineMappingError,
    PipelineStageError,
    PipelineTimeoutError,
    PipelineValidationError,
    PipelineWorkerError,
    SoftDeadline,
    TransientBackendError,
)
from loomq.inline import inline_json
from loomq.runs.faults import as_stage_error


def _fault(error):
    return as_stage_error(error, "chunk", "chunker", 2.5)


def _raised(error, cause=None):
    """Give the error with the traceback that raising it leaves."""
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def _storable(fault):
    return json.loads(inline_json(fault.to_json(), what="the error", limit_bytes=10**6))


def test_a_plain_exception_says_what_and_where():
    fault = _fault(_raised(ValueError("no such row")))
    assert type(fault) is PipelineWorkerError
    assert fault.message == "worker chunker failed in stage chunk: ValueError: no such row"
    found = fault.to_json()
    assert (found["type"], found["stage"], found["retryable"]) == ("PipelineWorkerError", "chunk", False)
    assert found["cause"] == "ValueError: no such row"
    path, _, line = found["where"].rpartition(":")
    assert path == __file__
    assert "raise error from cause" in Path(path).read_text().splitlines()[int(line) - 1]


def test_the_root_cause_is_kept_below_a_backends_own_error():
    middle = _raised(RuntimeError("middle"), _raised(KeyError("root")))
    fault = _fault(_raised(BackendError("cannot parse", hint="send less"), middle))
    assert fault.message == "worker chunker failed in stage chunk: cannot parse"
    assert fault.hint == "send less"
    assert fault.to_json()["cause"] == "KeyError: 'root'"


def test_an_error_that_was_never_raised_has_no_place():
    assert "where" not in _fault(ValueError("x")).to_json()


class MineError(Exception):
    """A user's own, which says that another try may help."""

    retryable = True


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (ValueError("x"), False),
        (ConnectionError("x"), True),
        (ConnectionResetError("x"), True),
        (TimeoutError("x"), True),
        (OSError("x"), False),
        (BackendError("x"), False),
        (TransientBackendError("x"), True),
        (MineError("x"), True),
        (ImportRefusedError("x"), False),
        (PipelineWorkerError("x"), False),
        (PipelineWorkerError("x", retryable=True), True),
        (PipelineValidationError("x"), False),
        (PipelineTimeoutError("x", retryable=False), False),
        (SoftDeadline("x"), True),
    ],
    ids=repr,
)
def test_what_may_help_to_try_again_is_said(error, retryable):
    fault = _fault(_raised(error))
    assert fault.retryable is retryable
    assert fault.to_json()["retryable"] is retryable


def test_a_stages_time_being_up_is_a_timeout():
    fault = _fault(SoftDeadline("interrupted after 2.5 s"))
    assert type(fault) is PipelineTimeoutError
    assert (fault.message, fault.stage) == ("stage chunk ran longer than its 2.5 s", "chunk")
    assert "timeout_seconds" in fault.hint


@pytest.mark.parametrize(
    "kind",
    [PipelineStageError, PipelineValidationError, PipelineWorkerError, PipelineMappingError, PipelineTimeoutError],
)
def test_a_stage_error_keeps_its_kind_and_all_it_said(kind):
    error = kind("broken", hint="mend it", stage="inner", retryable=True)
    error.detail = {"cause": "KeyError: 'x'"}
    fault = _fault(error)
    assert type(fault) is kind
    assert (fault.message, fault.hint) == ("stage inner: broken", "mend it")
    assert (fault.stage, fault.retryable) == ("inner", True)
    assert fault.to_json() == {**error.to_json(), "message": "stage inner: broken"}
    assert _fault(kind("broken")).stage == "chunk"


UNSTORABLE = "a\x00b \ud800 c"


@pytest.mark.parametrize(
    "error",
    [
        ValueError(UNSTORABLE),
        BackendError(UNSTORABLE),
        BackendError("x", hint=UNSTORABLE),
        PipelineWorkerError(UNSTORABLE),
        PipelineWorkerError("x", hint=UNSTORABLE),
        PipelineWorkerError("x" * 10**6),
        ValueError("x" * 10**6),
    ],
    ids=lambda error: repr(error)[:40],
)
def test_every_fault_can_be_stored(error):
    found = _storable(_fault(_raised(error)))
    assert found["stage"] == "chunk"
    assert max(len(str(value)) for value in found.values()) < 9000


def test_the_cause_of_a_fault_can_be_stored():
    fault = _fault(_raised(BackendError("x"), ValueError(UNSTORABLE)))
    assert _storable(fault)["cause"].startswith("ValueError: a\ufffdb")


class MuteError(Exception):
    """One that cannot even be printed."""

    def __str__(self):
        raise RuntimeError("no words")


class HollowError(BackendError):
    """A user's subclass that forgot its base's constructor."""

    def __init__(self, code):
        self.code = code


class StrictError(PipelineWorkerError):
    """A user's subclass with a constructor of its own."""

    def __init__(self, code):
        super().__init__(f"code {code}")


@pytest.mark.parametrize("error", [MuteError(), HollowError(3), StrictError(3)], ids=lambda error: type(error).__name__)
def test_an_exception_that_is_hard_to_read_is_a_fault_all_the_same(error):
    fault = _fault(_raised(error))
    assert fault.stage == "chunk"
    assert _storable(fault)["retryable"] is False


@pytest.mark.timeout(5)
def test_an_exception_that_is_its_own_cause_is_a_fault_all_the_same():
    error = ValueError("round and round")
    fault = _fault(_raised(error, error))
    assert fault.to_json()["cause"] == "ValueError: round and round"
