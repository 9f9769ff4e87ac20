"""No variable of Celery's leads around loomq's settings."""

from __future__ import annotations

from loomq.loom import Loom
from loomq.queues.results import PostgresBackend
from loomq.settings import Settings


def test_celerys_variables_change_neither_services_nor_serializers(tmp_path, monkeypatch):
    (tmp_path / "workers").mkdir()
    (tmp_path / "evil_config.py").write_text(
        "accept_content = result_accept_content = ['pickle']\n"
        "task_serializer = result_serializer = event_serializer = 'pickle'\n"
        "broker_url = broker_read_url = broker_write_url = 'redis://evil:1'\nresult_backend = 'rpc://'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "evil_config")
    monkeypatch.setenv("CELERY_LOADER", "default")
    for name in ("BROKER_URL", "BROKER_READ_URL", "BROKER_WRITE_URL", "RESULT_BACKEND"):
        monkeypatch.setenv(f"CELERY_{name}", "redis://evil:1/0")
    for name in ("ACCEPT_CONTENT", "RESULT_ACCEPT_CONTENT", "TASK_SERIALIZER", "RESULT_SERIALIZER", "EVENT_SERIALIZER"):
        monkeypatch.setenv(f"CELERY_{name}", "pickle")

    ours = "redis://127.0.0.1:9/3"
    loom = Loom(Settings(project=tmp_path, database_url="postgresql://u@127.0.0.1:9/d", broker_url=ours))
    conf = loom.app.conf

    assert {conf.broker_url, conf.broker_read_url, conf.broker_write_url} == {ours}
    for connect in (loom.app.connection_for_read, loom.app.connection_for_write, loom.app.connection):
        assert connect().as_uri(include_password=True) == "redis://127.0.0.1:9/3"
    assert isinstance(loom.app.backend, PostgresBackend)
    assert conf.accept_content == conf.result_accept_content == ["json"]
    assert {conf.task_serializer, conf.result_serializer, conf.event_serializer} == {"json"}
    loom.close()
