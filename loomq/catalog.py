"""The catalog: every worker, pipeline, orchestrator, schedule and router rule of a project, checked together."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loomq.config import not_yet, read_spec
from loomq.contracts import schema_faults
from loomq.errors import ConfigError, ImportRefusedError
from loomq.kinds import KINDS, ROUTER_FILE, find_files, kind_of, shown_name
from loomq.knowledge.load import located
from loomq.orchestrator import spec as orchestrator
from loomq.orchestrator.check import check_orchestrator
from loomq.pipelines import spec as pipeline
from loomq.pipelines.check import check_pipeline
from loomq.pipelines.neighbours import Neighbours
from loomq.problems import Problem, suggest
from loomq.queues import spec as router
from loomq.registry import is_allowed, load_dotted
from loomq.schedules import spec as schedule
from loomq.schedules.check import check_schedule
from loomq.tools.base import ToolProvider
from loomq.workers import spec as worker
from loomq.workers.base import ProcessingBackend
from loomq.yaml_compose import EMPTY
from loomq.yaml_text import read_document

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from loomq.config import Spec
    from loomq.orchestrator.spec import OrchestratorSpec
    from loomq.pipelines.spec import PipelineSpec, StageSpec
    from loomq.queues.spec import RouterRules
    from loomq.schedules.spec import ScheduleSpec
    from loomq.settings import Settings
    from loomq.workers.spec import Schemas, WorkerSpec
    from loomq.yaml_text import Document, KeyPath


@dataclass(frozen=True)
class Catalog:
    """Everything that the YAML of a project says, by name.

    Args:
        workers: By worker_type.
        pipelines: By name.
        orchestrators: By name.
        schedules: By name.
        rules: The router's rules; empty ones if there is no file.
        files: Where each stands, by kind and name; the router's name is ``router_rules``.
    """

    workers: Mapping[str, WorkerSpec] = field(default_factory=dict)
    pipelines: Mapping[str, PipelineSpec] = field(default_factory=dict)
    orchestrators: Mapping[str, OrchestratorSpec] = field(default_factory=dict)
    schedules: Mapping[str, ScheduleSpec] = field(default_factory=dict)
    rules: RouterRules = field(default_factory=router.RouterRules)
    files: Mapping[tuple[str, str], Path] = field(default_factory=dict)


def load_catalog(
    settings: Settings, paths: Sequence[Path] = (), *, imports: bool = False
) -> tuple[Catalog, list[Problem]]:
    """Read the project's files and check them, each alone and all together.

    Args:
        settings: Names the project and the packages that YAML may import from.
        paths: Files or folders to look at; problems elsewhere are then left out. Files outside the project join it,
            and win over files of the same kind and name.
        imports: Also import each ``processing_backend`` that is allowed, to see that it is one.

    Returns:
        The catalog without the files that have errors, and every problem, by file and line; problems may be warnings.
    """
    reader = _Reader(settings, imports)
    chosen = [file for path in paths for file in find_files(path)]
    own = project_files(settings)
    wanted = {file.resolve() for file in chosen}
    for file in chosen:
        reader.read(file)
    reader.settle()
    for file in own:
        if file.resolve() not in wanted:
            reader.read(file)
    reader.check()
    problems = reader.problems
    if paths:
        shown = {shown_name(file) for file in chosen} | {shown_name(path) for path in paths}
        problems = [problem for problem in problems if problem.file in shown]
    problems = sorted(set(problems), key=lambda one: (one.file, one.line, one.col, one.id, one.message))
    return reader.catalog(), problems


def require_catalog(settings: Settings) -> Catalog:
    """Read the project's files, all of which must be right.

    Raises:
        ConfigError: With every error as ``problems``.
    """
    catalog, problems = load_catalog(settings)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(
            f"the project's files have errors: {errors[0].headline()}{more}",
            hint="see all of them: loomq validate",
            problems=errors,
        )
    return catalog


def resolve_schemas(spec: WorkerSpec, stage: StageSpec | None = None, *, allow: Sequence[str]) -> Schemas:
    """Give the contracts that hold for a worker, or for a stage that runs it.

    The stage's win over the worker's, and an inline schema over a ``_ref``.

    Args:
        spec: The worker.
        stage: A stage whose ``worker_type`` it is.
        allow: ``Settings.import_allow``.

    Raises:
        ImportRefusedError: A ``_ref`` is not allowed or not a Pydantic model.
    """
    holders = [holder for holder in (stage, spec) if holder is not None]
    found: dict[str, dict[str, Any] | None] = {}
    for side in ("input_schema", "output_schema"):
        found[side] = None
        for holder in holders:
            inline, reference = getattr(holder, side), getattr(holder, f"{side}_ref")
            if inline is not None or reference is not None:
                found[side] = inline if inline is not None else _schema_of(reference, allow)
                break
    return worker.Schemas(found["input_schema"], found["output_schema"])


def spec_hash(spec_json: Mapping[str, Any]) -> str:
    """Give the address of a spec's content: SHA-256, in hex, of its canonical JSON."""
    text = json.dumps(spec_json, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _schema_of(reference: str, allow: Sequence[str]) -> dict[str, Any]:
    from pydantic import BaseModel

    model: type[BaseModel] = load_dotted(reference, allow=allow, expect=BaseModel)
    return model.model_json_schema()


def project_files(settings: Settings) -> list[Path]:
    """List the YAML files of a project."""
    places = (settings.workers_dir, settings.pipelines_dir, settings.schedules_dir, settings.router_rules_path)
    return [file for path in places if path.exists() for file in find_files(path)]


@dataclass
class _Entry:
    kind: str
    name: str
    file: Path
    document: Document
    spec: Spec | None


class _Reader:
    """One reading of a project: entries by kind and name, problems as they come."""

    def __init__(self, settings: Settings, imports: bool) -> None:
        self.allow = settings.import_allow
        self.project = settings.project
        self.imports = imports
        self.problems: list[Problem] = []
        self.entries: dict[tuple[str, str], _Entry] = {}
        self.settled: frozenset[tuple[str, str]] = frozenset()
        self.known_workers: set[str] = set()
        self.unread_pipelines: set[str] = set()

    def settle(self) -> None:
        """Mark what was read so far as the user's choice, which wins over the project's files."""
        self.settled = frozenset(self.entries)

    def read(self, file: Path) -> None:
        """Read one file and check it alone."""
        document, problems = read_document(file, shown_name(file))
        folder = file.resolve().parent.name
        if folder == "workers":
            self.known_workers.add(file.stem)
        if document is None and file.name == ROUTER_FILE and any(one.message == EMPTY for one in problems):
            return  # every rule may be left out, so all of them may be commented out
        self.problems += problems
        if document is None:
            self.unread_pipelines.update([file.stem] if folder == "pipelines" else [])
            return
        kind = kind_of(file, document.value)
        if kind is None:
            hint = "put it into workers/, pipelines/ or schedules/"
            self.problems.append(document.problem("LQ107", "nothing says what kind of file this is", hint=hint))
            return
        spec, problems = read_spec(document, KINDS[kind].model)
        self.problems += problems
        name = file.stem
        if spec is not None:
            self.problems += not_yet(document, spec, KINDS[kind].not_yet, f"{kind}s")
            if kind != "router":
                name = getattr(spec, "name")  # noqa: B009  (every kind but the router's has one)
                self._check_stem(document, file, name)
        self._enter(_Entry(kind, name, file, document, spec))

    def _check_stem(self, document: Document, file: Path, name: str) -> None:
        if name != file.stem:
            message = f'the name "{name}" differs from the file\'s, "{file.stem}"'
            self.problems.append(document.problem("LQ115", message, ("name",), hint=f"rename the file to {name}.yaml"))

    def _enter(self, entry: _Entry) -> None:
        key = (entry.kind, entry.name)
        if key in self.settled:
            return
        if key in self.entries:
            message = f'{shown_name(self.entries[key].file)} is already the {entry.kind} "{entry.name}"'
            self.problems.append(entry.document.problem("LQ116", message, ("name",)))
            return
        self.entries[key] = entry
        if entry.kind == "worker":
            self.known_workers.add(entry.name)

    def check(self) -> None:
        """Check what needs more than one file, and what YAML names outside itself."""
        self.problems += self._key_problems()
        neighbours = Neighbours(self.known_workers, self._pipelines(), self._contracts)
        for entry in self.entries.values():
            if entry.spec is None:
                continue
            self.problems += _schema_problems(entry.document, entry.spec)
            self.problems += self._import_problems(entry.document, entry.spec)
            if isinstance(entry.spec, worker.WorkerSpec):
                self.problems += self._knowledge_problems(entry.document, entry.spec)
            if isinstance(entry.spec, router.RouterRules):
                self.problems += self._override_problems(entry.document, entry.spec)
            elif isinstance(entry.spec, pipeline.PipelineSpec):
                self.problems += check_pipeline(entry.document, entry.spec, neighbours)
            elif isinstance(entry.spec, orchestrator.OrchestratorSpec):
                others = {name: self._orchestrator(name) for kind, name in self.entries if kind == "orchestrator"}
                self.problems += check_orchestrator(
                    entry.document, entry.spec, self.known_workers, neighbours.pipelines, others
                )
            elif isinstance(entry.spec, schedule.ScheduleSpec):
                orchestrators = {name for kind, name in self.entries if kind == "orchestrator"}
                self.problems += check_schedule(
                    entry.document,
                    entry.spec,
                    self.known_workers,
                    neighbours.pipelines,
                    orchestrators,
                    lambda name: self._contracts(name, None).input,
                )

    def _key_problems(self) -> Iterator[Problem]:
        """Check what workers say of concurrency keys: those that share one must agree, and a field must be possible."""
        first: dict[str, tuple[str, int]] = {}
        workers = [entry for entry in self.entries.values() if isinstance(entry.spec, worker.WorkerSpec)]
        for entry in sorted(workers, key=lambda one: one.name):
            spec = entry.spec
            assert isinstance(spec, worker.WorkerSpec)
            if spec.concurrency_key is None:
                continue
            root, dot, field_name = spec.concurrency_key.partition(".")
            slots = spec.max_concurrent or 1
            if not dot:
                other, most = first.setdefault(root, (spec.name, slots))
                if most != slots:
                    message = f'worker {other} gives the key "{root}" {most} slots, and this one {slots}'
                    yield entry.document.problem("LQ117", message, ("concurrency_key",), hint="write the same number")
            elif not _may_have(spec.input_schema, field_name.partition(".")[0]):
                message = f"no payload has {spec.concurrency_key}: the input_schema does not allow it"
                yield entry.document.problem("LQ117", message, ("concurrency_key",))

    def _knowledge_problems(self, document: Document, spec: worker.WorkerSpec) -> Iterator[Problem]:
        """Warn of what a worker needs to know and is not here; the machine that runs it may have it."""
        needed = [
            (("knowledge_sources", at, "path"), one.path)
            for at, one in enumerate(spec.knowledge_sources)
            if one.required
        ]
        needed += [
            (("knowledge_silos", at, "path"), one.path)
            for at, one in enumerate(spec.knowledge_silos)
            if one.required and one.type == "folder" and one.permissions == "read"  # what it may write, it makes
        ]
        for place, path in needed:
            try:
                is_here = located(self.project, path).exists()
            except OSError:
                is_here = False
            if not is_here:
                hint = "paths are relative to the project; say required: false if tasks can do without"
                yield document.problem("LQ133", f"{path} is not there", place, hint=hint, severity="warning")

    def _orchestrator(self, name: str) -> OrchestratorSpec | None:
        found = self.entries["orchestrator", name].spec
        return found if isinstance(found, orchestrator.OrchestratorSpec) else None

    def _pipelines(self) -> dict[str, PipelineSpec | None]:
        found: dict[str, PipelineSpec | None] = dict.fromkeys(self.unread_pipelines)
        for (kind, name), entry in self.entries.items():
            if kind == "pipeline":
                found[name] = entry.spec if isinstance(entry.spec, pipeline.PipelineSpec) else None
        return found

    def _contracts(self, name: str, stage: StageSpec | None) -> Schemas:
        """Give a stage's contracts; what is broken there is reported at its own place, and checks nothing here."""
        entry = self.entries.get(("worker", name))
        spec = entry.spec if entry else None
        if not isinstance(spec, worker.WorkerSpec):
            return worker.Schemas(stage.input_schema, stage.output_schema) if stage else worker.Schemas(None, None)
        try:
            found = resolve_schemas(spec, stage, allow=self.allow)
        except ImportRefusedError:
            return worker.Schemas(None, None)
        return worker.Schemas(*(None if schema is None or schema_faults(schema) else schema for schema in found))

    def _override_problems(self, document: Document, rules: RouterRules) -> Iterator[Problem]:
        for name in rules.tier_overrides:
            if name not in self.known_workers and ("orchestrator", name) not in self.entries:
                path = ("tier_overrides", name)
                hint = suggest(name, self.known_workers)
                yield document.problem("LQ201", f'no worker is called "{name}"', path, key=True, hint=hint)

    def _import_problems(self, document: Document, spec: Spec) -> Iterator[Problem]:
        for path, name, expect in _dotted_names(spec):
            if not is_allowed(name, self.allow):
                package = name.partition(".")[0]
                hint = f'if you trust it, put import_allow = ["{package}"] into loomq.toml'
                message = f"{name} is outside the packages that YAML may import from"
                yield document.problem("LQ130", message, path, hint=hint)
            elif self.imports and expect is not None:
                try:
                    load_dotted(name, allow=self.allow, expect=expect)
                except ImportRefusedError as error:
                    yield document.problem("LQ131", error.message, path, hint=error.hint or "")

    def catalog(self) -> Catalog:
        """Give what was read, without files that have errors."""
        bad = {problem.file for problem in self.problems if problem.severity == "error"}
        good = {key: entry for key, entry in self.entries.items() if entry.spec and shown_name(entry.file) not in bad}

        def of(kind: str) -> dict[str, Any]:
            return {name: entry.spec for (its, name), entry in good.items() if its == kind}

        rules = next(iter(of("router").values()), None) or router.RouterRules()
        files = {key: entry.file for key, entry in good.items()}
        return Catalog(of("worker"), of("pipeline"), of("orchestrator"), of("schedule"), rules, files)


def _may_have(schema: dict[str, Any] | None, name: str) -> bool:
    """Say whether an object of a schema may have a field, as far as the schema says it plainly."""
    if schema is None or schema.get("additionalProperties") is not False or "patternProperties" in schema:
        return True
    return name in schema.get("properties", {}) or any(key in schema for key in ("$ref", "allOf", "anyOf", "oneOf"))


def _schema_holders(spec: Spec) -> Iterator[tuple[KeyPath, Any]]:
    yield (), spec
    if isinstance(spec, pipeline.PipelineSpec):
        for index, stage in enumerate(spec.pipeline_stages):
            yield ("pipeline_stages", index), stage


def _schema_problems(document: Document, spec: Spec) -> Iterator[Problem]:
    for above, holder in _schema_holders(spec):
        for side in ("input_schema", "output_schema"):
            schema = getattr(holder, side, None)
            for path, message in [] if schema is None else schema_faults(schema):
                yield document.problem("LQ132", message, (*above, side, *path))


def _dotted_names(spec: Spec) -> Iterator[tuple[KeyPath, str, type | None]]:
    """List the dotted names of a spec with their places, and what each must be if that can be told."""
    from pydantic import BaseModel

    for above, holder in _schema_holders(spec):
        for side in ("input_schema_ref", "output_schema_ref"):
            if getattr(holder, side, None) is not None:
                yield (*above, side), getattr(holder, side), BaseModel
    if isinstance(spec, worker.WorkerSpec):
        if spec.processing_backend is not None:
            yield ("processing_backend",), spec.processing_backend, ProcessingBackend
        tools = [(index, silo) for index, silo in enumerate(spec.knowledge_silos) if silo.type == "tool"]
        yield from ((("knowledge_silos", index, "provider"), silo.provider, ToolProvider) for index, silo in tools)
    if isinstance(spec, schedule.ScheduleSpec):
        for index, each in enumerate(spec.schedules):
            if each.expand_from is not None:
                yield ("schedules", index, "expand_from"), each.expand_from, None
