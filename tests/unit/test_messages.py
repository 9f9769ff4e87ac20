"""Messages: inert, frozen, JSON, and tolerant of what a newer version adds."""

from datetime import UTC

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from strategies import OBJECTS

from loomq.messages import (
    CheckpointState,
    ModelTier,
    OrchestratorGoal,
    TaskMessage,
    TaskPriority,
    TaskResult,
    TaskStatus,
    TokenUsage,
)

TIMES = st.datetimes(timezones=st.just(UTC))
TEXT = st.text(max_size=20)
COUNT = st.integers(0, 10**9)
MAYBE = st.none()

MESSAGES = {
    TokenUsage: {"prompt_tokens": COUNT, "completion_tokens": COUNT},
    TaskMessage: {
        "task_id": st.uuids(),
        "parent_task_id": MAYBE | st.uuids(),
        "worker_type": TEXT,
        "payload": OBJECTS,
        "model_tier": MAYBE | st.sampled_from(ModelTier),
        "priority": st.sampled_from(TaskPriority),
        "max_retries": COUNT,
        "retry_count": COUNT,
        "created_at": TIMES,
        "request_id": MAYBE | TEXT,
        "metadata": OBJECTS,
    },
    TaskResult: {
        "task_id": st.uuids(),
        "parent_task_id": MAYBE | st.uuids(),
        "worker_type": TEXT,
        "status": st.sampled_from(TaskStatus),
        "output": MAYBE | OBJECTS,
        "error": MAYBE | OBJECTS,
        "model_used": MAYBE | TEXT,
        "token_usage": st.builds(TokenUsage, prompt_tokens=COUNT, completion_tokens=COUNT),
        "processing_time_ms": COUNT,
        "completed_at": TIMES,
        "metadata": OBJECTS,
        "degraded_modes": st.lists(TEXT, max_size=3).map(tuple),
    },
    OrchestratorGoal: {
        "goal_id": st.uuids(),
        "instruction": TEXT,
        "pipeline": MAYBE | TEXT,
        "context": OBJECTS,
        "priority": st.sampled_from(TaskPriority),
        "request_id": MAYBE | TEXT,
        "idempotency_key": MAYBE | TEXT,
        "session_id": MAYBE | st.uuids(),
        "deadline": MAYBE | TIMES,
        "budget": MAYBE | OBJECTS,
        "created_at": TIMES,
    },
    CheckpointState: {
        "goal_id": st.uuids(),
        "original_instruction": TEXT,
        "executive_summary": TEXT,
        "completed_tasks": st.lists(OBJECTS, max_size=3).map(tuple),
        "pending_tasks": st.lists(OBJECTS, max_size=3).map(tuple),
        "open_issues": st.lists(TEXT, max_size=3).map(tuple),
        "decisions_made": st.lists(TEXT, max_size=3).map(tuple),
        "context_token_count": COUNT,
        "checkpoint_number": COUNT,
        "covers": COUNT,
        "until": COUNT,
        "created_at": TIMES,
    },
}
PLAIN = [
    TokenUsage(),
    TaskMessage(worker_type="w", payload={}),
    TaskResult(task_id="0192f1d0-0000-7000-8000-000000000000", worker_type="w", status="completed"),
    OrchestratorGoal(instruction="go"),
    CheckpointState(
        goal_id="0192f1d0-0000-7000-8000-000000000000", original_instruction="go", executive_summary="so far"
    ),
]
EVERY = st.one_of(*[st.builds(kind, **fields) for kind, fields in MESSAGES.items()])


def test_every_field_of_every_message_is_tried():
    assert {kind: set(fields) for kind, fields in MESSAGES.items()} == {
        kind: set(kind.model_fields) for kind in MESSAGES
    }


@settings(max_examples=60)
@given(EVERY)
def test_a_message_survives_json(message):
    kind = type(message)
    assert kind.model_validate_json(message.model_dump_json()) == message
    assert kind.model_validate(message.model_dump(mode="json")) == message


@settings(max_examples=60)
@given(EVERY, OBJECTS)
def test_unknown_keys_are_tolerated_on_read_and_never_written(message, added):
    kind = type(message)
    newer = {f"new_{key}": value for key, value in added.items()} | {"new_key": 1}
    read = kind.model_validate({**newer, **message.model_dump(mode="json")})
    assert read == message
    assert set(read.model_dump()) == set(kind.model_fields)


@pytest.mark.parametrize("message", PLAIN, ids=lambda message: type(message).__name__)
def test_a_message_is_frozen(message):
    for name in type(message).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(message, name, None)


def test_defaults_are_those_of_the_protocol():
    message = TaskMessage(worker_type="w", payload={})
    assert (message.model_tier, message.priority, message.max_retries) == (None, TaskPriority.NORMAL, 2)
    assert (message.task_id.version, message.created_at.tzinfo) == (7, UTC)
    assert TaskMessage(worker_type="w", payload={}).task_id != message.task_id
    goal = OrchestratorGoal(instruction="go")
    assert (goal.pipeline, goal.deadline, goal.context, goal.goal_id.version) == (None, None, {}, 7)


@pytest.mark.parametrize(
    "said",
    [
        {"worker_type": "w"},
        {"payload": {}},
        {"worker_type": "w", "payload": [1]},
        {"worker_type": "w", "payload": {}, "model_tier": "huge"},
        {"worker_type": "w", "payload": {}, "priority": "now"},
        {"worker_type": "w", "payload": {}, "task_id": "7"},
    ],
)
def test_what_is_no_message_is_refused(said):
    with pytest.raises(ValidationError):
        TaskMessage.model_validate(said)
