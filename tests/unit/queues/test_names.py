"""Names on the broker."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import NAMES

from loomq.messages import TaskPriority
from loomq.queues.names import (
    StageMessage,
    broker_priorities,
    broker_priority,
    level,
    level_of_broker,
    priority_named,
    queue_name,
    task_name,
    urgency,
    worker_of,
)

GOAL = UUID("01a1fc13-507f-73bf-8a62-86fa4e5e8b64")
MESSAGES = st.builds(StageMessage, st.uuids(), NAMES, st.integers(-1, 10**6))


@given(MESSAGES)
def test_a_stages_message_survives_the_broker(message):
    assert StageMessage.parse(message.args) == message
    assert StageMessage.parse(list(message.args)) == message


@given(MESSAGES, MESSAGES)
def test_the_id_of_a_message_is_its_stages_own(first, second):
    assert (first.id == second.id) == (first == second)


def test_an_id_names_the_item_only_if_there_is_one():
    assert StageMessage(GOAL, "chunk").id == f"{GOAL}:chunk"
    assert StageMessage(GOAL, "chunk", 0).id == f"{GOAL}:chunk:0"


@pytest.mark.parametrize(
    "args",
    [
        None,
        (),
        "abc",
        {"goal": 1},
        7,
        (str(GOAL), "a"),
        (str(GOAL), "a", -1, 0),
        (str(GOAL), 7, -1),
        (str(GOAL), "a", "0"),
        (str(GOAL), "a", None),
        (str(GOAL), "a", 1.0),
        ("goal", "a", -1),
        (None, "a", -1),
        (7, "a", -1),
        (["x"], "a", -1),
    ],
    ids=repr,
)
def test_what_is_no_stages_message_is_refused(args):
    with pytest.raises(ValueError, match=r"carries goal, stage and item|badly formed"):
        StageMessage.parse(args)


def test_a_refusal_does_not_repeat_megabytes():
    with pytest.raises(ValueError, match="carries") as caught:
        StageMessage.parse(("x" * 10**6,))
    assert len(str(caught.value)) < 300


def test_queues_and_tasks_are_named_after_their_worker():
    assert queue_name("chunk", "local") == "chunk.local"
    assert task_name("chunk") == "loomq.worker.chunk"
    assert worker_of("loomq.worker.chunk") == "chunk"
    for name in (None, "", "celery.chord", "loomq.sweep", "my.loomq.worker.x"):
        assert worker_of(name) is None


def test_levels_follow_urgency():
    assert [level(name) for name in ("low", "normal", "high", "critical")] == [0, 1, 2, 3]
    assert [priority_named(level(name)) for name in TaskPriority] == list(TaskPriority)
    with pytest.raises(ValueError, match="urgent"):
        level("urgent")


@pytest.mark.parametrize(
    ("low_is_urgent", "numbers"), [(True, [9, 8, 7, 6, 4, 3, 1, 0]), (False, [0, 1, 2, 3, 5, 6, 8, 9])]
)
def test_each_broker_counts_its_own_way(low_is_urgent, numbers):
    assert broker_priorities(low_is_urgent=low_is_urgent) == numbers
    assert [broker_priority(each, low_is_urgent=low_is_urgent) for each in range(8)] == numbers
    assert [level_of_broker(number, low_is_urgent=low_is_urgent) for number in numbers] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_first_of_a_goal_goes_before_what_is_behind_and_after_what_is_more_urgent():
    order = [urgency(level, first=first) for level in range(4) for first in (False, True)]
    assert order == sorted(set(order)) == list(range(8))


@given(st.integers(-5, 300), st.booleans())
def test_any_number_that_a_user_writes_means_the_nearest_level(number, low_is_urgent):
    found = level_of_broker(number, low_is_urgent=low_is_urgent)
    meant = 3 * (3 - found if low_is_urgent else found)
    assert abs(meant - number) == min(abs(step - number) for step in (0, 3, 6, 9))
