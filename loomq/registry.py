"""The one loader for dotted names in YAML: allowed first, imported second, checked third."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import TYPE_CHECKING, Any

from loomq.errors import ImportRefusedError, LoomqSignal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ALWAYS_ALLOWED = ("loomq.contrib",)


def is_allowed(name: str, allow: Sequence[str]) -> bool:
    """Say whether a dotted name may be imported, without importing anything.

    Args:
        name: ``package.module.Class`` or ``package.module.function``.
        allow: Packages; each stands for itself and everything below it, besides ``loomq.contrib``.
    """
    prefixes = (*ALWAYS_ALLOWED, *allow)
    return _is_dotted(name) and any(prefix and f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)


def load_dotted(name: str, *, allow: Sequence[str], expect: type | None = None) -> Any:
    """Import the class or function that a dotted name in YAML means.

    Importing runs code, so the allow-list is asked first; what an allowed module merely imported from elsewhere
    (``my_pkg.system``) is refused as well.

    Args:
        name: ``package.module.Class`` or ``package.module.function``.
        allow: Packages that names may come from, as in ``Settings.import_allow``.
        expect: The base class that the name must be a subclass of.

    Raises:
        ImportRefusedError: The name is outside the allow-list, cannot be imported (``__cause__`` says why), is not
            there, or is not what was expected.
    """
    if not _is_dotted(name):
        raise ImportRefusedError(
            f"{name!r} is not a dotted name",
            hint="write it as package.module.Class",
        )
    if not is_allowed(name, allow):
        raise _outside(name, name)
    module_name, _, attribute = name.rpartition(".")
    module = _import_module(name, module_name)
    try:
        found = getattr(module, attribute)
    except AttributeError as error:
        raise ImportRefusedError(
            f"module {module_name} has no {attribute!r}",
            hint=f"define {attribute} at the top level of {module_name}, or correct the name",
        ) from error
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        raise ImportRefusedError(f"{name} is a {type(found).__name__}, not a class or function")
    home = f"{found.__module__}.{found.__name__}"
    if not is_allowed(home, allow):
        raise _outside(name, home)
    if expect is not None and not (inspect.isclass(found) and issubclass(found, expect)):
        raise ImportRefusedError(
            f"{name} is not a {expect.__name__}",
            hint=f"make it a subclass of {expect.__module__}.{expect.__qualname__}",
        )
    return found


def project_on_path(project: Path) -> None:
    """Make the project's own packages importable; a second call changes nothing.

    The folder goes behind everything installed, so that no file of a project can stand in for the standard library.
    """
    entry = str(project.resolve())
    if entry not in sys.path:
        sys.path.append(entry)
        importlib.invalidate_caches()


def _is_dotted(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)


def _import_module(name: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except LoomqSignal:
        raise
    except (Exception, SystemExit) as error:
        raise ImportRefusedError(
            f"{name} cannot be imported: {type(error).__name__}: {error}",
            hint=f"try it alone: python -c 'import {module_name}' in the project's folder",
        ) from error


def _outside(name: str, home: str) -> ImportRefusedError:
    package = home.partition(".")[0]
    what = name if home == name else f"{name} (which is {home})"
    return ImportRefusedError(
        f"{what} is outside the packages that YAML may import from",
        hint=f'if you trust it, set LOOMQ_IMPORT_ALLOW={package} or import_allow = ["{package}"] in loomq.toml',
    )
