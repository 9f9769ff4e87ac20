"""Freeze what a goal runs from: the specs of a catalog as they are now, their schema references resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loomq.catalog import resolve_schemas
from loomq.runs.plan import contained, snapshot_of_pipeline, snapshot_of_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loomq.catalog import Catalog
    from loomq.pipelines.spec import StageSpec
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
        spec = catalog.pipelines[each]
        stages = tuple(_stage(stage, catalog, allow) for stage in spec.pipeline_stages)
        pipelines[each] = spec.model_copy(update={"pipeline_stages": stages})
        workers.update({key: _worker(catalog.workers[key], allow) for key in spec.worker_types})
    return snapshot_of_pipeline(name, pipelines, workers)


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
