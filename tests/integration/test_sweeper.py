"""What the sweeper finds and what it leaves alone, over real rows and real queues; time goes faster here."""

import logging

import pytest
from rows import alter, claim

from loomq.errors import BrokerUnavailableError, DatabaseUnavailableError
from loomq.ids import uuid7
from loomq.messages import OrchestratorGoal
from loomq.orchestrator.tasks import Subtask
from loomq.queues.names import broker_priority, urgency
from loomq.runs import sweep
from loomq.runs.freeze import freeze
from loomq.runs.snapshot import parse, snapshot_of_round
from loomq.runs.sweep import LEADERSHIP
from loomq.services.submit import submit_task
from loomq.store import goals, nodes, rounds, stages
from loomq.store.survey import survey
from loomq.testing import wait_until

QUEUE = "echo.local"


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(sweep, "_EMPTY_FOR_S", 0.2)
    monkeypatch.setattr(sweep, "_SENT_WITHIN_S", 0.1)


@pytest.fixture
def shop(project):
    project.worker("echo")
    return project


@pytest.fixture
def sweeper(shop, loom):
    found = _sweeper(loom)
    found.sweep()  # sees the broker's mark
    return found


def _sweeper(loom):
    return loom.sweeper(uuid7())


def _submit(loom, **options):
    return submit_task("echo", {}, loom=loom, **options).goal_id


def _on_broker(loom, work):
    return loom.app.broker.run(lambda producer: work(producer.channel.client, producer.channel))


def _list(loom, level=1):
    key = broker_priority(urgency(level), low_is_urgent=True)
    return _on_broker(loom, lambda _, channel: channel._q_for_pri(QUEUE, key))


def _length(loom):
    return sum(loom.app.broker.lengths([QUEUE])[QUEUE].values())


def _lose(loom, level=1):
    """Take one message off its queue, as a node does that dies before it claims."""
    key = _list(loom, level)
    assert _on_broker(loom, lambda client, _: client.rpop(key)) is not None


def _state(loom, goal_id):
    return goals.stages_of(loom.database, goal_id)[0].state


def _swept(sweeper, what):
    """Sweep until something was done."""
    return wait_until(lambda: getattr(found := sweeper.sweep(), what) and found, what, 10)


def _age(loom, goal_id, seconds):
    alter(loom.database, goal_id, "echo", f"published_at = clock_timestamp() - make_interval(secs => {seconds})")


def test_the_only_message_of_an_empty_queue_is_found_lost_and_sent_again(loom, sweeper):
    goal_id = _submit(loom)
    _lose(loom)
    found = _swept(sweeper, "lost")
    assert (found.lost, found.topped_up) == (1, 1)
    assert (_state(loom, goal_id), _length(loom)) == ("published", 1)
    assert goals.stages_of(loom.database, goal_id)[0].reason == "message lost"


def test_a_message_on_its_queue_is_never_sent_again_however_long_it_waits(loom, sweeper):
    goal_id = _submit(loom)
    _age(loom, goal_id, 3600)
    for _ in range(20):
        found = sweeper.sweep()
        assert (found.lost, found.topped_up) == (0, 0)
    assert _length(loom) == 1


def test_what_was_sent_after_the_queue_was_seen_empty_is_not_lost(loom, sweeper):
    first = _submit(loom)
    _age(loom, first, 2)
    _lose(loom)
    sweeper.sweep()
    second = _submit(loom)
    _swept(sweeper, "lost")
    assert {_state(loom, goal_id) for goal_id in (first, second)} == {"published"}
    assert _length(loom) == 2


def test_a_lost_message_is_found_though_more_urgent_ones_always_wait(loom, sweeper):
    goal_id = _submit(loom, priority="low")
    _submit(loom, priority="high")
    _lose(loom, 0)
    assert _swept(sweeper, "lost").lost == 1
    assert (_state(loom, goal_id), _length(loom)) == ("published", 2)


def test_a_lost_message_is_found_though_the_queue_is_never_empty(loom, sweeper):
    early = _submit(loom)
    _lose(loom)
    _age(loom, early, 60)
    late = _submit(loom)
    _submit(loom)
    claim(loom.database, late, "echo")
    found = sweeper.sweep()
    assert (found.lost, found.topped_up) == (1, 1)
    assert (_state(loom, early), _state(loom, late)) == ("published", "claimed")


def test_a_broker_that_lost_everything_has_it_again_after_one_pass(loom, sweeper):
    found = [_submit(loom) for _ in range(5)]
    claim(loom.database, found[0], "echo")
    _on_broker(loom, lambda client, _: client.flushdb())
    done = sweeper.sweep()
    assert (done.lost, done.topped_up) == (4, 4)
    assert _length(loom) == 4
    assert sweeper.sweep().lost == 0


def test_the_first_sweeper_of_all_sends_only_what_is_not_there(shop, loom):
    _submit(loom)
    assert (_sweeper(loom).sweep().lost, _length(loom)) == (0, 1)


