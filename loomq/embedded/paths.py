"""Where the private servers of a project live, and as whom they run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loomq.errors import EmbeddedServiceError

if TYPE_CHECKING:
    from loomq.settings import Settings

# Fixed and not TMPDIR: processes with different environments must meet in the same folder.
_SOCKET_ROOT = Path("/tmp")  # noqa: S108  (the folders below are made private, and checked to be)
_ROOT_STATE = Path("/var/lib/loomq")
SERVER_NAMES = ("postgres", "redis")


@dataclass(frozen=True)
class EmbeddedServices:
    """The private servers of one project: where they are, whether they run or not.

    Args:
        data_dir: Absolute; holds the servers' data, logs, locks and status.
        socket_dir: Holds both sockets; short, since a socket's path may have 107 bytes (103 on macOS).
        linger_s: How long the servers stay after the last client has gone, in seconds.
    """

    data_dir: Path
    socket_dir: Path
    linger_s: float = 3.0

    @property
    def database_url(self) -> str:
        """The Postgres URL, as SQLAlchemy takes it."""
        return f"postgresql+psycopg://loomq@/loomq?host={self.socket_dir}"

    @property
    def broker_url(self) -> str:
        """The Redis URL, as kombu and Celery take it."""
        return f"redis+socket://{self.socket('redis')}"

    @property
    def redis_url(self) -> str:
        """The Redis URL, as redis-py takes it."""
        return f"unix://{self.socket('redis')}"

    @property
    def clients_lock(self) -> Path:
        """The file that every client holds a shared lock on."""
        return self.data_dir / "clients.lock"

    @property
    def supervisor_lock(self) -> Path:
        """The file that the one supervisor holds an exclusive lock on."""
        return self.data_dir / "supervisor.lock"

    @property
    def status_file(self) -> Path:
        """Where the supervisor says how its servers are."""
        return self.data_dir / "status.json"

    def socket(self, name: str) -> Path:
        """Give the socket of ``postgres`` or ``redis``."""
        return self.socket_dir / {"postgres": ".s.PGSQL.5432", "redis": "redis.sock"}[name]

    def home(self, name: str) -> Path:
        """Give the folder that a server owns: it writes nowhere else but to its socket and its log."""
        return self.data_dir / name

    def log(self, name: str) -> Path:
        """Give the log of ``postgres``, ``redis`` or ``supervisor``."""
        return self.data_dir / "logs" / f"{name}.log"

    def wanted(self, name: str) -> Path:
        """Give the file by which a client asks for a server; removed when the last client has gone."""
        return self.data_dir / f"{name}.wanted"


@dataclass(frozen=True)
class Account:
    """The user that the servers run as; ``foreign`` if that is not the user who asks."""

    uid: int
    gid: int
    foreign: bool


def services_for(settings: Settings) -> EmbeddedServices:
    """Say where a project's private servers are, without opening or making anything.

    Every process of the project gets the same answer: it follows from ``settings.data`` (a relative one counts
    from the project), else from the project's path and the user.
    """
    if settings.data is not None:
        data_dir = (settings.project / settings.data.expanduser()).resolve()
    else:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", settings.project.name)[:40] or "project"
        data_dir = (_state_dir() / f"{name}-{_hash12(settings.project)}").resolve()
    socket_dir = _SOCKET_ROOT / f"loomq-{os.geteuid()}" / _hash12(data_dir)
    return EmbeddedServices(data_dir, socket_dir, settings.embedded_linger_seconds)


def server_account() -> Account:
    """Choose who runs the servers: oneself, or ``nobody`` for root, as whom Postgres refuses to run.

    Raises:
        EmbeddedServiceError: Root on a system without the user ``nobody``.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), foreign=False)
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedServiceError(
            "Postgres refuses to run as root, and this system has no user 'nobody' to run it as",
            hint="run loomq as a normal user, or set LOOMQ_DATABASE_URL and LOOMQ_BROKER_URL",
        ) from None
    return Account(entry.pw_uid, entry.pw_gid, foreign=True)


