"""The doctor's look at files: the project, what it imports, where data goes, the embedded servers' wheels."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import loomq
from loomq.embedded.binaries import check_wheel
from loomq.embedded.client import services_for
from loomq.errors import EmbeddedServiceError
from loomq.services.doctor.check import Check
from loomq.settings import PROJECT_MARKERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loomq.catalog import Catalog
    from loomq.problems import Problem
    from loomq.settings import Settings

_SCHEMAS = Path(loomq.__file__).parent / "schemas"


def files(settings: Settings, catalog: Catalog, problems: Sequence[Problem]) -> Iterator[Check]:
    """Look at everything that needs no service."""
    yield _project(settings)
    yield _yaml(catalog, problems)
    yield from _editor_schemas(settings.project)
    yield from _imports(settings)
    yield _data(settings)
    yield from _wheels(settings)


def _project(settings: Settings) -> Check:
    markers = [marker for marker in PROJECT_MARKERS if (settings.project / marker).exists()]
    if not markers:
        return Check("project", "warn", f"{settings.project} is no project", "loomq init")
    return Check("project", "ok", f"{settings.project} (it has {', '.join(markers)})")


def _yaml(catalog: Catalog, problems: Sequence[Problem]) -> Check:
    counts = (
        ("worker", len(catalog.workers)),
        ("pipeline", len(catalog.pipelines)),
        ("orchestrator", len(catalog.orchestrators)),
        ("schedule", len(catalog.schedules)),
    )
    told = ", ".join(f"{number} {kind}{'' if number == 1 else 's'}" for kind, number in counts if number)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        return Check("files", "fail", f"{len(errors)} errors, the first: {errors[0].headline()}", "loomq validate")
    if problems:
        return Check("files", "warn", f"{told}; {len(problems)} warnings", "loomq validate")
    if not told:
        return Check("files", "warn", "no worker and no pipeline", "loomq new worker NAME")
    return Check("files", "ok", told)


def _editor_schemas(project: Path) -> Iterator[Check]:
    """Compare the project's own copies of the JSON Schemas, if it has any, with this version's."""
    folder = project / ".loomq" / "schemas"
    if not folder.is_dir():
        return
    old = [
        copy.name
        for copy in sorted(folder.glob("*.schema.json"))
        if not (_SCHEMAS / copy.name).is_file() or copy.read_bytes() != (_SCHEMAS / copy.name).read_bytes()
    ]
    if old:
        fix = "; ".join(f"loomq schema {name.partition('.')[0]} > {folder / name}" for name in old)
        yield Check("schemas", "warn", f"editors check against another version's schemas: {', '.join(old)}", fix)
    else:
        yield Check("schemas", "ok", f"editors check against {folder}")


def _imports(settings: Settings) -> Iterator[Check]:
    if not settings.import_allow:
        yield Check("import_allow", "ok", "YAML may import loomq.contrib only")
        return
    lost = [name for name in settings.import_allow if not _is_there(name)]
    if lost:
        fix = f"correct import_allow in {settings.project / 'loomq.toml'}, or: pip install {' '.join(lost)}"
        yield Check("import_allow", "warn", f"cannot be found: {', '.join(lost)}", fix)
    else:
        yield Check("import_allow", "ok", f"YAML may import loomq.contrib, {', '.join(settings.import_allow)}")


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _data(settings: Settings) -> Check:
    folder = services_for(settings).data_dir
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Check("data", "fail", f"{folder} cannot be written", "export LOOMQ_DATA=~/loomq-data")
    return Check("data", "ok", f"{folder}{'' if folder.exists() else ', made when it is needed'}")


def _wheels(settings: Settings) -> Iterator[Check]:
    needed = [name for name, url in (("postgres", settings.database_url), ("redis", settings.broker_url)) if not url]
    try:
        for name in needed:
            check_wheel(name)
    except EmbeddedServiceError as error:
        yield Check("embedded", "fail", error.message, "pip install 'loomq[embedded]'")
    else:
        if needed:
            yield Check("embedded", "ok", f"a private {' and '.join(needed)} can be run")
