"""The door to a project's private servers: where they are, start them, stop them, how they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import loomq
from loomq.embedded.binaries import check_wheel
from loomq.embedded.locks import is_file, is_locked, try_lock
from loomq.embedded.paths import SERVER_NAMES, EmbeddedServices, make_data_dir, make_socket_dir, services_for
from loomq.embedded.probes import answers, log_tail
from loomq.errors import EmbeddedServiceError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EmbeddedServices", "ensure", "services_for", "status", "stop"]

_TICK_S = 0.02
_MAX_LAUNCHES = 5
# The locks that keep the servers for this process, by the file they are on. They live as long as the process,
# and a forked child inherits them.
_held: dict[Path, int] = {}


def ensure(services: EmbeddedServices, *, timeout_s: float = 60, postgres: bool = True, redis: bool = True) -> None:
    """Return when the servers accept connections, and keep them for the life of this process.

    It costs a few milliseconds when they run. Call it again after a lost connection: it starts them anew if they
    are gone. A forked child keeps the servers too, without a call of its own.

    Args:
        services: From ``services_for``.
        timeout_s: How long to wait, in seconds; the very first start of a project makes its database.
        postgres: Whether Postgres is needed.
        redis: Whether Redis is needed.

    Raises:
        EmbeddedServiceError: They cannot be started, or not in time.
    """
    needed = [name for name, wanted in zip(SERVER_NAMES, (postgres, redis), strict=True) if wanted]
    if _is_held(services) and _all_answer(services, needed):
        return
    for name in needed:
        check_wheel(name)
    make_data_dir(services)
    begun, deadline = time.time(), time.monotonic() + timeout_s
    launches = 0
    try:
        _hold(services, deadline)
        while not _settled(services, needed, begun):
            if time.monotonic() > deadline:
                raise _late(services, needed, timeout_s)
            launches += _launch_if_none(services)
            if launches > _MAX_LAUNCHES:
                raise _failed(services, "the supervisor ended again and again", "supervisor")
            time.sleep(_TICK_S)
    except OSError as error:
        raise EmbeddedServiceError(
            f"the private servers in {services.data_dir} cannot be started: {error}",
            hint=f"is it another user's, or is the disk full? Look at: ls -l {services.data_dir}",
        ) from None


def stop(services: EmbeddedServices, *, timeout_s: float = 60) -> bool:
    """Stop the servers now, whoever uses them; a later ``ensure`` starts them again.

    Returns:
        Whether there was anything to stop.

    Raises:
        EmbeddedServiceError: They still run after ``timeout_s`` seconds.
    """
    held = _held.pop(services.clients_lock, None)
    if held is not None and is_file(held, services.clients_lock):
        os.close(held)
    deadline = time.monotonic() + timeout_s
    running = is_locked(services.supervisor_lock)
    told: int | None = None
    while is_locked(services.supervisor_lock):
        pid = _read_status(services).get("pid")
        if told is None and isinstance(pid, int) and _is_alive(pid):
            os.kill(pid, signal.SIGTERM)
            told = pid
        elif told is not None and not _is_alive(told):
            # Another client has started the next one already.
            break
        if time.monotonic() > deadline:
            raise _failed(services, f"the supervisor did not stop within {timeout_s:g} s", "supervisor")
        time.sleep(_TICK_S)
    return running


def status(services: EmbeddedServices) -> dict[str, Any]:
    """Describe the servers as they are now, starting nothing.

    Returns:
        A JSON object: ``state`` (``running``, ``starting``, ``stopping``, ``failed`` or ``stopped``), ``pid`` of the
        supervisor or ``None``, ``servers`` (for each: ``pid``, ``answers``, ``restarts``), ``error``, ``data_dir``,
        ``socket_dir``, ``database_url``, ``broker_url``.
    """
    said = _read_status(services)
    alive = is_locked(services.supervisor_lock)
    servers = {
        name: {
            "pid": server["pid"],
            "answers": answers(name, services.socket(name)),
            "restarts": server["restarts"],
        }
        for name, server in (said.get("servers", {}) if alive else {}).items()
    }
    state = said.get("state", "stopped")
    if alive and state != "stopping":
        state = "running" if servers and all(server["answers"] for server in servers.values()) else "starting"
    elif not alive and state != "failed":
        state = "stopped"
    return {
        "state": state,
        "pid": said.get("pid") if alive else None,
        "servers": servers,
        "error": said.get("error"),
        "data_dir": str(services.data_dir),
        "socket_dir": str(services.socket_dir),
        "database_url": services.database_url,
        "broker_url": services.broker_url,
    }


def _is_held(services: EmbeddedServices) -> bool:
    """Say whether this process, or the one it was forked from, keeps the servers.

    A program that turns itself into a daemon may have closed the descriptor, and the folder may have been removed.
    """
    held = _held.get(services.clients_lock)
    return held is not None and is_file(held, services.clients_lock)


def _hold(services: EmbeddedServices, deadline: float) -> None:
    """Take the lock that keeps the servers; waits while a supervisor is just stopping them."""
    while not _is_held(services):
        lock = try_lock(services.clients_lock, shared=True)
        if lock is not None:
            _held[services.clients_lock] = lock
        elif time.monotonic() > deadline:
            raise _failed(services, "the supervisor does not end", "supervisor")
        else:
            time.sleep(_TICK_S)


def _settled(services: EmbeddedServices, needed: Sequence[str], begun: float) -> bool:
    """Ask for the servers, and say whether a living supervisor has them all ready.

    Raises:
        EmbeddedServiceError: A supervisor gave up after ``begun``.
    """
    for name in needed:
        services.wanted(name).touch()
    said = _read_status(services)
    if said.get("state") == "failed" and said.get("at", 0.0) >= begun:
        error = said["error"]
        raise EmbeddedServiceError(
            error["message"], hint="\n  ".join([error.get("hint", ""), _tail(services, error["log"])]).strip()
        )
    ready = all(said.get("servers", {}).get(name, {}).get("ready") for name in needed)
    # A supervisor that was killed leaves its last word behind, and perhaps servers that the next one will end.
    living = said.get("state") == "running" and _is_alive(said["pid"])
    return ready and living and is_locked(services.supervisor_lock) and _all_answer(services, needed)


def _launch_if_none(services: EmbeddedServices) -> int:
    """Start the supervisor if there is none; give the number started.

    It gets ``supervisor.lock`` from us, locked, so there is never a second one.
    """
    lock = try_lock(services.supervisor_lock, shared=False)
    if lock is None:
        return 0
    try:
        make_socket_dir(services)
        services.status_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "loomq.embedded.supervisor"]
        options = [
            str(services.data_dir),
            str(services.socket_dir),
            "--linger",
            str(services.linger_s),
            "--lock-fd",
            str(lock),
        ]
        # The supervisor finds what we find, even if loomq is run from a source tree.
        path = [*filter(None, sys.path), str(Path(loomq.__file__).parents[1])]
        with services.log("supervisor").open("ab") as log:
            done = subprocess.run(  # noqa: S603  (a command of ours)
                [*command, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                pass_fds=[lock],
                start_new_session=True,
                check=False,
            )
    finally:
        os.close(lock)
    if done.returncode:
        raise _failed(services, f"the supervisor ended with exit status {done.returncode}", "supervisor")
    return 1


def _all_answer(services: EmbeddedServices, needed: Sequence[str]) -> bool:
    return all(answers(name, services.socket(name)) for name in needed)


def _read_status(services: EmbeddedServices) -> dict[str, Any]:
    try:
        found = json.loads(services.status_file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _late(services: EmbeddedServices, needed: Sequence[str], timeout_s: float) -> EmbeddedServiceError:
    silent = [name for name in needed if not answers(name, services.socket(name))] or list(needed)
    pid = _read_status(services).get("pid")
    if isinstance(pid, int) and not _is_alive(pid):
        reason = "their supervisor holds the lock but is not on this machine, or not in this container"
    else:
        reason = f"{' and '.join(silent)} did not accept connections within {timeout_s:g} s"
    return _failed(services, reason, silent[0])


def _failed(services: EmbeddedServices, reason: str, log: str) -> EmbeddedServiceError:
    return EmbeddedServiceError(f"private servers of {services.data_dir}: {reason}", hint=_tail(services, log))


def _tail(services: EmbeddedServices, log: str) -> str:
    """Quote the end of the log that tells why."""
    path = services.log(log)
    lines = log_tail(path).splitlines()
    return "\n    ".join([f"the end of {path}:", *(lines or ["(nothing)"])])
