"""The shared buckets on a real Redis: what they give, judged by another limiter, and what they do under faults."""

from __future__ import annotations

import os
import subprocess
import time
from itertools import count
from uuid import uuid4

import pytest
import redis
import token_bucket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import at_once

from loomq.embedded.binaries import redis_server
from loomq.embedded.paths import Account
from loomq.errors import BrokerUnavailableError
from loomq.queues.limits import BUCKETS, Bucket, Limiter, Limits, WorkerLimit
from loomq.queues.routing import Router
from loomq.queues.spec import TierLimit
from loomq.testing import wait_until

NUMBERS = count()
EASY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def client(loom):
    """The broker's own client, as the limiter has it."""
    return loom.app.broker.run(lambda producer: producer.channel.client)


def _limiter(loom, *, workers=(), **tiers):
    limits = Limits(
        Router({"w": "local", "other": "local", "free": "standard"}),
        {name: WorkerLimit(rate=rate) for name, rate in workers},
        {tier: TierLimit.model_validate(said) for tier, said in tiers.items()},
    )
    return Limiter(loom.app.broker, lambda: limits)


def _at(client, op, now_us, bucket, cost=1):
    """Run the script at a given time."""
    arguments = [op, f"{now_us:.0f}", f"{1_000_000 / bucket.per_s:.6f}", f"{bucket.size:g}", cost]
    return BUCKETS.run(client, [bucket.key], arguments)


# Judged by another limiter


class Clock:
    """Time for the other limiter, in seconds."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@EASY
@given(
    per_s=st.sampled_from([0.1, 1.0, 7.0, 20.0, 333.0]),
    size=st.integers(1, 40),
    pauses_ms=st.lists(st.integers(0, 4000), min_size=1, max_size=60),
    cost=st.integers(1, 5),
)
def test_a_token_bucket_of_another_hand_gives_and_refuses_the_same(client, monkeypatch, per_s, size, pauses_ms, cost):
    cost = min(cost, size)
    clock = Clock()
    monkeypatch.setattr("token_bucket.storage.time", clock)
    judge = token_bucket.Limiter(per_s, size, token_bucket.MemoryStorage())
    bucket = Bucket(f"judged:{next(NUMBERS)}", "", per_s, size)
    begun_us = 1_800_000_000_000_000
    given_units = 0
    for pause_ms in pauses_ms:
        clock.now += pause_ms / 1000
        judge._storage.replenish("k", per_s, size)
        level = judge._storage.get_token_count("k")
        granted, second, *_ = _at(client, "take", begun_us + clock.now * 1e6, bucket, cost)
        if abs(level - cost) < 1e-3:  # on the edge both are right
            if granted:
                judge._storage._buckets["k"][0] -= cost
            given_units += cost * granted
            continue
        assert bool(granted) == judge.consume("k", cost), (level, second)
        given_units += cost * granted
        if not granted:
            assert second / 1e6 == pytest.approx((cost - level) / per_s, abs=1e-3)
    assert given_units <= per_s * clock.now + size + 1e-6


@EASY
@given(pauses_ms=st.lists(st.integers(0, 500), min_size=1, max_size=40), size=st.integers(1, 8))
def test_who_comes_again_when_told_gets_what_he_asked_for(client, pauses_ms, size):
    bucket = Bucket(f"again:{next(NUMBERS)}", "", 5.0, size)
    now_us = 1_800_000_000_000_000
    for pause_ms in pauses_ms:
        now_us += pause_ms * 1000
        granted, wait_us, *_ = _at(client, "take", now_us, bucket)
        if not granted:
            now_us += wait_us
            assert _at(client, "take", now_us, bucket)[0] == 1


def test_many_at_once_never_get_more_than_the_bucket_holds(loom):
    limiter = _limiter(loom, workers=[("w", "1/h")], local={"rate": "1/h", "burst": 40})
    loom.app.broker.ping()
    mine = [_limiter_of(loom, limiter) for _ in range(8)]

    def take(one):
        return sum(one.take("other", "local", 0).wait_s == 0 for _ in range(20))

    assert sum(at_once(*[lambda one=one: take(one) for one in mine])) == 40


def _limiter_of(loom, limiter):
    """Another process's limiter, as far as Redis can tell."""
    from loomq.queues.broker import Broker

    return Limiter(Broker(loom.app, is_redis=True, shown_url=""), lambda: limiter.limits)


