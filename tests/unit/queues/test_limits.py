"""What the files say of limits: which buckets a task takes from, who shares them, and what a claim must keep."""

import json

import pytest

from loomq.queues.limits import Bucket, Limits, WorkerLimit, default_burst
from loomq.queues.routing import Router
from loomq.queues.spec import TierLimit

ROUTER = Router(
    defaults={
        "free": "local",
        "slow": "local",
        "few": "standard",
        "keyed": "local",
        "big": "frontier",
        "moved": "local",
    },
    overrides={"moved": "frontier"},
    asked=frozenset({("slow", "frontier"), ("free", "standard")}),
)
LIMITS = Limits(
    ROUTER,
    {"slow": WorkerLimit(rate="100/m"), "few": WorkerLimit(max_concurrent=2), "keyed": WorkerLimit(key="payload.x")},
    {"frontier": TierLimit(rate="10/s", burst=30, max_concurrent=4, tokens_per_minute=6000), "standard": TierLimit()},
)


def test_a_task_takes_from_its_workers_and_its_tiers_buckets():
    found = LIMITS.buckets("slow", "frontier", {})
    assert [(bucket.name, round(bucket.per_s, 3), bucket.size) for bucket in found] == [
        ("worker:slow", 1.667, 2),
        ("tier:frontier", 10.0, 30),
        ("tier:frontier:tokens", 100.0, 6000),
    ]
    assert [bucket.counts_tokens for bucket in found] == [False, False, True]
    assert LIMITS.buckets("free", "local", {}) == ()
    assert LIMITS.buckets("few", "standard", {}) == ()


@pytest.mark.parametrize(
    ("rate", "size"), [("1/h", 1), ("59/m", 1), ("61/m", 2), ("100/m", 2), ("20/s", 20), ("0.5/s", 1), ("7", 7)]
)
def test_the_burst_that_nobody_wrote_is_what_a_second_gives_and_at_least_one(rate, size):
    (bucket,) = Limits(workers={"w": WorkerLimit(rate=rate)}).buckets("w", "local", {})
    assert bucket.size == size == default_burst(bucket.per_s)


def test_what_somebody_set_by_hand_wins_and_zero_takes_a_limit_off():
    rates = {"worker:slow": "0", "tier:frontier": "2/s", "worker:free": "5/s"}
    assert [(bucket.name, bucket.per_s) for bucket in LIMITS.buckets("slow", "frontier", rates)][:1] == [
        ("tier:frontier", 2.0)
    ]
    assert [bucket.name for bucket in LIMITS.buckets("free", "local", rates)] == ["worker:free"]
    assert LIMITS.shared_by("slow", "local", rates) is None
    assert LIMITS.shared_by("free", "local", rates) == "worker:free"
    assert {bucket.name for bucket in LIMITS.all_buckets(rates)} == {
        "tier:frontier",
        "tier:frontier:tokens",
        "worker:free",
    }


@pytest.mark.parametrize(
    ("worker", "tier", "share"),
    [
        ("free", "local", None),
        ("free", "standard", None),  # a tier whose entry limits nothing
        ("slow", "local", "worker:slow"),
        ("slow", "frontier", "tier:frontier"),
        ("few", "standard", "worker:few"),
        ("keyed", "local", None),  # a key is looked at when the payload is known
        ("moved", "local", "tier:frontier"),
        ("big", "frontier", "tier:frontier"),
    ],
)
def test_work_shares_its_tiers_limits_or_else_its_workers(worker, tier, share):
    assert LIMITS.shared_by(worker, tier, {}) == share
    if share is not None:
        assert (worker, tier) in LIMITS.routes_of(share, {})


def test_a_share_is_all_routes_that_the_router_sends_there():
    assert LIMITS.routes_of("tier:frontier", {}) == [("big", "frontier"), ("moved", "local"), ("slow", "frontier")]
    assert LIMITS.routes_of("worker:slow", {}) == [("slow", "local")], "what shares with its tier is not fed twice"


def test_a_claim_is_told_what_it_must_keep():
    assert json.loads(LIMITS.slots("few")) == {
        "name": "few",
        "worker": 2,
        "tiers": {"frontier": 4},
        "override": None,
        "moved": {"moved": "frontier"},
    }
    assert json.loads(LIMITS.slots("moved"))["override"] == "frontier"
    assert json.loads(LIMITS.slots("keyed"))["worker"] is None
    only = Limits(workers={"few": WorkerLimit(max_concurrent=1)})
    assert only.slots("other") is None
    assert json.loads(only.slots("few"))["worker"] == 1
    assert Limits().slots("any") is None


def test_all_buckets_of_a_call_are_on_one_server_of_a_cluster():
    assert {Bucket(name, "", 1, 1).key.partition("}")[0] for name in ("worker:a", "tier:b:tokens")} == {"{loomq-limit"}
