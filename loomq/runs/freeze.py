"""Freeze what a goal runs from: the specs of a catalog as they are now, their schema references resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loomq.catalog import resolve_schemas
from loomq.orchestrator.manifest import ORCHESTRATOR_INPUT, Frozen, Offer, context_schema
from loomq.orchestrator.spec import AvailableWorker
from loomq.runs.snapshot import contained, snapshot_of_orchestrator, snapshot_of_pipeline, snapshot_of_worker, within

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loomq.catalog import Catalog
    from loomq.orchestrator.spec import OrchestratorSpec
    from loomq.pipelines.spec import PipelineSpec, StageSpec
    from loomq.workers.spec import WorkerSpec


def freeze_worker(catalog: Catalog, name: str, *, allow: Sequence[str]) -> dict[str, Any]:
    """Freeze one worker of the catalog.

    Args:
        allow: ``Settings.import_allow``.

    Raises:
        ImportRefusedError: A schema reference is not allowed or not a Pydantic model.
    """
    return snapshot_of_worker(_worker(catalog.workers[name], allow))


def freeze_pipeline(catalog: Catalog, name: str, *, allow: Sequence[str]) -> dict[str, Any]:
    """Freeze one pipeline of the catalog with the pipelines and workers that it names; else as ``freeze_worker``."""
    pipelines, workers = {}, {}
    for each in contained(name, catalog.pipelines):
        pipelines[each] = _pipeline(catalog, each, allow)
        workers.update({key: _worker(catalog.workers[key], allow) for key in pipelines[each].worker_types})
    return snapshot_of_pipeline(name, pipelines, workers)


def _pipeline(catalog: Catalog, name: str, allow: Sequence[str]) -> PipelineSpec:
    spec = catalog.pipelines[name]
    stages = tuple(_stage(stage, catalog, allow) for stage in spec.pipeline_stages)
    return spec.model_copy(update={"pipeline_stages": stages})


def freeze_orchestrator(catalog: Catalog, name: str, *, allow: Sequence[str]) -> dict[str, Any]:
    """Freeze one orchestrator of the catalog with all that its plans may use; else as ``freeze_worker``."""
    orchestrators: dict[str, Frozen] = {}
    todo = [name]
    while todo:
        each = todo.pop()
        spec = catalog.orchestrators[each]
        orchestrators[each] = Frozen(spec=spec, offers=tuple(_offers(spec, catalog, allow)))
        todo += [one for one in orchestrators[each].of_kind("orchestrator") if one not in orchestrators]
    used = within(list(orchestrators.values()), orchestrators, catalog.pipelines)
    pipelines = {each: _pipeline(catalog, each, allow) for each in sorted(used.pipelines)}
    workers = {each: _worker(catalog.workers[each], allow) for each in sorted(used.workers)}
    return snapshot_of_orchestrator(orchestrators[name], orchestrators, pipelines, workers)


def freeze(catalog: Catalog, name: str, *, allow: Sequence[str]) -> dict[str, Any]:
    """Freeze what a goal names as its pipeline: a pipeline, or an orchestrator; else as ``freeze_worker``."""
    known = freeze_pipeline if name in catalog.pipelines else freeze_orchestrator
    return known(catalog, name, allow=allow)


def _offers(spec: OrchestratorSpec, catalog: Catalog, allow: Sequence[str]) -> Iterator[Offer]:
    """List what an orchestrator's plans may use; a worker wins over a pipeline of the same name."""
    named = spec.named or [AvailableWorker(name=name) for name in sorted(catalog.workers)]
    for one in named:
        if one.name in catalog.workers:
            yield _offer_of_worker(one, _worker(catalog.workers[one.name], allow))
        elif one.name in catalog.pipelines:
            inner = catalog.pipelines[one.name]
            yield Offer(
                name=one.name,
                kind="pipeline",
                description=one.description or inner.description,
                input_schema=one.input_schema or context_schema(inner),
                own_schema=inner.input_schema if one.input_schema else None,
                output_keys=tuple(inner.output or [stage.name for stage in inner.pipeline_stages]),
            )
        else:
            yield Offer(
                name=one.name,
                kind="orchestrator",
                description=one.description or catalog.orchestrators[one.name].description,
                input_schema=one.input_schema or ORCHESTRATOR_INPUT,
                own_schema=ORCHESTRATOR_INPUT if one.input_schema else None,
                output_keys=("succeeded", "failed", "metadata", "synthesis"),
            )


def _offer_of_worker(one: AvailableWorker, worker: WorkerSpec) -> Offer:
    tier = str(one.default_model_tier or worker.tier)
    return Offer(
        name=one.name,
        description=one.description or worker.description,
        input_schema=one.input_schema or worker.input_schema,
        own_schema=worker.input_schema if one.input_schema else None,
        output_keys=tuple((worker.output_schema or {}).get("properties", ())),
        tier=tier,
        tiers=tuple(dict.fromkeys([tier, str(worker.tier), *map(str, one.tiers)])),
    )


def _stage(stage: StageSpec, catalog: Catalog, allow: Sequence[str]) -> StageSpec:
    if stage.worker_type is None:
        return stage
    return stage.model_copy(update=_resolved(catalog.workers[stage.worker_type], stage, allow))


def _worker(worker: WorkerSpec, allow: Sequence[str]) -> WorkerSpec:
    return worker.model_copy(update=_resolved(worker, None, allow))


def _resolved(worker: WorkerSpec, stage: StageSpec | None, allow: Sequence[str]) -> dict[str, Any]:
    schemas = resolve_schemas(worker, stage, allow=allow)
    return {
        "input_schema": schemas.input,
        "output_schema": schemas.output,
        "input_schema_ref": None,
        "output_schema_ref": None,
    }
