"""An LLM worker without a queue: one event loop, one pool, and a deadline that holds in any thread."""

from __future__ import annotations

import threading
import time

import pytest

from loomq.errors import LLMUnavailableError, SoftDeadline
from loomq.llm.asking import MAX_TRIES, Asker
from loomq.llm.http import HttpPool
from loomq.llm.settings import LLMSettings
from loomq.llm.tiers import Tiers
from loomq.testing import fake_llm
from loomq.tools.toolbox import Toolboxes
from loomq.workers.llm import LLMWorkers
from loomq.workers.loop import EventLoop
from loomq.workers.spec import WorkerSpec

SPEC = WorkerSpec.model_validate({"name": "w", "system_prompt": "Classify."})


@pytest.fixture
def connect(tmp_path):
    """Make the language models of a process, for a server."""
    opened = []

    def make(server, wire="openai"):
        pool, loop = HttpPool(), EventLoop()
        opened.append((pool, loop))
        asker = Asker(Tiers(pool, LLMSettings(server.environment(wire))))
        return LLMWorkers(asker, loop, Toolboxes(tmp_path, ()), tmp_path)

    yield make
    for pool, loop in opened:
        loop.run(pool.aclose(), 5)


def test_the_result_is_the_object_with_who_gave_it_and_what_it_used(connect):
    with fake_llm([{"json": {"label": "animal"}, "prompt_tokens": 3, "completion_tokens": 2}]) as server:
        found = connect(server).run(SPEC, {"text": "a cat"}, "standard", 5)
        assert (found.output, found.model_used) == ({"label": "animal"}, "fake-small")
        assert found.token_usage == {"prompt_tokens": 3, "completion_tokens": 2}
        assert (found.notes, found.updates) == ({}, [])
        body = server.journal[0].body
        assert body["messages"][0] == {"role": "system", "content": "Classify."}
        assert body["messages"][1]["content"] == '{\n  "text": "a cat"\n}'


def test_calls_of_many_threads_share_the_connections_of_one_loop(connect):
    with fake_llm() as server:
        models = connect(server)
        found = []
        for _ in range(3):
            threads = [
                threading.Thread(target=lambda: found.append(models.run(SPEC, {}, "standard", 5))) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(found) == 12
        assert server._http.accepted <= 4


def test_the_deadline_holds_though_the_provider_hangs(connect):
    with fake_llm([{"fault": "hang"}]) as server:
        models = connect(server)
        started = time.monotonic()
        with pytest.raises(SoftDeadline):
            models.run(SPEC, {}, "standard", 0.3)
        assert time.monotonic() - started < 3


def test_after_a_failure_the_next_call_works(connect):
    with fake_llm([{"fault": "cut", "text": "x" * 99, "times": MAX_TRIES}, {"json": {"ok": True}}]) as server:
        models = connect(server)
        with pytest.raises(LLMUnavailableError):
            models.run(SPEC, {}, "standard", 5)
        assert models.run(SPEC, {}, "standard", 5).output == {"ok": True}
