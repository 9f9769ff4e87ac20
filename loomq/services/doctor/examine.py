"""The doctor: everything that goals need, looked at within two seconds, each fault with what repairs it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from loomq import __version__
from loomq.errors import ConfigError
from loomq.services.doctor.check import PATIENCE_S, Asked, Check, Diagnosis

if TYPE_CHECKING:
    from collections.abc import Callable

    from loomq.catalog import Catalog
    from loomq.settings import Settings

def examine(load: Callable[[], Settings]) -> Diagnosis:
    """Look at everything; embedded services are not started.

    Args:
        load: Reads the settings, which may be what is wrong.
    """
    begun = time.monotonic()
    checks = [_python(), *_packages()]
    try:
        settings = load()
    except ConfigError as error:
        checks.append(Check("settings", "fail", error.message, error.hint or ""))
    else:
        checks += _project(settings)
    return Diagnosis(tuple(checks), round((time.monotonic() - begun) * 1000))


def _project(settings: Settings) -> list[Check]:
    from loomq.catalog import load_catalog
    from loomq.registry import project_on_path
    from loomq.services.doctor import files, models, services

    project_on_path(settings.project)
    catalog, problems = load_catalog(settings, imports=True)
    # Models take the longest, so they are asked first, beside everything else.
    of_models = Asked("models", lambda: models.models(settings, catalog))
    of_services = Asked("services", lambda: services.services(settings, _router_queues(catalog)))
    found = list(files.files(settings, catalog, problems))
    until = time.monotonic() + PATIENCE_S
    return [*found, *of_services.answer(until), *of_models.answer(until)]


def _router_queues(catalog: Catalog) -> tuple[str, ...]:
    from loomq.loom import router_of

    return router_of(catalog).queues_in_use


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "ok", f"Python {found}, loomq {__version__}, {sys.executable}")


def _packages() -> list[Check]:
    """Compare what is installed with what this version of loomq asks for."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    missing, shown = [], []
    for line in requires("loomq") or []:
        need = Requirement(line)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            missing.append(f"{need.name} is not installed")
            continue
        if not need.specifier.contains(found, prereleases=True):
            missing.append(f"{need.name} {found} is not {need.specifier}")
        if need.name in {"celery", "kombu", "sqlalchemy", "psycopg", "redis", "flower"}:
            shown.append(f"{need.name} {found}")
    if missing:
        return [Check("packages", "fail", "; ".join(missing), f"pip install --upgrade 'loomq=={__version__}'")]
    return [Check("packages", "ok", ", ".join(shown))]