# All or nothing


def test_a_task_takes_from_all_of_its_buckets_or_from_none(loom):
    limiter = _limiter(loom, workers=[("w", "1/h")], local={"rate": "1/h", "burst": 3})
    assert limiter.take("w", "local", 0).wait_s == 0
    refused = limiter.take("w", "local", 0)
    assert 3500 < refused.wait_s <= 3600
    assert refused.reason == "waits for the rate of worker w (1/h)"
    assert [limiter.take("other", "local", 0).wait_s == 0 for _ in range(3)] == [True, True, False]
    assert limiter.take("other", "local", 0).reason == "waits for the rate of tier local (1/h)"
    assert limiter.take("free", "standard", 0).wait_s == 0


def test_what_is_limited_by_nothing_asks_nobody(loom):
    limiter = _limiter(loom)
    limiter._broker = None
    assert limiter.take("w", "local", 10**9).wait_s == 0
    assert limiter.look([]) == []


# Budgets


def test_tokens_are_set_aside_and_charged_by_what_was_used(loom):
    limiter = _limiter(loom, frontier={"tokens_per_minute": 6000})
    (bucket,) = limiter.limits.buckets("w", "frontier", {})
    first = limiter.take("w", "frontier", 4000)
    assert (first.tokens, limiter.look([bucket])[0].used) == (4000, 4000)
    second = limiter.take("w", "frontier", 4000)
    assert 15 < second.wait_s <= 20
    limiter.settle(first, 500)
    assert limiter.look([bucket])[0].used == pytest.approx(500, abs=100)
    assert limiter.take("w", "frontier", 400).wait_s > 0, "who asks for little must not overtake"
    more = limiter.take("w", "frontier", 0)
    assert more.wait_s > 0


def test_a_call_that_used_more_than_was_set_aside_is_paid_for_afterwards(loom, client):
    bucket = Bucket(f"x{uuid4()}:tokens", "", 100.0, 6000)
    now = 1_800_000_000_000_000
    assert _at(client, "take", now, bucket, 1000)[0] == 1
    _at(client, "settle", now, bucket, 9000)  # 10,000 in all, 4,000 more than there are
    granted, wait_us, _ = _at(client, "take", now, bucket, 1000)
    assert (granted, round(wait_us / 1e6)) == (0, 50)
    assert _at(client, "take", now + 50_000_001, bucket, 1000)[0] == 1


def test_a_call_larger_than_the_budget_goes_when_the_budget_is_whole_and_holds_the_others_up(client):
    bucket = Bucket(f"x{uuid4()}:tokens", "", 100.0, 6000)
    now = 1_800_000_000_000_000
    assert _at(client, "take", now, bucket, 600)[0] == 1
    granted, wait_us, _ = _at(client, "take", now, bucket, 20_000)
    assert (granted, round(wait_us / 1e6)) == (0, 6)
    assert _at(client, "take", now + 1_000_000, bucket, 5)[0] == 0, "it must not starve behind small ones"
    assert _at(client, "take", now + 6_000_001, bucket, 20_000)[0] == 1
    granted, wait_us, _ = _at(client, "take", now + 6_000_001, bucket, 1000)
    assert (granted, round(wait_us / 1e6)) == (0, 150)


