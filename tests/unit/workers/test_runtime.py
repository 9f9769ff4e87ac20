"""The lifecycle of a task: contract in, files, work, contract out."""

import threading

import pytest

from loomq.contracts import Contract
from loomq.errors import NotSupportedYetError, PipelineValidationError, SoftDeadline, TransientBackendError
from loomq.workers.runtime import Job, WorkerRuntime
from loomq.workers.spec import WorkerSpec

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


class Doer:
    """Stands where the processors or the models of a process stand, and records what reaches them."""

    def __init__(self, work=None):
        self.work = work or (lambda payload: {"output": payload})
        self.calls = []

    def run(self, spec, payload, *rest):
        self.calls.append((spec, payload, *rest))
        return self.work(payload)


def _spec(**more):
    said = {"name": "w", "worker_kind": "processor", "processing_backend": "a.B", **more}
    return WorkerSpec.model_validate(said)


def _run(tmp_path, payload, *, work=None, spec=None, inputs=None, outputs=None, timeout_s=5.0):
    doer = Doer(work)
    runtime = WorkerRuntime(doer, Doer(), tmp_path, 5, own_process=lambda: False)
    job = Job(
        stage="s",
        spec=spec or _spec(),
        tier="local",
        payload=payload,
        timeout_s=timeout_s,
        inputs=Contract(inputs) if inputs else None,
        outputs=Contract(outputs) if outputs else None,
    )
    return doer, lambda: runtime.run(job)


def test_a_task_gives_what_its_worker_gave(tmp_path):
    given = {"output": {"n": 1}, "model_used": "m", "token_usage": {"prompt_tokens": 2}}
    doer, run = _run(tmp_path, {"n": 1}, work=lambda _: given, inputs=NUMBER, outputs=NUMBER)
    done = run()
    assert (done.output, done.model_used, done.token_usage) == ({"n": 1}, "m", {"prompt_tokens": 2})
    assert 0 <= done.processing_time_ms < 5000
    assert [(payload, timeout_s) for _, payload, timeout_s in doer.calls] == [({"n": 1}, 5.0)]


def test_a_payload_that_breaks_its_contract_never_reaches_the_worker(tmp_path):
    doer, run = _run(tmp_path, {"n": "1"}, inputs=NUMBER)
    with pytest.raises(PipelineValidationError, match="input") as caught:
        run()
    assert caught.value.stage == "s"
    assert doer.calls == []


def test_an_output_that_breaks_its_contract_is_no_result(tmp_path):
    doer, run = _run(tmp_path, {"n": 1}, work=lambda _: {"output": {"n": True}}, inputs=NUMBER, outputs=NUMBER)
    with pytest.raises(PipelineValidationError, match="output") as caught:
        run()
    assert caught.value.stage == "s"
    assert len(doer.calls) == 1


def test_what_the_worker_raises_is_passed_on(tmp_path):
    def fail(_):
        raise TransientBackendError("later")

    _, run = _run(tmp_path, {}, work=fail)
    with pytest.raises(TransientBackendError, match="later"):
        run()


def test_blocking_work_is_interrupted_at_the_stages_own_deadline(tmp_path):
    _, run = _run(tmp_path, {}, work=lambda _: threading.Event().wait(20), timeout_s=0.05)
    with pytest.raises(SoftDeadline):
        run()


def test_what_cannot_be_done_yet_is_said(tmp_path):
    doer, run = _run(tmp_path, {}, spec=WorkerSpec.model_validate({"name": "w", "worker_kind": "agent"}))
    with pytest.raises(NotSupportedYetError, match="agent"):
        run()
    assert doer.calls == []


# File refs


@pytest.fixture
def project(tmp_path):
    """A project with a workspace of two files, and one file outside it."""
    (tmp_path / "space" / "deep").mkdir(parents=True)
    (tmp_path / "space" / "data.json").write_text('{"n": [1, 2]}')
    (tmp_path / "space" / "deep" / "note.txt").write_text("plain {text}")
    (tmp_path / "secret.txt").write_text("no")
    (tmp_path / "space" / "link").symlink_to(tmp_path / "secret.txt")
    return tmp_path


FILES = {"workspace_dir": "space", "resolve_file_refs": ["file_ref", "more"]}


def test_a_file_refs_content_stands_beside_it(project):
    payload = {"file_ref": "data.json", "more": "deep/note.txt", "n": 1}
    doer, run = _run(project, payload, spec=_spec(**FILES))
    run()
    ((_, seen, _),) = doer.calls
    assert seen == {**payload, "file_ref_content": {"n": [1, 2]}, "more_content": "plain {text}"}
    assert payload == {"file_ref": "data.json", "more": "deep/note.txt", "n": 1}


def test_a_file_ref_that_is_not_given_adds_nothing(project):
    doer, run = _run(project, {"more": None}, spec=_spec(**FILES))
    run()
    assert doer.calls[0][1] == {"more": None}


def test_a_field_that_is_not_named_is_no_file_ref(project):
    doer, run = _run(project, {"other": "data.json"}, spec=_spec(**FILES))
    run()
    assert doer.calls[0][1] == {"other": "data.json"}


@pytest.mark.parametrize("ref", ["../secret.txt", "/etc/hostname", "link", "missing.txt", "deep", "", "a\x00b", 7, {}])
def test_a_file_ref_that_cannot_be_read_names_its_field(project, ref):
    doer, run = _run(project, {"file_ref": ref}, spec=_spec(**FILES))
    with pytest.raises(PipelineValidationError, match=r"^file ref file_ref: ") as caught:
        run()
    assert caught.value.stage == "s"
    assert doer.calls == []


def test_the_contract_is_of_the_payload_before_its_files_are_added(project):
    closed = {"type": "object", "properties": {"file_ref": {"type": "string"}}, "additionalProperties": False}
    _, run = _run(project, {"file_ref": "data.json"}, spec=_spec(**FILES), inputs=closed)
    assert run().output["file_ref_content"] == {"n": [1, 2]}


def test_a_broken_contract_is_said_before_a_missing_file(project):
    _, run = _run(project, {"file_ref": "missing.txt"}, spec=_spec(**FILES), inputs=NUMBER)
    with pytest.raises(PipelineValidationError, match="input"):
        run()
