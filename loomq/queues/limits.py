"""Limits over the whole cluster: what the files say of them, and the buckets in Redis that all nodes share."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery.utils.time import rate as per_second

from loomq.config import HIGHEST_RATE, RATE_PATTERN
from loomq.errors import BrokerUnavailableError
from loomq.queues.routing import Router
from loomq.queues.scripts import Script
from loomq.queues.spec import TierLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from loomq.queues.broker import Broker

#: Take from buckets, or look at them; all that it changes it changes at once.
BUCKETS = Script("buckets.lua")
_PREFIX = "{loomq-limit}:"  # one hash tag: a cluster keeps all buckets of a call on one server
_MICROSECONDS = 1_000_000
_MINUTE_S = 60
_MANY = 1_000_000  # more starts at once than anybody asks about
NO_TIER = TierLimit()
Route = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket: so many units a second, and so many at once after a pause.

    Args:
        name: ``worker:NAME``, ``tier:TIER`` (both count starts), or ``tier:TIER:tokens``.
        told: What messages call it.
        rate: The rate as it was written; empty for tokens.
    """

    name: str
    told: str
    per_s: float
    size: float
    rate: str = ""

    @property
    def counts_tokens(self) -> bool:
        """Whether its units are tokens."""
        return self.name.endswith(":tokens")

    @property
    def key(self) -> str:
        """Its key in Redis."""
        return _PREFIX + self.name


@dataclass(frozen=True, slots=True)
class WorkerLimit:
    """What a worker's file says of its limits.

    Args:
        key: The ``concurrency_key``; ``max_concurrent`` then holds for each of its values.
    """

    rate: str | None = None
    max_concurrent: int | None = None
    key: str | None = None

    @property
    def told_key(self) -> str:
        """What the key says, in words."""
        each = "for each" if (self.key or "").startswith("payload.") else "by the key"
        return f"{self.max_concurrent or 1} at once {each} {self.key}"


NO_WORKER = WorkerLimit()


