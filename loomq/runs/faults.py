"""What a worker raised, as the fault of its stage: a type users know, where it happened, and whether to retry."""

from __future__ import annotations

import traceback
from typing import Any

from loomq.errors import (
    LoomqError,
    PipelineStageError,
    PipelineTimeoutError,
    PipelineWorkerError,
    SoftDeadline,
)
from loomq.inline import storable_text


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
    if isinstance(error, PipelineStageError):
        found = type(error)(
            storable_text(error.message), stage=error.stage or stage, hint=_hint(error), retryable=error.retryable
        )
        found.detail = error.detail
        return found
    retryable = bool(getattr(error, "retryable", isinstance(error, ConnectionError | TimeoutError)))
    message = error.message if isinstance(error, LoomqError) else f"{type(error).__name__}: {error}"
    hint = _hint(error) if isinstance(error, LoomqError) else None
    fault = PipelineWorkerError(
        storable_text(f"worker {worker} failed in stage {stage}: {message}"),
        stage=stage,
        hint=hint,
        retryable=retryable,
    )
    fault.detail = _where(error)
    return fault


def _hint(error: LoomqError) -> str | None:
    return storable_text(error.hint) if error.hint else None


def _where(error: BaseException) -> dict[str, Any]:
    """Say what was raised at the root, and where."""
    root, seen = error, {id(error)}
    while root.__cause__ is not None and id(root.__cause__) not in seen:  # ``raise error from error`` is a circle
        root = root.__cause__
        seen.add(id(root))
    frames = traceback.extract_tb(root.__traceback__)
    found: dict[str, Any] = {"cause": storable_text(f"{type(root).__name__}: {root}")}
    if frames:
        found["where"] = f"{frames[-1].filename}:{frames[-1].lineno}"
    return found
