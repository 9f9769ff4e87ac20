"""What a worker raised, as the fault of its stage: a type users know, where it happened, and whether to retry."""

from __future__ import annotations

import copy
import random
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

from loomq.errors import (
    LeaseLost,
    LoomqError,
    PipelineStageError,
    PipelineTimeoutError,
    PipelineWorkerError,
    SoftDeadline,
)
from loomq.inline import storable_text
from loomq.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Callable

    from loomq.runs.plan import StagePlan
    from loomq.workers.runtime import WorkerRuntime

T = TypeVar("T")


def as_stage_error(error: Exception, stage: str, worker: str, timeout_s: float) -> PipelineStageError:
    """Turn whatever ended a stage into a ``PipelineStageError`` that names the stage and keeps the cause.

    Args:
        error: What was raised.
        timeout_s: The stage's soft deadline, for the text.
    """
    if isinstance(error, SoftDeadline):
        return PipelineTimeoutError(
            f"stage {stage} ran longer than its {timeout_s:g} s",
            stage=stage,
            hint="give it more with timeout_seconds, or less to do",
        )
    hint = getattr(error, "hint", None)
    if isinstance(error, PipelineStageError):
        found = copy.copy(error)  # not the same object: it is raised with the original as its cause
        text, found.stage = _text(error), getattr(error, "stage", "") or stage
        found.message = text if found.stage in text else f"stage {found.stage}: {text}"
        found.hint = _safe(hint) if hint else None
        found.args = (found.message,)
        return found
    retryable = bool(getattr(error, "retryable", isinstance(error, ConnectionError | TimeoutError)))
    message = _text(error) if isinstance(error, LoomqError) else f"{type(error).__name__}: {_text(error)}"
    fault = PipelineWorkerError(
        _safe(f"worker {worker} failed in stage {stage}: {message}"),
        stage=stage,
        hint=_safe(hint) if isinstance(hint, str) else None,
        retryable=retryable,
    )
    fault.detail = _where(error)
    return fault


class Raised(Exception):  # noqa: N818  (what carries an error is none)
    """What a worker's code raised, apart from what our own calls raise."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def guarded(work: Callable[[], T], runtime: WorkerRuntime) -> T:
    """Do what runs a worker's code, whatever that raises.

    Raises:
        Raised: With what it was.
        LeaseLost: The stage is no longer wanted.
    """
    try:
        return work()
    except LeaseLost:
        raise
    except (SystemExit, KeyboardInterrupt) as error:
        # In a child of a pool it is how Celery ends it; a thread must not take its slot along.
        if runtime.has_own_process:
            raise
        raise Raised(RuntimeError(f"the worker's code called for the end of its process: {error!r}")) from error
    except Exception as error:
        raise Raised(error) from error
    except BaseException as error:  # asyncio's CancelledError, and what users derive so
        raise Raised(RuntimeError(f"{type(error).__name__}: {error}")) from error


def backoff_s(stage: StagePlan, attempt: int) -> float:
    """Give the pause before the next attempt: exponential from ``initial`` to ``max``; jitter takes off up to half."""
    backoff = stage.worker.retry_backoff
    longest = min(backoff.initial * 2 ** min(attempt - 1, 64), backoff.max)
    return random.uniform(longest / 2, longest) if backoff.jitter else longest  # noqa: S311


def _text(error: BaseException) -> str:
    """Say what an exception says; a user's own may have no message, or fail to print itself."""
    try:
        return _safe(str(getattr(error, "message", None) or error))
    except Exception:  # noqa: BLE001
        return f"{type(error).__name__}, which cannot be printed"


def _safe(text: str) -> str:
    """Make a text fit to be kept; it is redacted before it is cut, or half a key could stand at the end."""
    return storable_text(redacted(text))


def _where(error: BaseException) -> dict[str, Any]:
    """Say what was raised at the root, and where."""
    root, seen = error, {id(error)}
    while root.__cause__ is not None and id(root.__cause__) not in seen:  # ``raise error from error`` is a circle
        root = root.__cause__
        seen.add(id(root))
    frames = traceback.extract_tb(root.__traceback__)
    found: dict[str, Any] = {"cause": _safe(f"{type(root).__name__}: {_text(root)}")}
    if frames:
        found["where"] = f"{frames[-1].filename}:{frames[-1].lineno}"
    return found
