"""The doctor: everything that goals need, looked at within two seconds, each fault with what repairs it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from loomq import __version__
from loomq.errors import ConfigError
from loomq.services.doctor.check import PATIENCE_S, Asked, Check, Diagnosis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

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
        checks += _project(settings, begun)
    return Diagnosis(tuple(checks), round((time.monotonic() - begun) * 1000))


def _project(settings: Settings, begun: float) -> list[Check]:
    from concurrent.futures import Future

    # Whatever has to be waited for is asked first, and gets what the files say when that is known. Each imports what
    # it needs in its own thread: the libraries of the services take longer than the services.
    read: Future[Catalog] = Future()
    asked = [
        Asked("models", lambda: _models(settings, read), fix="correct the providers' addresses"),
        Asked("postgres", lambda: _database(settings, read), fix="start it anew, or correct LOOMQ_DATABASE_URL"),
        Asked("broker", lambda: _broker(settings), fix="start it anew, or correct LOOMQ_BROKER_URL"),
    ]
    from loomq.catalog import load_catalog
    from loomq.registry import project_on_path
    from loomq.services.doctor.files import files

    project_on_path(settings.project)
    catalog, problems = load_catalog(settings, imports=True)
    read.set_result(catalog)
    found = list(files(settings, catalog, problems))
    models, database, broker = [one.answer(begun + PATIENCE_S) for one in asked]
    return [*found, *database, *broker, *models]


def _models(settings: Settings, catalog: Future[Catalog]) -> Iterable[Check]:
    from loomq.services.doctor.models import models

    return models(settings, catalog.result)


def _database(settings: Settings, catalog: Future[Catalog]) -> Iterable[Check]:
    from loomq.configs import router_of
    from loomq.services.doctor.services import database

    return database(settings, lambda: router_of(catalog.result()).queues_in_use)


def _broker(settings: Settings) -> Iterable[Check]:
    from loomq.services.doctor.services import broker

    return broker(settings)


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
