"""Sessions in a real database: what goals write into them, search, and what deleting one leaves."""

from __future__ import annotations

from types import SimpleNamespace
from uuid import UUID

import pytest
from rows import at_once, claim, complete, new_stage, run, submit

from loomq.errors import NotFoundError
from loomq.ids import uuid7
from loomq.services import sessions
from loomq.store import goals, stages
from loomq.store import sessions as store
from loomq.testing import wait_until

KEY = "sk-ant-api03-" + "Zq3x" * 24


@pytest.fixture
def loom(database):
    """As much of a Loom as sessions need."""
    return SimpleNamespace(database=database)


def _ask(database, session_id, instruction, answer=None, **goal):
    goal_id = submit(database, new_stage("a"), instruction=instruction, session_id=session_id, **goal)
    if answer is not None:
        _run(database, goal_id, answer)
    return goal_id


def _run(database, goal_id, answer, tokens=(3, 4)):
    usage = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
    return complete(database, claim(database, goal_id, "a"), answer, token_usage=usage)


def _said(loom, session_id):
    return [(message.role, message.content) for message in sessions.get_session(session_id, loom=loom).messages]


def test_a_session_keeps_what_was_asked_and_answered_and_what_it_cost(database, loom):
    session = sessions.create_session(loom=loom)
    first = _ask(database, session.session_id, "How  many\n words? " + "x" * 100)
    _run(database, submit(database, new_stage("a"), parent=(first, "a", -1)), "{}", tokens=(10, 0))
    _run(database, first, '{"n": 5}')
    _ask(database, session.session_id, "", context={"text": "and now"})

    found = sessions.get_session(session.session_id, loom=loom)
    assert found.session.title == ("How many words? " + "x" * 100)[:80]
    assert found.session.tokens == {"prompt_tokens": 13, "completion_tokens": 4}
    assert {str(status): count for status, count in found.session.goals.items()} == {"completed": 1, "processing": 1}
    assert [message.role for message in found.messages] == ["user", "assistant", "user"]
    assert (found.messages[1].content, found.messages[2].content) == ('{"n": 5}', '{"text": "and now"}')
    assert found.session.messages == 3
    last = sessions.get_session(session.session_id, limit=1, loom=loom)
    assert [message.content for message in last.messages] == ['{"text": "and now"}']
    assert [one.session_id for one in sessions.list_sessions(loom=loom)] == [session.session_id]
    assert sessions.find(loom, str(session.session_id)[:20]) == session.session_id


def test_a_failed_goal_answers_nothing_and_says_so_by_its_question_until_it_is_replayed(database, loom):
    session_id = uuid7()
    goal_id = _ask(database, session_id, "do it")
    failed = claim(database, goal_id, "a")
    stages.fail(database, failed.key, failed.token, error={"type": "E", "message": "no"}, retryable=False)
    (question,) = sessions.get_session(session_id, loom=loom).messages
    assert (str(question.status), question.error["message"]) == ("failed", "no")
    partial = _ask(database, session_id, "try it", on_failure="continue_partial")
    failed = claim(database, partial, "a")
    stages.fail(database, failed.key, failed.token, error={"type": "E", "message": "no"}, retryable=False)
    assert goals.state_of(database, partial) == "failed"
    database.call(
        "SELECT loomq_replay(%(goal)s, 'a', -1, NULL, 'me', %(request)s)", {"goal": goal_id, "request": uuid7()}
    )
    run(database, goal_id, "a")
    assert _said(loom, session_id) == [("user", "do it"), ("user", "try it"), ("assistant", '{"by": "a"}')]


def test_goals_that_join_and_leave_one_session_at_once_do_not_wait_for_each_other_for_ever(database, loom):
    session_id = uuid7()

    def ask(number):
        return lambda: [_ask(database, session_id, f"question {number}", "{}") for _ in range(5)]

    def rename():
        wait_until(lambda: store.rename(database, session_id, "another"), "the session")

    at_once(*(ask(number) for number in range(6)), rename)
    assert len(_said(loom, session_id)) == 60
    assert sessions.get_session(session_id, loom=loom).session.title == "another"


def test_deleting_a_session_keeps_its_goals_and_lets_running_ones_end(database, loom):
    session_id = uuid7()
    running, done = _ask(database, session_id, "runs"), _ask(database, session_id, "done", "{}")
    claimed = claim(database, running, "a")
    sessions.delete_session(session_id, loom=loom)
    assert complete(database, claimed).goal_ended
    assert {goals.state_of(database, goal_id) for goal_id in (running, done)} == {"done"}
    assert sessions.list_sessions(loom=loom) == []
    assert database.call("SELECT 1 FROM session_messages", {}) == []
    for missing in (
        lambda: sessions.get_session(session_id, loom=loom),
        lambda: sessions.rename_session(session_id, "x", loom=loom),
        lambda: sessions.delete_session(session_id, loom=loom),
        lambda: sessions.find(loom, str(session_id)),
    ):
        with pytest.raises(NotFoundError):
            missing()


def test_search_finds_words_phrases_and_titles_and_shows_them_without_secrets(database, loom):
    cats, dogs = sessions.create_session("About cats", loom=loom).session_id, uuid7()
    _ask(database, cats, f"Where do tigers sleep? The key is {KEY} and nothing else.", '{"text": "In tall grass."}')
    _ask(database, dogs, "Do dogs sleep at night?", '{"text": "Yes, and by day."}')

    def found(text: str) -> list[tuple[UUID, str | None]]:
        return [(hit.session_id, hit.role) for hit in sessions.search_sessions(text, loom=loom)]

    assert sorted(found("sleep")) == sorted([(cats, "user"), (dogs, "user")])
    assert found('"tall grass"') == [(cats, "assistant")]
    assert found("sleep -dogs") == [(cats, "user")]
    assert found("tigers or night") in ([(cats, "user"), (dogs, "user")], [(dogs, "user"), (cats, "user")])
    assert found("cats") == [(cats, None)]
    assert found("") == found("elephants") == []
    (hit,) = sessions.search_sessions("key nothing tigers", loom=loom)
    assert "**tigers**" in hit.snippet
    assert "Zq3xZq3x" not in hit.snippet
    shown = str(sessions.get_session(cats, loom=loom).to_json())
    assert "Zq3xZq3x" not in shown


def test_a_long_text_of_many_words_keeps_no_goal_from_ending(database, loom):
    words = " ".join(f"{number:x}\U00020000\U00020001" for number in range(60_000))
    session_id = uuid7()
    _ask(database, session_id, words, "{}")
    assert len(_said(loom, session_id)) == 2
