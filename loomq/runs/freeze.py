"""Freeze what a goal runs from: the specs of a catalog as they are now, their schema references resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loomq.catalog import resolve_schemas
from loomq.runs.plan import snapshot_of_pipeline, snapshot_of_worker, worker_of

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
    """Freeze one pipeline of the catalog with the workers that it names; arguments and errors as ``freeze_worker``."""
    spec = catalog.pipelines[name]
    workers = {key: catalog.workers[key] for key in spec.worker_types}
    stages = tuple(_stage(stage, worker_of(stage, workers), allow) for stage in spec.pipeline_stages)
    frozen = spec.model_copy(update={"pipeline_stages": stages})
    return snapshot_of_pipeline(frozen, {key: _worker(worker, allow) for key, worker in workers.items()})


def _stage(stage: StageSpec, worker: WorkerSpec, allow: Sequence[str]) -> StageSpec:
    return stage.model_copy(update=_resolved(worker, stage, allow))


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