@dataclass(frozen=True)
class Limits:
    """All limits of one project; pure, and the same on every node that has the same files.

    Args:
        workers: Those of workers that have any.
        tiers: The router's ``rate_limits``.
    """

    router: Router = field(default_factory=Router)
    workers: Mapping[str, WorkerLimit] = field(default_factory=dict)
    tiers: Mapping[str, TierLimit] = field(default_factory=dict)

    def buckets(self, worker: str, tier: str, rates: Mapping[str, str]) -> tuple[Bucket, ...]:
        """Give the buckets that a task of a worker takes from.

        Args:
            tier: After the router's overrides.
            rates: What somebody has set by hand; it wins over the files.
        """
        limit = self.tiers.get(tier, NO_TIER)
        own = f"worker:{worker}"
        found = [
            _of_rate(own, f"the rate of worker {worker}", rates.get(own, self.worker(worker).rate), None),
            _of_rate(f"tier:{tier}", f"the rate of tier {tier}", rates.get(f"tier:{tier}", limit.rate), limit.burst),
        ]
        if limit.tokens_per_minute is not None:
            size = limit.tokens_per_minute
            told = f"the tokens of tier {tier} ({size:,} a minute)"
            found.append(Bucket(f"tier:{tier}:tokens", told, size / _MINUTE_S, size))
        return tuple(bucket for bucket in found if bucket is not None)

    def of_worker(self, worker: str, rates: Mapping[str, str]) -> Bucket | None:
        """Give the bucket of a worker's own rate, if it has one."""
        return next(iter(self.buckets(worker, "", rates)), None)

    def of_tier(self, tier: str | None, rates: Mapping[str, str]) -> tuple[Bucket, ...]:
        """Give the buckets that all workers of a tier share."""
        return self.buckets("", tier, rates) if tier is not None else ()

    def all_buckets(self, rates: Mapping[str, str]) -> list[Bucket]:
        """List every bucket of the project."""
        workers = sorted({*self.workers, *_named(rates, "worker")})
        tiers = sorted({*self.tiers, *_named(rates, "tier")})
        own = [bucket for name in workers if (bucket := self.of_worker(name, rates)) is not None]
        return own + [bucket for tier in tiers for bucket in self.of_tier(tier, rates)]

    def worker(self, name: str) -> WorkerLimit:
        """Give what a worker's file says."""
        return self.workers.get(name, NO_WORKER)

    def slots(self, worker: str) -> str | None:
        """Write the limits on concurrency that a claim must keep, as JSON; ``None`` if there are none."""
        if worker not in self._slots:
            alone = self.slots_of(worker)
            said = {
                "name": worker,
                "worker": alone,
                "tiers": self.slots_by_tier,
                "override": self.router.overrides.get(worker),
                "moved": self.router.overrides,
            }
            self._slots[worker] = json.dumps(said, sort_keys=True) if alone or self.slots_by_tier else None
        return self._slots[worker]

    def slots_of(self, worker: str) -> int | None:
        """Give a worker's ``max_concurrent``, unless it holds for each value of a concurrency key."""
        own = self.worker(worker)
        return own.max_concurrent if own.key is None else None

    @property
    def limits_anything(self) -> bool:
        """Whether there is any limit at all in the files."""
        return bool(self.workers or self.tiers)

    @cached_property
    def slots_by_tier(self) -> dict[str, int]:
        """The tiers' ``max_concurrent``."""
        return {tier: limit.max_concurrent for tier, limit in self.tiers.items() if limit.max_concurrent is not None}

    @cached_property
    def _slots(self) -> dict[str, str | None]:
        return {}

    def shared_by(self, worker: str, tier: str, rates: Mapping[str, str]) -> str | None:
        """Name what a route's work shares its limits with: ``tier:TIER``, ``worker:NAME``, or ``None`` if it has none.

        Args:
            tier: As it was asked for.
        """
        routed = self.router.tier(worker, tier)
        limit = self.tiers.get(routed, NO_TIER)
        name = f"tier:{routed}"
        if limit.max_concurrent or limit.tokens_per_minute or _is_rate(rates.get(name, limit.rate)):
            return name
        name = f"worker:{worker}"
        return name if self.slots_of(worker) or _is_rate(rates.get(name, self.worker(worker).rate)) else None

    def told(self, worker: str, tier: str) -> tuple[str, ...]:
        """Say in words which limits hold for a route, as the files say it; ``tier`` as it was asked for."""
        routed, own = self.router.tier(worker, tier), self.worker(worker)
        found = [bucket.told for bucket in self.buckets(worker, routed, {})]
        if own.key is not None:
            found.append(own.told_key)
        elif own.max_concurrent is not None:
            found.append(f"{own.max_concurrent} at once of worker {worker}")
        if routed in self.slots_by_tier:
            found.append(f"{self.slots_by_tier[routed]} at once on tier {routed}")
        return tuple(found)

    def routes_of(self, share: str, rates: Mapping[str, str]) -> list[Route]:
        """List the routes in use whose work shares these limits."""
        return [route for route in sorted(self.router.routes_in_use) if self.shared_by(*route, rates) == share]


@dataclass(frozen=True, slots=True)
class Grant:
    """What a task was given, or has to wait for.

    Args:
        wait_s: 0 if it may go.
        reason: What it waits for.
        tokens: How many tokens were set aside for it.
        budget: The bucket that they came from.
    """

    wait_s: float = 0.0
    reason: str = ""
    tokens: int = 0
    budget: Bucket | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """How full a bucket is.

    Args:
        free: How often its usual cost can be taken now.
        wait_s: How long until that is so once.
        used: Units in use; they come back with time.
        given: Units given since the bucket was last empty for two minutes.
    """

    free: int
    wait_s: float
    used: int
    given: int


