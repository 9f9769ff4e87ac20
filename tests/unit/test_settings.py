"""Settings: where they come from, and which services they refuse."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from loomq.errors import ConfigError
from loomq.settings import Settings, find_project, refuse_unprotected


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No variable of whoever runs the tests, and a project of its own."""
    for name in [name for name in os.environ if name.startswith("LOOMQ_")]:
        monkeypatch.delenv(name)
    (tmp_path / "loomq.toml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _toml(folder, text):
    (folder / "loomq.toml").write_text(text)


def test_a_variable_wins_over_the_file_and_that_over_the_default(clean, monkeypatch):
    assert Settings.load().max_deliveries == 5
    _toml(clean, "max_deliveries = 7\nlease_seconds = 20\n")
    assert Settings.load().max_deliveries == 7
    monkeypatch.setenv("LOOMQ_MAX_DELIVERIES", "9")
    found = Settings.load()
    assert (found.max_deliveries, found.lease_seconds) == (9, 20)
    assert Settings.load(max_deliveries=3).max_deliveries == 3
    assert Settings.load(max_deliveries=None).max_deliveries == 9


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("LOOMQ_DATABASE_URL", "")
    monkeypatch.setenv("LOOMQ_MAX_DELIVERIES", "")
    found = Settings.load()
    assert (found.database_url, found.max_deliveries) == (None, 5)


@pytest.mark.parametrize(("said", "means"), [("a", ("a",)), ("a, b ,", ("a", "b")), (" ", ())])
def test_packages_are_a_list_with_commas(clean, monkeypatch, said, means):
    monkeypatch.setenv("LOOMQ_IMPORT_ALLOW", said)
    assert Settings.load().import_allow == means


def test_packages_are_a_list_in_the_file(clean):
    _toml(clean, 'import_allow = ["a", "b.c"]\n')
    assert Settings.load().import_allow == ("a", "b.c")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease_seconds", "soon"),
        ("lease_seconds", "0.1"),
        ("max_deliveries", "0"),
        ("window_min", "1.5"),
        ("insecure", "perhaps"),
        ("max_inline_bytes", "1"),
        ("heartbeat_seconds", "nan"),
        ("sweep_seconds", "-1"),
    ],
)
def test_a_bad_value_names_its_field(monkeypatch, name, value):
    monkeypatch.setenv(f"LOOMQ_{name.upper()}", value)
    with pytest.raises(ConfigError, match=f"{name}: ") as caught:
        Settings.load()
    assert "LOOMQ_" in caught.value.hint


def test_a_bad_value_in_the_file_names_its_field(clean):
    _toml(clean, 'grace_seconds = "long"\nnmae = 1\n')
    with pytest.raises(ConfigError, match=r"grace_seconds: .*; nmae: |nmae: .*; grace_seconds: "):
        Settings.load()


def test_a_file_that_is_no_toml_is_named(clean):
    _toml(clean, "this is = = not toml")
    with pytest.raises(ConfigError, match=r"loomq\.toml cannot be read"):
        Settings.load()


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Settings.load().lease_seconds = 3


@pytest.mark.parametrize("marker", ["loomq.toml", "workers", "pyproject.toml"])
def test_a_project_is_the_nearest_folder_upward_with_a_marker(clean, monkeypatch, marker):
    project, below = clean / "outer" / "project", clean / "outer" / "project" / "a" / "b"
    below.mkdir(parents=True)
    (project / marker).mkdir()
    assert find_project(below) == project
    assert find_project(clean / "outer") == clean
    monkeypatch.chdir(below)
    assert Settings.load().project == project


def test_a_project_may_be_named(clean, monkeypatch):
    other = clean / "other"
    other.mkdir()
    _toml(other, "max_deliveries = 8\n")
    monkeypatch.setenv("LOOMQ_PROJECT", "other")
    found = Settings.load()
    assert (found.project, found.max_deliveries) == (other, 8)
    named = Settings.load(project=clean)
    assert (named.project, named.max_deliveries) == (clean, 5)
    assert named.workers_dir == clean / "workers"
    assert named.router_rules_path == clean / "deploy" / "router_rules.yaml"


def test_a_folder_without_a_project_is_one_itself():
    assert find_project(Path("/proc/self")) == Path("/proc/self").resolve()


