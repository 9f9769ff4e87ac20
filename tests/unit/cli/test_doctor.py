"""``loomq doctor`` without services: what can be told from files, settings and a model provider."""

from __future__ import annotations

import json
import socket
import time

import pytest

from loomq.services.doctor import check
from loomq.services.doctor.check import Asked, Check
from loomq.testing.llm import fake_llm

LLM = "name: label\nworker_kind: llm\nsystem_prompt: Say a label.\n"


def doctor(program, monkeypatch) -> dict[str, dict]:
    from loomq.services.doctor import examine

    # What is installed is the machine's business.
    monkeypatch.setattr(examine, "_packages", lambda: [Check("packages", "ok", "")])
    out = program("doctor", "--json", code=0 if "--fails" not in program.expect else 3)[0]
    found = json.loads(out)
    assert found["healthy"] == all(one["status"] != "fail" for one in found["checks"])
    assert all(one["fix"] for one in found["checks"] if one["status"] != "ok")
    return {one["name"]: one for one in found["checks"]}


@pytest.fixture
def examine(program, monkeypatch):
    def run(*, fails: bool = False) -> dict[str, dict]:
        program.expect = ["--fails"] if fails else []
        return doctor(program, monkeypatch)

    return run


def test_a_right_project_is_healthy_and_embedded_services_are_not_started(examine, program, tmp_path):
    found = examine()
    assert found["files"]["message"] == "1 worker, 1 pipeline"
    assert "starts by itself" in found["postgres"]["message"]
    assert "starts by itself" in found["broker"]["message"]
    assert found["models"]["message"] == "none is configured, and no worker needs one"
    assert not (tmp_path / "data").exists()


def test_broken_files_fail_with_the_command_that_shows_them(examine, program):
    program.write("workers/bad.yaml", "name: bad\nworker_knd: llm\n")
    assert examine(fails=True)["files"]["fix"] == "loomq validate"


def test_a_package_that_is_not_there_is_told(examine, program):
    program.write("loomq.toml", 'import_allow = ["mine_cli", "nosuch_package"]\n')
    assert "nosuch_package" in examine()["import_allow"]["message"]


def test_schemas_of_another_version_are_told_with_what_writes_them_anew(examine, program):
    program.write(".loomq/schemas/worker.schema.json", "{}")
    found = examine()["schemas"]
    assert (found["status"], "loomq schema worker >" in found["fix"]) == ("warn", True)


def test_settings_that_cannot_be_used_are_a_finding_and_no_crash(examine, monkeypatch):
    monkeypatch.setenv("LOOMQ_LEASE_SECONDS", "soon")
    assert "lease_seconds" in examine(fails=True)["settings"]["message"]


def test_services_that_do_not_answer_fail_with_the_way_out(examine, monkeypatch):
    monkeypatch.setenv("LOOMQ_DATABASE_URL", "postgresql://u:hidden@127.0.0.1:1/x")
    monkeypatch.setenv("LOOMQ_BROKER_URL", "redis://:hidden@127.0.0.1:1/0")
    found = examine(fails=True)
    assert {name for name, one in found.items() if one["status"] == "fail"} == {"postgres", "broker"}
    assert "LOOMQ_DATABASE_URL" in found["postgres"]["fix"]
    assert "hidden" not in json.dumps(found)


def test_a_worker_that_needs_a_model_fails_until_one_is_named_and_the_offer_is_listed(examine, program, monkeypatch):
    program.write("workers/label.yaml", LLM)
    assert "no language model is configured" in examine(fails=True)["tier standard"]["message"]
    with fake_llm(models=["small", "large"]) as server:
        for name, value in server.environment("openai").items():
            monkeypatch.setenv(name, value)
        assert examine()["openai models"]["message"] == "small, large"
        monkeypatch.delenv("OPENAI_MODEL")
        monkeypatch.setenv("STANDARD_MODEL", "lagre")
        found = examine(fails=True)["tier standard"]
        assert (found["message"], found["fix"]) == ("openai does not offer lagre", 'did you mean "large"?')
        monkeypatch.delenv("STANDARD_MODEL")
        assert examine(fails=True)["tier standard"]["fix"] == "export STANDARD_MODEL=small"


def test_models_that_stand_in_are_looked_at_too(examine, program, monkeypatch):
    program.write("workers/label.yaml", LLM)
    with fake_llm(models=["fake-small", "fake-large"]) as server:
        for name, value in server.environment("openai").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("STANDARD_FALLBACKS", "fake-large")
        told = examine()["tier standard fallbacks"]
        assert (told["status"], "fake-large of the OpenAI-compatible" in told["message"]) == ("ok", True)
        for said, fix in (("fake-large, fake-lagre", 'did you mean "fake-large"?'), ("other", "it offers fake-small")):
            monkeypatch.setenv("STANDARD_FALLBACKS", said)
            told = examine()["tier standard fallbacks"]
            assert (told["status"], "does not offer" in told["message"]) == ("warn", True)
            assert told["fix"].startswith(fix)
        monkeypatch.setenv("STANDARD_FALLBACKS", "openai/")
        assert "names no model" in examine(fails=True)["tier standard fallbacks"]["message"]


def test_services_that_accept_and_then_say_nothing_are_left_behind_in_time(examine, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        monkeypatch.setenv("LOOMQ_DATABASE_URL", f"postgresql://u:p@127.0.0.1:{port}/x")
        monkeypatch.setenv("LOOMQ_BROKER_URL", f"redis://127.0.0.1:{port}/0")
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
        found = examine(fails=True)
        assert found["postgres"]["message"] == "no answer in time"
        assert found["broker"]["status"] == "fail"
        assert found["openai models"]["status"] == "warn"


def test_what_does_not_come_to_an_end_is_left_behind(monkeypatch):
    import threading

    hold = threading.Event()

    def slow():
        yield Check("first", "ok", "")
        hold.wait(30)

    begun = time.monotonic()
    found = Asked("slow", slow, fix="wait").answer(time.monotonic() + 0.2)
    hold.set()
    assert time.monotonic() - begun < 5
    assert [(one.name, one.status) for one in found] == [("first", "ok"), ("slow", "fail")]
    assert check.PATIENCE_S < 2


def test_a_check_that_breaks_hides_no_other():
    def broken():
        yield Check("first", "ok", "")
        raise ZeroDivisionError("by zero")

    found = Asked("broken", broken, fix="mend it").answer(time.monotonic() + 30)
    assert [one.message for one in found] == ["", "ZeroDivisionError: by zero"]