def make_data_dir(services: EmbeddedServices) -> None:
    """Make the data folder, and the one for the logs in it.

    Raises:
        EmbeddedServiceError: It cannot be made, is not writable, or is closed to the servers' user.
    """
    account = server_account()
    try:
        services.data_dir.mkdir(mode=0o711 if account.foreign else 0o700, parents=True, exist_ok=True)
        services.log("supervisor").parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unusable(services.data_dir, error.strerror or str(error)) from None
    if not os.access(services.data_dir, os.W_OK | os.X_OK):
        raise _unusable(services.data_dir, f"it is not writable by uid {os.geteuid()}")
    closed = closed_to(account, services.data_dir)
    if closed is not None:
        raise EmbeddedServiceError(
            f"the private servers cannot reach {services.data_dir}: as root they run as the user 'nobody', "
            f"who may not enter {closed}",
            hint=f"set LOOMQ_DATA to a folder that others may enter, or run: chmod o+x {closed}",
        )


def make_socket_dir(services: EmbeddedServices) -> None:
    """Make the folder of the sockets; the caller holds the supervisor's lock, so that none removes it.

    Raises:
        EmbeddedServiceError: It cannot be made, or somebody else has put something in its place.
    """
    account = server_account()
    try:
        _make_private(services.socket_dir.parent, os.geteuid(), 0o711 if account.foreign else 0o700)
        _make_private(services.socket_dir, account.uid, 0o700)
    except OSError as error:
        raise EmbeddedServiceError(
            f"the folder of the sockets, {services.socket_dir}, cannot be made: {error.strerror or error}",
            hint=f"look at: ls -ld {services.socket_dir.parent}",
        ) from None


def make_home(services: EmbeddedServices, name: str, account: Account) -> Path:
    """Make the folder that a server owns.

    Raises:
        EmbeddedServiceError: It is there and belongs to another user.
    """
    home = services.home(name)
    try:
        home.mkdir(mode=0o700)
        if account.foreign:
            os.chown(home, account.uid, account.gid)
    except FileExistsError:
        owner = home.lstat().st_uid
        if owner != account.uid:
            raise EmbeddedServiceError(
                f"{home} belongs to uid {owner}, but the private {name} would run as uid {account.uid}",
                hint="run loomq as the user who made it, or set LOOMQ_DATA to another folder",
            ) from None
    except OSError as error:
        raise _unusable(home, error.strerror or str(error)) from None
    return home


def closed_to(account: Account, path: Path) -> Path | None:
    """Find the first folder on the way to ``path``, itself included, that the servers' user may not enter."""
    if not account.foreign:
        return None
    for folder in (*reversed(path.parents), path):
        found = folder.stat()
        if found.st_uid == account.uid:
            needed = stat.S_IXUSR
        elif found.st_gid == account.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not found.st_mode & needed:
            return folder
    return None


def _make_private(folder: Path, owner: int, mode: int) -> None:
    """Make a folder under the shared ``/tmp``, or refuse the one that somebody else has put there."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=mode)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
        folder.chmod(mode)
        if owner != os.geteuid():
            os.chown(folder, owner, -1)
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or stat.S_IMODE(found.st_mode) & 0o022:
        raise EmbeddedServiceError(
            f"{folder} is not a private folder of uid {owner}: it belongs to uid {found.st_uid} "
            f"with mode {stat.filemode(found.st_mode)}",
            hint=f"if nobody on this machine needs it, remove it: rm -rf {folder}",
        )


def _unusable(folder: Path, reason: str) -> EmbeddedServiceError:
    return EmbeddedServiceError(
        f"the private servers cannot keep their data in {folder}: {reason}",
        hint="set LOOMQ_DATA to a folder that you may write to",
    )


def _state_dir() -> Path:
    if os.geteuid() == 0:
        return _ROOT_STATE
    given = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification: a relative value is to be ignored.
    return (Path(given) if given.startswith("/") else Path.home() / ".local" / "state") / "loomq"


def _hash12(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
