"""The tasks of a plan: read from a model's answer, held against what there is, and refused with every fault at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.errors import PipelineMappingError
from loomq.messages import ModelTier, TaskPriority
from loomq.pipelines.graph import StageGraph, find_cycle
from loomq.pipelines.paths import parse_expression
from loomq.pipelines.scanner import MalformedError
from loomq.problems import dotted, listed, suggest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from loomq.orchestrator.manifest import Frozen, Offer
    from loomq.pipelines.paths import Expression

#: How many tasks a plan may have.
MOST_TASKS = 1000
#: The one key of an object that stands for a value which is not known yet.
FROM = "$from"
_KEYS = ("id", "worker_type", "payload", "model_tier", "priority", "rationale", "depends_on")
_LISTS = ("tasks", "plan", "subtasks")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
_MOST_FAULTS = 20


@dataclass(frozen=True, slots=True)
class Subtask:
    """One task of a plan.

    Args:
        name: The same for no other task of the goal.
        payload: May hold ``{"$from": path}`` where a value of an earlier result belongs.
        tier, priority: ``None`` is the worker's, and the goal's.
        depends_on: Tasks of the same plan whose results it waits for, by name.
    """

    name: str
    worker_type: str
    payload: dict[str, Any]
    tier: str | None = None
    priority: str | None = None
    rationale: str | None = None
    depends_on: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Describe the task as a plan's stage gives it."""
        found = {
            "id": self.name,
            "worker_type": self.worker_type,
            "payload": self.payload,
            "model_tier": self.tier,
            "priority": self.priority,
            "rationale": self.rationale,
            "depends_on": list(self.depends_on),
        }
        return {key: value for key, value in found.items() if value not in (None, [])}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Subtask:
        """Read what ``to_json`` gave; a round's snapshot has no payloads."""
        return cls(
            said["id"],
            said["worker_type"],
            said.get("payload", {}),
            said.get("model_tier"),
            said.get("priority"),
            said.get("rationale"),
            tuple(said.get("depends_on", ())),
        )

    @property
    def reads(self) -> tuple[str, ...]:
        """The roots of what its payload takes from elsewhere: tasks by name, and ``goal``."""
        return tuple(dict.fromkeys(expression_of(text).root for _, text in references(self.payload)))