ALLOWED = [
    "redis://localhost:6379/0",
    "redis://LOCALHOST/0",
    "redis://127.0.0.1:6379",
    "redis://127.8.9.1",
    "redis://[::1]:6379/0",
    "redis+socket:///run/redis.sock?virtual_host=3",
    "unix:///run/redis.sock",
    "amqp://guest:guest@localhost//",
    "postgresql:///db",
    "postgresql://user@/db?host=/var/run/postgresql",
    "postgresql://user@/db?host=%2Fvar%2Frun%2Fpostgresql",
    "postgresql+psycopg://user@localhost:5432/db",
    "rediss://:pw@cache.example.com:6380/0",
    "rediss://user:pw@10.0.0.5/0",
    "amqps://user:pw@mq.example.com/v",
    "postgresql://user:pw@db.example.com/db?sslmode=verify-full",
    "postgres://user:pw@db.example.com/db?sslmode=verify-ca",
    "postgresql://user@db.example.com/db?sslmode=verify-full&password=pw",
]
REFUSED = [
    ("redis://cache.example.com:6379/0", "a password and TLS"),
    ("redis://:hunter2@cache.example.com:6379/0", "TLS"),
    ("redis://:hunter2@0.0.0.0:6379/0", "TLS"),
    ("redis://:hunter2@127.example.com/0", "TLS"),
    ("redis://:hunter2@localhost.example.com/0", "TLS"),
    ("rediss://cache.example.com:6380/0", "a password"),
    ("rediss://user@cache.example.com:6380/0", "a password"),
    ("redis://:hunter2@[2001:db8::1]:6379/0", "TLS"),
    ("amqp://user:hunter2@mq.example.com/v", "TLS"),
    ("amqps://mq.example.com/v", "a password"),
    ("postgresql://user:hunter2@db.example.com/db", "TLS"),
    ("postgresql://user:hunter2@db.example.com/db?sslmode=disable", "TLS"),
    ("postgresql://user:hunter2@db.example.com/db?sslmode=require", "TLS"),
    ("postgresql://user@db.example.com/db?sslmode=verify-full", "a password"),
    ("postgresql://user:hunter2@localhost/db?host=db.example.com", "TLS"),
    ("postgresql://user:hunter2@/db?host=db.example.com&sslmode=prefer", "TLS"),
    ("postgresql://user:hunter2@127.0.0.1,db.example.com/db", "TLS"),
    ("postgresql+psycopg://db.example.com/db?password=hunter2", "TLS"),
    ("http://:hunter2@cache.example.com", "TLS"),
]


@pytest.mark.parametrize("url", ALLOWED)
def test_what_is_here_or_protected_may_be_used(url):
    refuse_unprotected("LOOMQ_BROKER_URL", url)


@pytest.mark.parametrize(("url", "missing"), REFUSED)
def test_what_leaves_the_machine_unprotected_is_refused(url, missing):
    with pytest.raises(ConfigError, match=rf"^LOOMQ_BROKER_URL points at \S+ without {missing}") as caught:
        refuse_unprotected("LOOMQ_BROKER_URL", url)
    said = f"{caught.value!r} {caught.value}"
    assert "hunter2" not in said
    assert "LOOMQ_INSECURE=1" in said
    assert ("a password" in str(caught.value).splitlines()[0]) == missing.startswith("a password")


@pytest.mark.parametrize("url", ["redis://:hunter2@[::1", "redis://:hunter2℀@h", "redis://u:[hunter2]@h"])
def test_what_is_no_url_is_refused_without_its_password(url):
    with pytest.raises(ConfigError, match="LOOMQ_BROKER_URL") as caught:
        refuse_unprotected("LOOMQ_BROKER_URL", url)
    assert "hunter2" not in f"{caught.value!r} {caught.value}"


@pytest.mark.parametrize("name", ["database_url", "listen_url", "broker_url"])
def test_every_url_is_looked_at(monkeypatch, name):
    url = "amqp://u:pw@db.example.com/db" if name == "broker_url" else "postgresql://u:pw@db.example.com/db"
    monkeypatch.setenv(f"LOOMQ_{name.upper()}", url)
    with pytest.raises(ConfigError, match=f"LOOMQ_{name.upper()} points at db.example.com without TLS"):
        Settings.load()
    monkeypatch.setenv("LOOMQ_INSECURE", "1")
    assert getattr(Settings.load(), name) == url
    monkeypatch.setenv("LOOMQ_INSECURE", "0")
    with pytest.raises(ConfigError, match="without TLS"):
        Settings.load()


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DATABASE_URL", "foo"),
        ("DATABASE_URL", "mysql://u:p@localhost/x"),
        ("BROKER_URL", "localhost"),
        ("BROKER_URL", "htp://x"),
    ],
)
def test_what_is_no_service_of_ours_is_refused_by_name(monkeypatch, name, url):
    monkeypatch.setenv(f"LOOMQ_{name}", url)
    with pytest.raises(ConfigError, match=f"LOOMQ_{name} does not begin with"):
        Settings.load()