def test_a_look_tells_how_often_the_usual_call_fits(client):
    bucket = Bucket(f"x{uuid4()}:tokens", "", 100.0, 6000)
    now = 1_800_000_000_000_000
    for _ in range(4):
        _at(client, "take", now, bucket, 1000)
    free, wait_us, used, given_ = _at(client, "look", now, bucket)
    assert (free, wait_us, used, given_) == (2, 0, 4000, 4000)
    _at(client, "take", now, bucket, 1000)
    _at(client, "take", now, bucket, 1000)
    free, wait_us, *_ = _at(client, "look", now, bucket)
    assert (free, round(wait_us / 1e6)) == (0, 10)


# Faults


@pytest.mark.parametrize("back_s", [5, 3600, 86_400 * 30])
def test_a_clock_that_is_set_back_holds_nobody_up_for_longer_than_an_empty_bucket(client, back_s):
    bucket = Bucket(f"x{uuid4()}", "", 10.0, 20)
    now = 1_800_000_000_000_000
    for _ in range(20):
        _at(client, "take", now, bucket)
    now -= back_s * 1_000_000
    granted, wait_us, _ = _at(client, "take", now, bucket)
    assert (granted, wait_us <= 100_001) == (0, True)
    assert _at(client, "look", now + 1_000_000, bucket)[0] == 10
    assert _at(client, "take", now + 2_000_001, bucket)[0] == 1


def test_a_rate_that_was_raised_is_the_new_one_at_once(loom):
    limiter = _limiter(loom, workers=[("w", "1/h")])
    assert limiter.take("w", "local", 0).wait_s == 0
    assert limiter.take("w", "local", 0).wait_s > 3000
    limiter.learn({"worker:w": "100/s"})
    assert limiter.take("w", "local", 0).wait_s < 0.02
    wait_until(lambda: limiter.take("w", "local", 0).wait_s == 0, "the next start", 2)


def test_every_bucket_goes_away_when_it_is_not_used(loom, client):
    limiter = _limiter(loom, workers=[("w", "1/m")], local={"rate": "5/s", "tokens_per_minute": 600})
    grant = limiter.take("w", "local", 300)
    limiter.take("w", "local", 300)
    limiter.settle(grant, 20)
    found = {key.decode(): client.pttl(key) for key in client.scan_iter("*limit*")}
    assert len(found) == 3
    assert all(120_000 <= ttl <= 250_000 for ttl in found.values()), found


def test_after_a_wipe_there_is_one_more_burst_and_no_second(loom, client):
    limiter = _limiter(loom, local={"rate": "1/h", "burst": 5})

    def drain():
        return sum(limiter.take("w", "local", 0).wait_s == 0 for _ in range(20))

    assert drain() == 5
    client.flushdb()
    assert (drain(), drain()) == (5, 0)


def test_without_redis_nothing_may_start_and_nobody_waits_long_to_be_told(project):
    project.worker("echo")
    away = project.loom(broker_url="redis://127.0.0.1:1/0")
    limiter = _limiter(away, local={"rate": "1/s"})
    for _ in range(20):
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailableError):
            limiter.take("w", "local", 0)
        assert time.monotonic() - begun < 2
    assert not away.app.broker.is_open
    away.close()


def test_a_cluster_without_any_redis_is_told_what_to_set(loom):
    limiter = _limiter(loom, local={"rate": "1/s"})
    limiter._broker = None
    with pytest.raises(BrokerUnavailableError) as caught:
        limiter.take("w", "local", 0)
    assert "LOOMQ_REDIS_URL" in caught.value.hint


def test_a_server_that_was_restarted_is_told_the_script_anew(tmp_path):
    socket = tmp_path / "s"
    server_at = redis_server(Account(os.geteuid(), os.getegid(), foreign=False))
    command = [server_at, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
    client = redis.Redis(unix_socket_path=str(socket))
    bucket = Bucket("x", "", 1 / 3600, 2)
    for _ in range(2):
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: _answers(client), "the server")
            found = [_at(client, "take", 1_800_000_000_000_000, bucket)[0] for _ in range(3)]
        finally:
            server.kill()
            server.wait()
        assert found == [1, 1, 0]
    client.close()


def _answers(client):
    try:
        return client.ping()
    except redis.RedisError:
        return False