def references(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Find what a payload takes from elsewhere: where in it, and the path that it names."""
    if isinstance(value, dict):
        if value.keys() == {FROM}:
            yield path, str(value[FROM])
            return
        for key, below in value.items():
            yield from references(below, (*path, key))
    elif isinstance(value, list):
        for at, below in enumerate(value):
            yield from references(below, (*path, at))


def expression_of(text: str) -> Any:
    """Parse the path of a reference.

    Raises:
        MalformedError: It is malformed.
    """
    found: Expression = parse_expression(text)
    if not hasattr(found, "root"):
        raise MalformedError("a literal needs no $from", 0)
    return found


def resolved(value: Any, roots: Mapping[str, Any]) -> Any:
    """Put into a payload what it takes from elsewhere.

    Args:
        roots: Tasks by name, each with its ``output``; and ``goal``.

    Raises:
        PipelineMappingError: Something that it takes is not there.
    """
    if isinstance(value, dict):
        if value.keys() == {FROM}:
            return expression_of(str(value[FROM])).evaluate(roots)
        return {key: resolved(below, roots) for key, below in value.items()}
    return [resolved(below, roots) for below in value] if isinstance(value, list) else value


class PlanReader:
    """Read plans of one goal.

    Args:
        frozen: The orchestrator and what it may use.
        ended: The tasks of earlier rounds by name, and whether each has a result.
        roots: What is known already of what payloads may take from: ``goal``, and tasks of earlier rounds.
    """

    def __init__(
        self, frozen: Frozen, ended: Mapping[str, bool] | None = None, roots: Mapping[str, Any] | None = None
    ) -> None:
        self._offers = frozen.by_name
        self._ended = ended or {}
        self._roots = roots or {}
        self._by_number: dict[int, str] = {}
        self.faults: list[str] = []

    def read(self, answer: Any, *, may_be_empty: bool) -> list[Subtask]:
        """Read a model's answer; what is wrong with it is in ``faults`` afterwards, and then there is no plan.

        Args:
            answer: A list of tasks, or an object that has one.
            may_be_empty: Whether nothing more to do is an answer.
        """
        self.faults = []
        items = _items(answer)
        if items is None:
            self.faults.append(f"the answer is {_kind(answer)} and not a list of tasks")
            return []
        if not items and not may_be_empty:
            self.faults.append("the plan has no task")
        if len(items) > MOST_TASKS:
            self.faults.append(f"the plan has {len(items):,} tasks, and may have {MOST_TASKS:,}")
            return []
        names = self._names(items)
        found = [self._task(at, item, names) for at, item in enumerate(items)]
        tasks = [task for task in found if task is not None]
        if not self.faults:
            self._check_order(tasks)
            self._check_references(tasks)
        if len(self.faults) > _MOST_FAULTS:
            self.faults[_MOST_FAULTS:] = [f"… and {len(self.faults) - _MOST_FAULTS} more"]
        return [] if self.faults else tasks

    def _names(self, items: list[Any]) -> list[str]:
        """Give each task its name: the model's, if it is one and free, else one by worker and number."""
        names: list[str] = []
        self._by_number = {}
        given = {str(item.get("id")) for item in items if isinstance(item, dict)}
        for at, item in enumerate(items):
            asked = item.get("id") if isinstance(item, dict) else None
            name = self._given_name(at, asked, names)
            if name is None:
                worker = item.get("worker_type") if isinstance(item, dict) else None
                name = self._made_name(worker, len(self._ended) + at + 1, {*names, *given})
            if isinstance(asked, int):
                self._by_number.setdefault(asked, name)
            names.append(name)
        return names

    def _given_name(self, at: int, asked: Any, names: list[str]) -> str | None:
        """Give the name that the model has chosen; ``None`` if it has chosen none, or a number."""
        if asked is None:
            return None
        if isinstance(asked, int) and not isinstance(asked, bool):
            if asked in self._by_number:
                self._fault(at, f"id: {asked} is another task's already")
            return None
        if not isinstance(asked, str) or not _NAME.fullmatch(asked):
            told = f'"{asked[:60]}"' if isinstance(asked, str) else _kind(asked)
            self._fault(at, f"id: {told} is no name; use lower-case letters, digits and _")
            return None
        if asked in names or asked in self._ended:
            self._fault(at, f'id: "{asked}" is another task\'s name already')
        elif asked in {"goal", "item", "index"}:
            self._fault(at, f'id: "{asked}" is taken')
        return asked

    def _made_name(self, worker: Any, number: int, taken: Collection[str]) -> str:
        stem = worker[:60] if isinstance(worker, str) and _NAME.fullmatch(worker[:60]) else "task"
        while f"{stem}_{number}" in taken or f"{stem}_{number}" in self._ended:
            number += 1
        return f"{stem}_{number}"

    def _task(self, at: int, item: Any, names: list[str]) -> Subtask | None:
        if not isinstance(item, dict):
            self._fault(at, f"it is {_kind(item)} and not an object")
            return None
        before = len(self.faults)
        for key in (key for key in item if key not in _KEYS):
            self._fault(at, f"{str(key)[:60]}: there is no such key; {suggest(str(key), _KEYS) or listed(_KEYS)}")
        offer = self._offer(at, item.get("worker_type"))
        payload = item.get("payload", {})
        if not isinstance(payload, dict):
            self._fault(at, f"payload: it is {_kind(payload)} and not an object")
        elif offer is not None:
            self._check_payload(at, offer, payload)
        tier = self._word(at, item, "model_tier", offer.tiers if offer else tuple(ModelTier))
        priority = self._word(at, item, "priority", tuple(TaskPriority))
        depends_on = self._depends_on(at, item.get("depends_on"), names)
        if len(self.faults) > before or offer is None:
            return None
        rationale = item.get("rationale")
        told = None if rationale is None else str(rationale)
        return Subtask(names[at], offer.name, payload, tier or offer.tier, priority, told, depends_on)

    def _offer(self, at: int, name: Any) -> Offer | None:
        found = self._offers.get(name) if isinstance(name, str) else None
        if found is None:
            near = suggest(str(name), self._offers) or f"there are: {listed(sorted(self._offers))}"
            self._fault(at, f'worker_type: no worker is called "{str(name)[:100]}"; {near}' if name else
                        f"worker_type: it is missing; {near}")  # fmt: skip
        return found

    def _check_payload(self, at: int, offer: Offer, payload: dict[str, Any]) -> None:
        try:
            unknown = [path for path, _ in references(payload)]
        except RecursionError:
            self._fault(at, "payload: it is nested too deeply")
            return
        told: list[str] = []
        for contract in offer.contracts:
            told += [one for one in contract.errors(payload, unknown) if one not in told]
        for one in told:
            self._fault(at, f"payload of {offer.name}: {one}")

    def _word(self, at: int, item: dict[str, Any], key: str, allowed: tuple[str, ...]) -> str | None:
        value = item.get(key)
        if value is None or value in allowed:
            return None if value is None else str(value)
        if not allowed:
            self._fault(at, f"{key}: this kind of worker takes none")
        else:
            self._fault(at, f'{key}: "{str(value)[:60]}" is none of {listed(list(allowed))}')
        return None

    def _depends_on(self, at: int, asked: Any, names: list[str]) -> tuple[str, ...]:
        if asked is None:
            return ()
        found: list[str] = []
        for one in asked if isinstance(asked, list) else [asked]:
            if isinstance(one, int) and not isinstance(one, bool) and self._by_number:  # numbers are ids here
                if one in self._by_number:
                    found.append(self._by_number[one])
                else:
                    self._fault(at, f"depends_on: {one} is no id of this plan")
            elif isinstance(one, int) and not isinstance(one, bool) and 0 <= one < len(names):
                found.append(names[one])
            elif isinstance(one, str) and one in names:
                found.append(one)
            elif isinstance(one, str) and one in self._ended:
                if not self._ended[one]:
                    self._fault(at, f"depends_on: task {one}, of an earlier round, has no result")
            else:
                self._fault(at, f"depends_on: {str(one)[:60]!r} is no task of this plan; name ids, or places from 0")
        return tuple(dict.fromkeys(found))

    def _check_order(self, tasks: list[Subtask]) -> None:
        cycle = find_cycle({task.name: task.depends_on for task in tasks})
        if cycle:
            self.faults.append(f"tasks wait for each other: {' -> '.join(cycle)}")

    def _check_references(self, tasks: list[Subtask]) -> None:
        graph = StageGraph.build({task.name: task.depends_on for task in tasks}) if not self.faults else None
        for at, task in enumerate(tasks):
            for path, text in references(task.payload):
                above = graph.ancestors(task.name) if graph is not None else frozenset()
                fault = self._reference_fault(text, above)
                if fault:
                    self._fault(at, f"payload.{dotted(path)}: {fault}")

    def _reference_fault(self, text: str, above: Collection[str]) -> str | None:
        try:
            path = expression_of(text)
        except MalformedError as error:
            return f"the path {text[:100]!r} is malformed: {error.message}"
        root = path.root
        if root in self._roots:
            try:
                path.evaluate(self._roots)
            except PipelineMappingError as error:
                return error.message
        if root == "goal" or root in above or self._ended.get(root):
            return None
        if root in self._ended:
            return f"task {root} has no result"
        return f'"{root}" is neither among its depends_on nor a task of an earlier round'

    def _fault(self, at: int, text: str) -> None:
        self.faults.append(f"task {at}: {text}")


def _items(answer: Any) -> list[Any] | None:
    if isinstance(answer, list):
        return answer
    if isinstance(answer, dict):
        found = [answer[key] for key in _LISTS if isinstance(answer.get(key), list)]
        if len(found) == 1:
            return list(found[0])
        if "worker_type" in answer:  # a plan of one task, without its list
            return [answer]
    return None


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)
