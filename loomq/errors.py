"""Everything loomq raises: faults, which are failures, and signals, which only steer.

Both families survive pickling, and one attribute, ``retryable``, says whether running the same work again
can help. The tree, checked against the classes by ``tests/architecture``::

    LoomqError
    ├── ConfigError
    │   └── UnknownNameError
    ├── NotSupportedYetError
    ├── EnvironmentNotReadyError
    │   ├── DatabaseUnavailableError
    │   ├── BrokerUnavailableError
    │   ├── SubmitUnavailableError
    │   ├── SchemaOutdatedError
    │   ├── SchemaNewerError
    │   └── EmbeddedServiceError
    ├── NotFoundError
    │   └── GoalNotFoundError
    ├── DeadLetterError
    ├── GoalStateError
    ├── GoalFailedError
    │   └── GoalCancelledError
    ├── WaitTimeoutError
    ├── ImportRefusedError
    ├── UnsafePathError
    ├── InlineValueError
    │   └── PayloadTooLargeError
    ├── BackendError
    │   ├── TransientBackendError
    │   ├── KnowledgeError
    │   └── LLMError
    │       ├── LLMRateLimitError
    │       ├── LLMUnavailableError
    │       ├── LLMAnswerError
    │       ├── LLMRefusedError
    │       └── BudgetExceededError
    └── PipelineStageError
        ├── PipelineTimeoutError
        ├── PipelineValidationError
        ├── PipelineWorkerError
        ├── PipelineMappingError
        └── InvalidPlanError
    LoomqSignal
    ├── DuplicateDelivery
    ├── LeaseLost
    └── SoftDeadline
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class _Picklable(Exception):
    """Pickle by state and not by constructor, so that keyword arguments survive."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args, dict(self.__dict__)))


class LoomqError(_Picklable):
    """Anything that loomq says went wrong.

    Args:
        message: What happened, in one sentence that a user can act on.
        hint: The way out, as the next thing to do or type.
    """

    retryable = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def to_json(self) -> dict[str, Any]:
        """Describe the error as the JSON object that results, dead letters and ``--json`` carry."""
        found: dict[str, Any] = {"type": type(self).__name__, "message": self.message, "retryable": self.retryable}
        if self.hint:
            found["hint"] = self.hint
        return found