def test_the_first_sweeper_of_all_finds_what_was_lost_before_it(shop, loom):
    goal_id = _submit(loom)
    _age(loom, goal_id, 2)
    _on_broker(loom, lambda client, _: client.flushdb())
    found = _sweeper(loom).sweep()
    assert (found.lost, found.topped_up, _length(loom)) == (1, 1, 1)


def test_a_pass_does_what_it_can_without_the_broker(shop, loom, sweeper):
    goal_id = _submit(loom)
    claim(loom.database, goal_id, "echo", lease_s=0)
    cut_off = shop.loom(broker_url="redis://127.0.0.1:1/0")
    nodes.step_down(loom.database, [LEADERSHIP], sweeper._holder)
    found = wait_until(lambda: (done := _sweeper(cut_off).sweep()).taken_back and done, "the stage")
    assert found.faults
    assert _state(loom, goal_id) == "ready"
    cut_off.close()


def test_one_of_two_sweeps_until_it_steps_down(shop, loom, sweeper):
    other = _sweeper(loom)
    assert other.sweep() is None
    sweeper.step_down()
    assert other.sweep() is not None
    assert sweeper.sweep() is None


def test_a_step_that_fails_does_not_keep_the_others(loom, sweeper, monkeypatch, caplog):
    late = _submit(loom)
    loom.database.call("UPDATE goals SET deadline = clock_timestamp() - interval '1 second'", {})
    lost = _submit(loom)
    _lose(loom)

    def fail(*_):
        raise ValueError("a bug")

    with monkeypatch.context() as patch, caplog.at_level(logging.CRITICAL):
        patch.setattr(goals, "end_overdue", fail)
        found = sweeper.sweep()
        assert found.faults == ["ValueError: a bug"]
        _on_broker(loom, lambda client, _: client.flushdb())
        assert sweeper.sweep().lost == 2
    assert sweeper.sweep().overdue == 1
    assert (_state(loom, late), _state(loom, lost)) == ("cancelled", "published")


def test_a_pass_takes_back_in_small_transactions_until_its_time_is_over(loom, sweeper, monkeypatch):
    monkeypatch.setattr(sweep, "_AT_ONCE", 2)
    found = [_submit(loom) for _ in range(5)]
    for goal_id in found:
        claim(loom.database, goal_id, "echo", lease_s=0)
    taken = []
    original = stages.take_back

    def take_back(*args, **options):
        taken.append(options["limit"])
        if len(taken) == 2:
            sweeper._pass_ends = 0.0
        return original(*args, **options)

    monkeypatch.setattr(stages, "take_back", take_back)
    wait_until(lambda: survey(loom.database, 0).uptime_s > loom.settings.lease_seconds, "the server's grace to end")
    first = sweeper.sweep()
    assert (first.taken_back, taken) == (4, [2, 2])
    assert sweeper.sweep().taken_back == 1


def test_a_long_pass_renews_its_leadership_and_stops_when_another_has_it(loom, sweeper):
    sweeper._pass_ends = float("inf")
    sweeper._led_at = 0.0
    before = nodes.leader(loom.database, LEADERSHIP).renewed_at
    assert sweeper._may_go_on()
    assert nodes.leader(loom.database, LEADERSHIP).renewed_at > before
    sweeper.step_down()
    assert _sweeper(loom).sweep() is not None
    sweeper._led_at = 0.0
    assert not sweeper._may_go_on()


def test_the_cause_is_told_when_a_service_is_away(shop, loom, sweeper):
    cut_off = shop.loom(database_url="postgresql://127.0.0.1:1/none")
    with pytest.raises(DatabaseUnavailableError):
        cut_off.sweeper(uuid7()).sweep()
    cut_off.close()
    away = shop.loom(broker_url="redis://127.0.0.1:1/0")
    with pytest.raises(BrokerUnavailableError):
        away.app.broker.look([])
    away.close()


def test_a_round_of_which_nothing_is_under_way_goes_on(shop, loom):
    shop.write("pipelines/boss.yaml", "name: boss\nkind: orchestrator\nmax_concurrent_tasks: 1\n")
    whole = parse(freeze(loom.catalog, "boss", allow=loom.settings.import_allow))
    tasks = [Subtask("a", "echo", {}), Subtask("b", "echo", {}), Subtask("c", "echo", {}, depends_on=("a",))]
    goal = OrchestratorGoal(instruction="", pipeline="boss", context={task.name: {} for task in tasks})
    round_id = loom.submitter.submit(goal, body=snapshot_of_round("boss", tasks, 1, whole)).goal_id
    held = claim(loom.database, round_id, "a")
    stages.complete(loom.database, held.key, held.token, output="{}")  # and then its process died

    assert rounds.stuck(loom.database) == [round_id]
    assert _sweeper(loom).sweep().windows == 1
    found = {task.name: task.state for task in rounds.tasks(loom.database, [round_id])}
    assert found == {"a": "done", "b": "published", "c": "waiting"}
    assert rounds.stuck(loom.database) == []