class Limiter:
    """Take from the shared buckets.

    Args:
        broker: The Redis that holds them; ``None`` if there is none, and then whatever has a rate waits.
        limits: Gives what the files say now.
    """

    def __init__(self, broker: Broker | None, limits: Callable[[], Limits]) -> None:
        self._broker = broker
        self._limits = limits
        self.rates: Mapping[str, str] = {}

    @property
    def limits(self) -> Limits:
        """What the files say now."""
        return self._limits()

    @property
    def server(self) -> Broker | None:
        """The Redis that holds the buckets."""
        return self._broker

    def learn(self, rates: Mapping[str, str]) -> None:
        """Hear which rates are set by hand just now."""
        if rates != self.rates:
            self.rates = dict(rates)

    def shared_by(self, worker: str, tier: str) -> str | None:
        """Name what a route's work shares its limits with; see ``Limits.shared_by``."""
        limits = self.limits
        return limits.shared_by(worker, tier, self.rates) if limits.limits_anything or self.rates else None

    def is_limited(self, worker: str, tier: str) -> bool:
        """Say whether a task of a worker takes from any bucket; ``tier`` after the router's overrides."""
        return bool(self._buckets(worker, tier))

    def _buckets(self, worker: str, tier: str) -> tuple[Bucket, ...]:
        limits = self.limits
        return limits.buckets(worker, tier, self.rates) if limits.limits_anything or self.rates else ()

    def take(self, worker: str, tier: str, tokens: int) -> Grant:
        """Take what a task needs to start: one start of each rate, and tokens of the tier's budget; all or nothing.

        Args:
            tier: After the router's overrides.
            tokens: How many it will use at most.

        Raises:
            BrokerUnavailableError: Redis does not answer: nothing may start.
        """
        buckets = self._buckets(worker, tier)
        if not buckets:
            return Grant()
        costs = [max(tokens, 1) if bucket.counts_tokens else 1 for bucket in buckets]
        granted, second, *which = self._call("take", buckets, costs)
        if not granted:
            return Grant(wait_s=second / _MICROSECONDS, reason=f"waits for {buckets[which[0] - 1].told}")
        budget = next((bucket for bucket in buckets if bucket.counts_tokens), None)
        return Grant(tokens=max(tokens, 1) if budget else 0, budget=budget)

    def settle(self, grant: Grant, used: int) -> None:
        """Charge the tokens that a call really used in place of those that were set aside.

        Raises:
            BrokerUnavailableError: Redis does not answer; what was set aside stays charged.
        """
        if grant.budget is not None and used != grant.tokens:
            self._call("settle", [grant.budget], [used - grant.tokens])

    def look(self, buckets: Sequence[Bucket]) -> list[Level]:
        """See how full buckets are.

        Raises:
            BrokerUnavailableError: Redis does not answer.
        """
        if not buckets:
            return []
        told = self._call("look", buckets, [1] * len(buckets))
        rows = [told[at : at + 4] for at in range(0, len(told), 4)]
        return [Level(min(free, _MANY), wait_us / _MICROSECONDS, used, given) for free, wait_us, used, given in rows]

    def _call(self, op: str, buckets: Sequence[Bucket], costs: Iterable[int]) -> list[int]:
        if self._broker is None:
            raise BrokerUnavailableError(
                "rates and token budgets are kept in Redis, and there is none", hint="set LOOMQ_REDIS_URL to one"
            )
        arguments: list[Any] = [op, ""]
        for bucket, cost in zip(buckets, costs, strict=True):
            arguments += [f"{_MICROSECONDS / bucket.per_s:.6f}", f"{bucket.size:.0f}", cost]
        keys = [bucket.key for bucket in buckets]
        return self._broker.run(lambda producer: BUCKETS.run(producer.channel.client, keys, arguments))


def _of_rate(name: str, told: str, rate: str | None, burst: int | None) -> Bucket | None:
    if rate is None or not _is_rate(rate):
        return None
    per_s = per_second(rate)
    return Bucket(name, f"{told} ({rate})", per_s, burst or default_burst(per_s), rate)


def read_rate(text: str) -> float:
    """Read a rate that somebody typed, ``10/s``, ``100/m`` or ``1000/h``: starts a second; 0 is no limit, as in Celery.

    Raises:
        ValueError: It is none.
    """
    if not re.fullmatch(RATE_PATTERN, text):
        raise ValueError(f'"{text}" is no rate; write "10/s", "100/m" or "1000/h"')
    found = float(per_second(text))
    if found > HIGHEST_RATE:
        raise ValueError(f'"{text}" is more than {HIGHEST_RATE:,}/s; 0 takes a limit off')
    return found


def _is_rate(rate: str | None) -> bool:
    return bool(rate and per_second(rate))  # as in Celery, 0 is no limit


def default_burst(per_s: float) -> int:
    """Give how many may start at once after a pause if nobody says it: what a second gives, and at least one."""
    return max(1, math.ceil(per_s))


def _named(rates: Mapping[str, str], kind: str) -> list[str]:
    return [name.partition(":")[2] for name in rates if name.startswith(f"{kind}:")]