class ConfigError(LoomqError):
    """A YAML file or a setting that cannot be used.

    Args:
        problems: Every ``loomq.config.Problem`` found, in the order of the files.
    """

    def __init__(self, message: str, *, hint: str | None = None, problems: Sequence[Any] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class UnknownNameError(ConfigError):
    """A worker, pipeline or queue that no configuration knows."""


class NotSupportedYetError(LoomqError):
    """A thing that the formats name and this version does not do yet."""


class EnvironmentNotReadyError(LoomqError):
    """A service that loomq needs is missing, out of reach or not set up."""

    retryable = True


class DatabaseUnavailableError(EnvironmentNotReadyError):
    """Postgres does not answer."""


class BrokerUnavailableError(EnvironmentNotReadyError):
    """The broker does not answer."""


class SubmitUnavailableError(EnvironmentNotReadyError):
    """A goal could not be written down, so it was not accepted."""


class SchemaOutdatedError(EnvironmentNotReadyError):
    """The database has not been migrated to this version's schema."""

    retryable = False


class SchemaNewerError(EnvironmentNotReadyError):
    """The database has been migrated by a version newer than this one."""

    retryable = False


class EmbeddedServiceError(EnvironmentNotReadyError):
    """A private Postgres or Redis could not be started."""

    retryable = False


class NotFoundError(LoomqError):
    """Nothing has the id that was asked for."""


class GoalNotFoundError(NotFoundError):
    """No goal has that id."""


class GoalStateError(LoomqError):
    """A goal is not in the state that the request needs."""


class DeadLetterError(LoomqError):
    """A dead letter that cannot be replayed, edited or dropped any more, or never could."""


class GoalFailedError(LoomqError):
    """A goal ended without its result.

    Args:
        error: The JSON form of the fault that ended it.
        output: What its finished stages gave, with ``_timeline``.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        goal_id: str = "",
        error: Mapping[str, Any] | None = None,
        output: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.goal_id = goal_id
        self.error = dict(error or {})
        self.output = dict(output or {})


class GoalCancelledError(GoalFailedError):
    """A goal was cancelled before its end."""


class WaitTimeoutError(LoomqError):
    """The caller's patience ended before the goal did; the goal goes on."""

    retryable = True


class ImportRefusedError(LoomqError):
    """A dotted name that is outside the allowed prefixes, or that is not what it should be."""


class UnsafePathError(LoomqError):
    """A file name that would leave its workspace."""


class InlineValueError(LoomqError):
    """An input or output that cannot be stored as JSON."""


class PayloadTooLargeError(InlineValueError):
    """An input or output too large to be kept inline."""


class BackendError(LoomqError):
    """A processing backend failed; ``__cause__`` keeps what it raised.

    Raise it (or a subclass) from a backend to say in the task's result what went wrong.
    """


class TransientBackendError(BackendError):
    """A backend's failure that may pass: the stage is retried while it has retries left."""

    retryable = True


class KnowledgeError(BackendError):
    """A knowledge source, a silo or a tool cannot be loaded."""


class LLMError(BackendError):
    """A language model's provider did not accept the call, or its reply cannot be used; repeating would not help.

    Args:
        retry_after_s: Seconds that the provider asked to wait before the next call.
        kind: What went wrong, in one word that programs may read: ``auth``, ``quota``, ``rate_limit``, ``overloaded``,
            ``server``, ``timeout``, ``connection``, ``context_overflow``, ``content_filter``, ``refusal``,
            ``malformed``, ``truncated``, ``structured_output``, ``request`` or ``budget``.

    ``tokens`` are those of the prompt and of the answer, if the provider has charged them all the same.
    """

    kind = "request"
    tokens: tuple[int, int] | None = None

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after_s: float | None = None, kind: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
        if kind is not None:
            self.kind = kind

    def to_json(self) -> dict[str, Any]:
        """Describe the error, with its kind."""
        return {**super().to_json(), "kind": self.kind}


class LLMRateLimitError(LLMError):
    """The provider takes no more calls for now."""

    retryable = True
    kind = "rate_limit"


class LLMUnavailableError(LLMError):
    """The provider is out of reach, overloaded or broken for now."""

    retryable = True
    kind = "server"


class LLMAnswerError(LLMError):
    """The reply is not what was asked for in form; another one may be."""

    retryable = True
    kind = "malformed"


class LLMRefusedError(LLMError):
    """The model, or a filter around it, declined to answer."""

    kind = "refusal"


class BudgetExceededError(LLMError):
    """The next call might cost more than what is left of the goal's budget, so it was not made."""

    kind = "budget"


class PipelineStageError(LoomqError):
    """A stage failed.

    Args:
        stage: The stage's name.

    ``detail`` adds to the error's JSON form: what was raised at the root, and where.
    """

    def __init__(
        self, message: str, *, stage: str = "", hint: str | None = None, retryable: bool | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.stage = stage
        self.detail: dict[str, Any] = {}
        if retryable is not None:
            self.retryable = retryable

    def to_json(self) -> dict[str, Any]:
        """Describe the error, with its stage."""
        return {**super().to_json(), "stage": self.stage, **getattr(self, "detail", {})}


class PipelineTimeoutError(PipelineStageError):
    """A stage ran longer than its ``timeout_seconds``."""

    retryable = True


class PipelineValidationError(PipelineStageError):
    """A stage's input or output breaks its contract."""


class PipelineWorkerError(PipelineStageError):
    """The worker of a stage raised."""


class PipelineMappingError(PipelineStageError):
    """An ``input_mapping`` path names something that is not there."""


class InvalidPlanError(PipelineStageError):
    """An orchestrator's model gave a plan that cannot be used, also when it was told what is wrong."""


class LoomqSignal(_Picklable):
    """A turn in the flow that is no failure; it never reaches a user."""

    retryable = False


class DuplicateDelivery(LoomqSignal):
    """A message whose stage is already claimed, done or not ready."""


class LeaseLost(LoomqSignal):
    """The stage was taken back while it ran; its late result is refused."""


class SoftDeadline(LoomqSignal):
    """The stage's time is up: raised inside the running code."""
