"""Exit codes and error texts: one place, and every error has its code."""

from __future__ import annotations

import io
import json

import pytest

from loomq import errors
from loomq.cli import faults

CODES = {
    "LoomqError": 1,
    "ConfigError": 2,
    "UnknownNameError": 2,
    "NotSupportedYetError": 2,
    "EnvironmentNotReadyError": 3,
    "DatabaseUnavailableError": 3,
    "BrokerUnavailableError": 3,
    "SubmitUnavailableError": 3,
    "SchemaNewerError": 3,
    "SchemaOutdatedError": 3,
    "EmbeddedServiceError": 3,
    "GoalStateError": 2,
    "NotFoundError": 4,
    "GoalNotFoundError": 4,
    "DeadLetterError": 2,
    "GoalFailedError": 1,
    "GoalCancelledError": 1,
    "WaitTimeoutError": 5,
    "ImportRefusedError": 2,
    "UnsafePathError": 2,
    "InlineValueError": 2,
    "PayloadTooLargeError": 2,
    "BackendError": 1,
    "TransientBackendError": 1,
    "LLMError": 1,
    "LLMRateLimitError": 1,
    "LLMUnavailableError": 1,
    "LLMAnswerError": 1,
    "LLMRefusedError": 1,
    "KnowledgeError": 1,
    "BudgetExceededError": 1,
    "PipelineStageError": 1,
    "PipelineTimeoutError": 1,
    "PipelineValidationError": 2,
    "PipelineWorkerError": 1,
    "PipelineMappingError": 1,
    "InvalidPlanError": 1,
}


def faults_of_the_house() -> dict[str, type[errors.LoomqError]]:
    return {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.LoomqError)
    }


def test_every_fault_of_the_house_has_its_exit_code():
    assert {name: faults.exit_code(kind("told")) for name, kind in faults_of_the_house().items()} == CODES


def test_only_the_bare_base_class_falls_back_to_the_code_of_failed_work():
    covered = [kind for kind in faults.EXIT_CODES if kind is not errors.LoomqError]
    lost = [name for name, kind in faults_of_the_house().items() if not issubclass(kind, tuple(covered))]
    assert lost == ["LoomqError"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (faults.Interrupted("left"), 130),
        (PermissionError(13, "no"), 3),
        (ValueError("x"), 1),
    ],
)
def test_errors_from_outside_the_house_have_codes_too(error, code):
    assert faults.exit_code(error) == code


def told(error: BaseException, *, as_json: bool = False) -> str:
    out = io.StringIO()
    faults.report(error, as_json=as_json, stream=out)
    return out.getvalue()


def test_an_error_is_one_line_and_its_hint():
    text = told(errors.BrokerUnavailableError("the broker is away", hint="start it"))
    assert text == "error: the broker is away\n  start it\n"


def test_a_failed_goal_names_the_place_and_the_cause():
    failed = errors.GoalFailedError(
        "goal 1 failed: stage a broke",
        hint="all about it: loomq show 1",
        goal_id="1",
        error={"type": "PipelineWorkerError", "where": "work.py:7", "cause": "ValueError: boom"},
    )
    assert told(failed).splitlines() == [
        "error: goal 1 failed: stage a broke",
        "  where: work.py:7",
        "  cause: ValueError: boom",
        "  all about it: loomq show 1",
    ]
    described = json.loads(told(failed, as_json=True))["error"]
    assert (described["goal_id"], described["exit_code"], described["cause"]["where"]) == ("1", 1, "work.py:7")


def test_an_error_as_json_is_one_object_with_its_exit_code():
    found = json.loads(told(errors.UnknownNameError("no such thing", hint="look"), as_json=True))
    assert found == {
        "schema_version": 1,
        "error": {
            "type": "UnknownNameError",
            "message": "no such thing",
            "retryable": False,
            "hint": "look",
            "exit_code": 2,
        },
    }


def test_an_unexpected_error_says_how_to_see_where():
    assert told(ZeroDivisionError("division by zero")) == (
        "error: unexpected ZeroDivisionError: division by zero (--debug shows where)\n"
    )


def test_an_interruption_without_words_is_called_one():
    assert told(KeyboardInterrupt()) == "interrupted: interrupted\n"


def test_control_characters_of_strangers_do_not_reach_the_terminal():
    assert "\x1b" not in told(errors.BackendError("\x1b[2Jgone"))


@pytest.mark.parametrize(
    "kind", [errors.ConfigError, errors.DatabaseUnavailableError, errors.LLMError, PermissionError]
)
def test_an_error_that_does_not_say_what_to_do_next_gets_it_said(kind):
    lines = told(kind("it went wrong")).splitlines()
    assert len(lines) == 2
    assert "loomq doctor" in lines[1]
    own = errors.ConfigError("it went wrong", hint="do that")
    assert told(own).splitlines()[1:] == ["  do that"]


def test_a_failed_stage_names_the_place_and_the_cause_by_itself_too():
    fault = errors.PipelineWorkerError("worker w failed", stage="s", hint="look at it")
    fault.detail = {"where": "work.py:7", "cause": "ValueError: boom"}
    assert told(fault).splitlines()[1:] == ["  where: work.py:7", "  cause: ValueError: boom", "  look at it"]
