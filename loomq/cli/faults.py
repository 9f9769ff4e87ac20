"""How a command ends when something went wrong: the exit codes, and the text or JSON on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, TextIO

from loomq import errors
from loomq.cli.terminal import colored, printable

if TYPE_CHECKING:
    import click

OK = 0
WORK_FAILED = 1
USAGE = 2
ENVIRONMENT = 3
NOT_FOUND = 4
TIMED_OUT = 5
INTERRUPTED = 130
BROKEN_PIPE = 141

SCHEMA_VERSION = 1

# The nearest class upward decides. What submit refuses is the caller's mistake; a stage's failure is the work's.
EXIT_CODES: dict[type[BaseException], int] = {
    errors.LoomqError: WORK_FAILED,
    errors.ConfigError: USAGE,
    errors.NotSupportedYetError: USAGE,
    errors.ImportRefusedError: USAGE,
    errors.UnsafePathError: USAGE,
    errors.InlineValueError: USAGE,
    errors.PipelineValidationError: USAGE,
    errors.EnvironmentNotReadyError: ENVIRONMENT,
    OSError: ENVIRONMENT,
    errors.NotFoundError: NOT_FOUND,
    errors.DeadLetterError: USAGE,
    errors.GoalStateError: USAGE,
    errors.GoalFailedError: WORK_FAILED,
    errors.BackendError: WORK_FAILED,
    errors.PipelineStageError: WORK_FAILED,
    errors.WaitTimeoutError: TIMED_OUT,
    errors.LoomqSignal: WORK_FAILED,
    KeyboardInterrupt: INTERRUPTED,
}

# What to do about errors that do not say it themselves; the nearest class upward decides.
NEXT: dict[type[BaseException], str] = {
    errors.ConfigError: "check the files and settings: loomq doctor",
    errors.ImportRefusedError: "check the files: loomq validate",
    errors.EnvironmentNotReadyError: "look at everything: loomq doctor",
    errors.LLMError: "see what the providers offer: loomq doctor",
    OSError: "look at everything: loomq doctor; --debug shows where it happened",
}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, with what the user should know about it.

    Args:
        message: What was left behind.
        hint: The next command.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def exit_code(error: BaseException) -> int:
    """Give the exit code that an error ends the process with."""
    return next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), WORK_FAILED)


def describe(error: BaseException) -> dict[str, Any]:
    """Describe an error as the object that ``--json`` prints on stderr."""
    if isinstance(error, errors.LoomqError):
        found = error.to_json()
    else:
        message = getattr(error, "message", None) or str(error) or "interrupted"
        found = {"type": type(error).__name__, "message": message, "retryable": False}
        if hint := getattr(error, "hint", None):
            found["hint"] = hint
    if "hint" not in found and (following := _next(error)):
        found["hint"] = following
    if isinstance(error, errors.GoalFailedError):
        found |= {"goal_id": error.goal_id, "cause": error.error}
    if isinstance(error, errors.ConfigError) and error.problems:
        found["problems"] = [problem.to_json() for problem in error.problems]
    from loomq.redaction import redacted_json

    shown: dict[str, Any] = redacted_json({**found, "exit_code": exit_code(error)})
    return shown


def _next(error: BaseException) -> str | None:
    return next((NEXT[kind] for kind in type(error).__mro__ if kind in NEXT), None)


def report(error: BaseException, *, as_json: bool, stream: TextIO | None = None) -> int:
    """Say on stderr what went wrong and what to do about it, and give the exit code."""
    out = stream or sys.stderr
    found = describe(error)
    if as_json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, "error": found}, ensure_ascii=False), file=out)
        return exit_code(error)
    print(_headline(error, found, out), file=out)
    details = found["cause"] if isinstance(found.get("cause"), dict) else found  # a failed goal's cause is an error
    for label in ("where", "cause"):
        if detail := details.get(label):
            print(f"  {label}: {printable(str(detail))}", file=out)
    if found.get("hint"):
        print(_indented(printable(found["hint"])), file=out)
    return exit_code(error)


def report_usage(error: click.ClickException, *, as_json: bool) -> int:
    """Say what was wrong with the command line itself."""
    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context else "loomq --help"
    if as_json:
        found = {
            "type": type(error).__name__,
            "message": error.format_message(),
            "retryable": False,
            "hint": hint,
            "exit_code": USAGE,
        }
        print(json.dumps({"schema_version": SCHEMA_VERSION, "error": found}, ensure_ascii=False), file=sys.stderr)
    else:
        print(f"{colored('error:', 'red', sys.stderr)} {error.format_message()}", file=sys.stderr)
        print(f"  see: {hint}", file=sys.stderr)
    return USAGE


def _headline(error: BaseException, found: dict[str, Any], out: TextIO) -> str:
    if isinstance(error, KeyboardInterrupt):
        return f"{colored('interrupted:', 'yellow', out)} {found['message']}"
    known = isinstance(error, (errors.LoomqError, OSError))
    message = found["message"] if known else f"unexpected {found['type']}: {found['message']} (--debug shows where)"
    return f"{colored('error:', 'red', out)} {printable(message)}"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
