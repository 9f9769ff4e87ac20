"""Limits as people want to see them, and the way to change a rate by hand."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.errors import BrokerUnavailableError, UnknownNameError
from loomq.messages import ModelTier
from loomq.problems import suggest
from loomq.queues.limits import read_rate
from loomq.queues.routing import unknown_name
from loomq.store import limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from loomq.loom import Loom
    from loomq.queues.limits import Level
    from loomq.store.limits import Override, Standing


@dataclass(frozen=True, slots=True)
class LimitView:
    """One limit of the cluster.

    Args:
        name: ``worker:NAME``, ``tier:TIER``, or ``key:NAME`` for a concurrency key's semaphore.
        kind: ``rate`` (starts), ``tokens`` (a minute), ``concurrency`` (tasks at once), or ``key`` (what a worker's
            concurrency key says; its semaphores that are in use stand by themselves).
        limit: As it was written.
        used: How much of it is in use now.
        most: How much there is of it: a rate's burst, a budget, slots.
        waiting: How many tasks of its queues are due and wait, whatever for; of a key's semaphore those that came up
            and found no slot.
        next_s: Seconds until one may start by this limit; 0 now, ``None`` if only a task's end can tell, or nobody.
        set_by: Who set a rate by hand.
        fault: Why its state cannot be told.
    """

    name: str
    kind: str
    limit: str
    used: int | None
    most: int
    waiting: int
    next_s: float | None
    set_by: str | None = None
    fault: str | None = None

    @property
    def is_full(self) -> bool:
        """Whether nothing may start by it now."""
        return self.fault is not None or self.next_s is None or self.next_s > 0

    @property
    def told(self) -> str:
        """What keeps work that waits for it, in one line."""
        if self.fault is not None:
            return f"the limits of {self.name} cannot be told: {self.fault}"
        if self.next_s is None:
            return f"{self.name} has {self.used} at work, its max_concurrent"
        kind = "rate" if self.kind == "rate" else "token budget"
        when = f"the next of {self.waiting:,} may start in {self.next_s:,.1f} s"
        return f"by the {kind} of {self.name} ({self.limit}) {when}"

    def to_json(self) -> dict[str, Any]:
        """Describe the limit."""
        return {name: getattr(self, name) for name in self.__slots__}


def survey(loom: Loom) -> list[LimitView]:
    """Look at every limit.

    Raises:
        EnvironmentNotReadyError: The database cannot be used.
    """
    found = {each.name: each for each in limits.overrides(loom.database)}
    standings = limits.standings(loom.database)
    views = [*_rates(loom, found, standings), *_slots(loom, standings)]
    views += [
        LimitView(f"worker:{name}", "key", each.told_key, None, each.max_concurrent or 1, waiting, 0.0)
        for name, each in loom.configs.limits.workers.items()
        if each.key is not None and (waiting := _waiting(loom, f"worker:{name}", standings)) is not None
    ]
    views += [
        LimitView(f"key:{name}", "concurrency", f"{slots} at once", held, slots, wanted, 0.0 if held < slots else None)
        for name, slots, held, wanted in limits.keys(loom.database)
    ]
    return sorted(views, key=lambda view: (view.name, view.kind))


def _rates(loom: Loom, by_hand: Mapping[str, Override], standings: list[Standing]) -> Iterator[LimitView]:
    rates = {name: each.rate for name, each in by_hand.items()}
    buckets = loom.configs.limits.all_buckets(rates)
    levels: list[Level | None]
    fault = None
    try:
        levels = [*loom.app.limiter.look(buckets)]
    except BrokerUnavailableError as error:
        levels, fault = [None] * len(buckets), error.message
    for bucket, level in zip(buckets, levels, strict=True):
        yield LimitView(
            name=bucket.name.removesuffix(":tokens"),
            kind="tokens" if bucket.counts_tokens else "rate",
            limit=f"{bucket.size:,.0f}/m" if bucket.counts_tokens else bucket.rate,
            used=level.used if level else None,
            most=round(bucket.size),
            waiting=_waiting(loom, bucket.name, standings),
            next_s=round(level.wait_s, 3) if level else None,
            set_by=by_hand[bucket.name].set_by if bucket.name in by_hand else None,
            fault=fault,
        )
    for name, each in by_hand.items():
        if not read_rate(each.rate):
            yield LimitView(name, "rate", "none", None, 0, _waiting(loom, name, standings), 0.0, each.set_by)


def _slots(loom: Loom, standings: list[Standing]) -> Iterator[LimitView]:
    found = loom.configs.limits
    most = {f"worker:{name}": slots for name in found.workers if (slots := found.slots_of(name)) is not None}
    most |= {f"tier:{tier}": slots for tier, slots in found.slots_by_tier.items()}
    for name, slots in most.items():
        used = sum(each.running for each in standings if _is_under(loom, name, each))
        waiting = _waiting(loom, name, standings)
        yield LimitView(name, "concurrency", f"{slots} at once", used, slots, waiting, 0.0 if used < slots else None)


def _waiting(loom: Loom, name: str, standings: list[Standing]) -> int:
    return sum(each.waiting + each.sent for each in standings if _is_under(loom, name, each))


def _is_under(loom: Loom, name: str, each: Standing) -> bool:
    kind, _, rest = name.removesuffix(":tokens").partition(":")
    return rest == (each.worker if kind == "worker" else loom.router.tier(each.worker, each.tier))


def set_rate(loom: Loom, name: str, rate: str) -> str:
    """Set a rate by hand, for all nodes and until it is reset.

    Args:
        name: A worker, or ``worker:NAME`` or ``tier:TIER``.
        rate: As Celery writes it: ``10/s``, ``100/m``; ``0`` takes the limit off.

    Returns:
        The limit's whole name.

    Raises:
        UnknownNameError: There is no such worker or tier.
        ValueError: That is no rate.
        EnvironmentNotReadyError: The database cannot be used.
    """
    found = _named(loom, name)
    read_rate(rate)
    limits.override(loom.database, found, rate, getpass.getuser())
    return found


def reset_rate(loom: Loom, name: str) -> tuple[str, bool]:
    """Let a rate be what the files say again; errors as in ``set_rate``.

    Returns:
        The limit's whole name, and False if nobody had set it.
    """
    known = {each.name for each in limits.overrides(loom.database)}
    for whole in (name, f"worker:{name}"):  # also of a worker that is gone
        if whole in known:
            return whole, limits.reset(loom.database, whole)
    return _named(loom, name), False


def _named(loom: Loom, name: str) -> str:
    kind, colon, rest = name.partition(":")
    if not colon:
        kind, rest = "worker", name
    if kind == "worker":
        if rest not in loom.catalog.workers and rest in {*ModelTier}:
            raise UnknownNameError(f'no worker is called "{rest}"', hint=f"the tier's limit is called tier:{rest}")
        if rest not in loom.catalog.workers:
            raise unknown_name("worker", rest, loom.catalog.workers)
    elif kind != "tier" or rest not in {*ModelTier}:
        known = ["worker:NAME", *(f"tier:{tier}" for tier in ModelTier)]
        raise UnknownNameError(f'no limit is called "{name}"', hint=suggest(name, known) or f"name {', '.join(known)}")
    return f"{kind}:{rest}"
