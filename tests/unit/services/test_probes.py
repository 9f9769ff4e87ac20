"""Where a service's URL points, and what is said when nothing is there."""

from __future__ import annotations

import socket

import pytest

from loomq.errors import BrokerUnavailableError, DatabaseUnavailableError
from loomq.services.probes import address_of, probe_broker, probe_database, without_password
from loomq.settings import Settings


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://u:p@db.example/loomq", ("db.example", 5432)),
        ("postgres://127.0.0.1:6000/loomq", ("127.0.0.1", 6000)),
        ("postgresql+psycopg://u@/loomq?host=/run/pg", "/run/pg/.s.PGSQL.5432"),
        ("postgresql://u@/loomq?host=db.example&port=77", ("db.example", 77)),
        ("postgresql:///loomq", None),
        ("postgresql://a,b/loomq", None),
        ("redis://127.0.0.1/3", ("127.0.0.1", 6379)),
        ("rediss://:pw@cache.example:7000/0", ("cache.example", 7000)),
        ("redis+socket:///run/redis.sock?virtual_host=3", "/run/redis.sock"),
        ("amqp://guest@[::1]//", ("::1", 5672)),
        ("amqps://mq.example/", ("mq.example", 5671)),
        ("sentinel://a:26379;sentinel://b:26379", None),
        ("redis://host:notaport/", None),
    ],
)
def test_a_url_names_a_socket_or_a_host_or_is_left_to_its_client(url, address):
    assert address_of(url) == address


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:secret@h:1/d", "postgresql://u:***@h:1/d"),
        ("redis://:secret@h/0", "redis://:***@h/0"),
        ("redis://h/0", "redis://h/0"),
        ("amqp://u:p%40ss@h//", "amqp://u:***@h//"),
    ],
)
def test_a_password_is_not_shown(url, shown):
    assert without_password(url) == shown


@pytest.fixture
def closed_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it, and it refuses
        yield server.getsockname()[1]


def test_a_refused_connection_is_told_with_the_way_out(closed_port, tmp_path):
    settings = Settings(
        project=tmp_path,
        database_url=f"postgresql://u:secret@127.0.0.1:{closed_port}/d",
        broker_url=f"redis://127.0.0.1:{closed_port}/0",
    )
    with pytest.raises(DatabaseUnavailableError, match="connection refused") as database:
        probe_database(settings)
    assert "secret" not in str(database.value)
    assert "LOOMQ_DATABASE_URL" in (database.value.hint or "")
    with pytest.raises(BrokerUnavailableError, match="connection refused") as broker:
        probe_broker(settings)
    assert "LOOMQ_BROKER_URL" in (broker.value.hint or "")


def test_a_socket_that_is_not_there_is_told(tmp_path):
    settings = Settings(project=tmp_path, database_url=f"postgresql://u@/d?host={tmp_path}")
    with pytest.raises(DatabaseUnavailableError, match="no such file"):
        probe_database(settings)


def test_a_server_that_listens_passes(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        probe_broker(Settings(project=tmp_path, broker_url=url))


def test_embedded_services_always_pass(tmp_path, monkeypatch):
    for name in ("LOOMQ_DATABASE_URL", "LOOMQ_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    probe_database(Settings(project=tmp_path))
    probe_broker(Settings(project=tmp_path))
