"""The kinds of YAML files: what each may say, where it stands, and how it is told from the others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from loomq.orchestrator import spec as orchestrator
from loomq.pipelines import spec as pipeline
from loomq.queues import spec as router
from loomq.schedules import spec as schedule
from loomq.workers import spec as worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loomq.config import NotYet, Spec


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of file.

    Args:
        model: What it may say.
        not_yet: What it may say and this version does not do.
        folder: Where files of this kind stand in a project.
        signs: Top-level keys that only this kind has, for files that stand elsewhere.
    """

    model: type[Spec]
    not_yet: tuple[NotYet, ...]
    folder: str
    signs: frozenset[str]


# The order decides for files outside the folders: an orchestrator also stands in pipelines/.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "orchestrator": Kind(
            orchestrator.OrchestratorSpec, orchestrator.NOT_YET, "pipelines", frozenset({"available_workers"})
        ),
        "pipeline": Kind(pipeline.PipelineSpec, pipeline.NOT_YET, "pipelines", frozenset({"pipeline_stages"})),
        "schedule": Kind(schedule.ScheduleSpec, schedule.NOT_YET, "schedules", frozenset({"schedules"})),
        "router": Kind(router.RouterRules, router.NOT_YET, "deploy", frozenset({"tier_overrides", "rate_limits"})),
        "worker": Kind(
            worker.WorkerSpec,
            worker.NOT_YET,
            "workers",
            frozenset({"worker_kind", "processing_backend", "system_prompt", "reset_after_task"}),
        ),
    }
)
ROUTER_FILE = "router_rules.yaml"
_BY_FOLDER = {"workers": "worker", "pipelines": "pipeline", "schedules": "schedule"}


def find_files(path: Path) -> list[Path]:
    """List the YAML files that a path means: itself, a project's folders, or what stands in a folder.

    Args:
        path: A file, a folder with ``workers/``, ``pipelines/`` and so on in it, or a folder of files.
    """
    if not path.is_dir():
        return [path]
    folders = [path / name for name in ("workers", "pipelines", "schedules") if (path / name).is_dir()]
    rules = path / "deploy" / ROUTER_FILE
    if folders or rules.is_file():
        return [file for folder in folders for file in _yaml_files(folder)] + [rules] * rules.is_file()
    return _yaml_files(path)


def kind_of(file: Path, value: Any) -> str | None:
    """Tell a file's kind by its folder, else by the keys that only one kind has; None if neither says it.

    Args:
        file: Where it stands.
        value: What it says.
    """
    folder = file.resolve().parent.name
    keys = value.keys() if isinstance(value, dict) else set()
    orchestrates = "available_workers" in keys or ("kind" in keys and value["kind"] == "orchestrator")
    if orchestrates and folder != "workers":
        return "orchestrator"
    if file.name == ROUTER_FILE:
        return "router"
    if folder in _BY_FOLDER:
        return _BY_FOLDER[folder]
    return next((kind for kind, each in KINDS.items() if each.signs & keys), None)


def shown_name(file: Path) -> str:
    """Name a file as the user would: from the current folder if it stands below it."""
    path = Path(os.path.abspath(file))  # noqa: PTH100  (resolve would follow links away from the name given)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _yaml_files(folder: Path) -> list[Path]:
    """List a folder's YAML files; a name that begins with . or _ is a draft or a template."""
    found = (file for file in folder.iterdir() if file.suffix in (".yaml", ".yml") and file.name[0] not in "._")
    return sorted(file for file in found if file.is_file())
