"""Python processors: built once, reset always, and refused when they are not what they should be."""

import sys
import threading
import types

import pytest
from rows import at_once

from loomq.errors import BackendError, ImportRefusedError, PipelineWorkerError, SoftDeadline, TransientBackendError
from loomq.workers.loop import EventLoop
from loomq.workers.processor import Processors
from loomq.workers.spec import WorkerSpec

SEEN: list[tuple[str, object]] = []  # what the backends of this module did, in order


@pytest.fixture(autouse=True)
def seen():
    """An empty record for each test."""
    SEEN.clear()
    return SEEN


CODE = """
import asyncio
import threading
from processors_record import SEEN
from loomq.errors import TransientBackendError
from loomq.workers.base import ProcessingBackend, SyncProcessingBackend


class Sync(SyncProcessingBackend):
    def __init__(self, word="none"):
        self.word = word
        SEEN.append(("built", word))

    def process_sync(self, payload, config):
        SEEN.append(("processed", threading.get_ident()))
        if payload.get("fail"):
            raise TransientBackendError("not today")
        if "give" in payload:
            return payload["give"]
        return {"output": {"got": payload, "word": self.word, "config": dict(config)}, "model_used": "none"}

    def reset(self):
        SEEN.append(("reset", self.word))


class Async(ProcessingBackend):
    async def process(self, payload, config):
        SEEN.append(("processed", threading.get_ident()))
        await asyncio.sleep(payload.get("seconds", 0))
        if payload.get("fail"):
            raise TransientBackendError("not today")
        return {"output": {"got": payload}}

    def reset(self):
        SEEN.append(("reset", threading.get_ident()))


class Unbuildable(Sync):
    def __init__(self):
        raise OSError("no such model")


class Unresettable(Sync):
    def reset(self):
        raise OSError("stuck")


class NoBackend:
    pass


def function(payload, config):
    return payload
"""


@pytest.fixture
def processors(tmp_path, monkeypatch):
    """Processors of a project with a package ``mine_processors``."""
    record = types.ModuleType("processors_record")
    record.SEEN = SEEN
    monkeypatch.setitem(sys.modules, "processors_record", record)
    monkeypatch.delitem(sys.modules, "mine_processors", raising=False)
    (tmp_path / "mine_processors.py").write_text(CODE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield Processors(tmp_path, ["mine_processors"], EventLoop())
    sys.modules.pop("mine_processors", None)


def _spec(name, **config):
    return WorkerSpec.model_validate(
        {
            "name": "w",
            "worker_kind": "processor",
            "processing_backend": f"mine_processors.{name}",
            "backend_config": config,
        }
    )


def test_a_backend_gets_the_payload_and_its_config(processors):
    found = processors.run(_spec("Sync", word="hello"), {"x": 1}, 5)
    assert found == {
        "output": {"got": {"x": 1}, "word": "hello", "config": {"word": "hello"}},
        "model_used": "none",
    }


def test_an_asynchronous_backend_runs_on_the_loop(processors):
    assert processors.run(_spec("Async"), {"x": 1}, 5)["output"] == {"got": {"x": 1}}
    assert dict(SEEN)["processed"] != threading.get_ident()


def test_a_synchronous_backend_runs_in_the_tasks_own_thread(processors):
    processors.run(_spec("Sync"), {}, 5)
    assert dict(SEEN)["processed"] == threading.get_ident()


def test_a_backend_is_built_once_and_reset_after_every_task(processors):
    for _ in range(3):
        processors.run(_spec("Sync", word="a"), {}, 5)
    assert [what for what, _ in SEEN] == ["built"] + ["processed", "reset"] * 3


def test_another_config_is_another_backend(processors):
    for word in ("a", "b", "a"):
        assert processors.run(_spec("Sync", word=word), {}, 5)["output"]["word"] == word
    assert [word for what, word in SEEN if what == "built"] == ["a", "b"]


def test_each_thread_has_its_own_backend(processors):
    spec = _spec("Sync")
    at_once(*[lambda: [processors.run(spec, {}, 5) for _ in range(3)]] * 4)
    assert [what for what, _ in SEEN].count("built") == 4
    assert [what for what, _ in SEEN].count("reset") == 12


@pytest.mark.parametrize("name", ["Sync", "Async"])
def test_a_backend_is_reset_after_a_failure_too(processors, name):
    with pytest.raises(TransientBackendError, match="not today") as caught:
        processors.run(_spec(name), {"fail": True}, 5)
    assert caught.value.retryable
    assert SEEN[-1][0] == "reset"
    processors.run(_spec(name), {}, 5)
    assert [what for what, _ in SEEN].count("reset") == 2


def test_a_backend_is_reset_after_its_time_was_up(processors):
    with pytest.raises(SoftDeadline):
        processors.run(_spec("Async"), {"seconds": 60}, 0.05)
    assert SEEN[-1][0] == "reset"


@pytest.mark.parametrize(
    "given",
    [
        None,
        [],
        "text",
        {},
        {"output": None},
        {"output": [1]},
        {"out": {}},
        {"output": {}, "model_used": 5},
        {"output": {}, "model_used": {"name": "m"}},
    ],
    ids=repr,
)
def test_what_is_no_result_is_said_with_the_backends_name(processors, given):
    with pytest.raises(PipelineWorkerError, match=r"mine_processors\.Sync gave") as caught:
        processors.run(_spec("Sync"), {"give": given}, 5)
    assert not caught.value.retryable
    assert SEEN[-1][0] == "reset"


@pytest.mark.parametrize("config", [{}, {"nmae": "x"}], ids=["raises", "takes no such argument"])
def test_a_backend_that_cannot_be_built_keeps_the_cause(processors, config):
    with pytest.raises(BackendError, match="cannot be built from its backend_config") as caught:
        processors.run(_spec("Unbuildable" if not config else "Sync", **config), {}, 5)
    assert isinstance(caught.value.__cause__, OSError | TypeError)
    assert "reset" not in dict(SEEN)


def test_a_backend_that_cannot_be_reset_is_not_used_again(processors):
    for _ in range(2):
        with pytest.raises(BackendError, match="failed to reset: stuck"):
            processors.run(_spec("Unresettable"), {}, 5)
    assert [what for what, _ in SEEN].count("built") == 2


def test_a_failure_to_reset_does_not_hide_the_works_own_failure(processors, caplog):
    with pytest.raises(TransientBackendError):
        processors.run(_spec("Unresettable"), {"fail": True}, 5)
    assert "failed to reset" in caplog.text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("os.system", "outside the packages"),
        ("mine_processors.threading.Thread", "outside the packages|cannot be imported"),
        ("mine_processors.NoBackend", "is not a ProcessingBackend"),
        ("mine_processors.function", "is not a ProcessingBackend"),
        ("mine_processors.Nobody", "has no 'Nobody'"),
        ("mine_processors_other.Sync", "outside the packages"),
    ],
)
def test_a_name_that_may_not_be_imported_is_refused(processors, name, says):
    spec = WorkerSpec.model_validate({"name": "w", "worker_kind": "processor", "processing_backend": name})
    with pytest.raises(ImportRefusedError, match=says):
        processors.run(spec, {}, 5)
    assert SEEN == []
