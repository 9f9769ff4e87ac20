"""The catalog of a project: what is read, what is left out, what is resolved."""

import sys

import pytest

from loomq.catalog import load_catalog, require_catalog, resolve_schemas, spec_hash
from loomq.errors import ConfigError, ImportRefusedError
from loomq.pipelines.spec import StageSpec
from loomq.settings import Settings
from loomq.workers.spec import WorkerSpec

WORKER = "name: {name}\nworker_kind: processor\nprocessing_backend: loomq.contrib.demo.Thing\n"
PIPELINE = (
    "name: {name}\npipeline_stages: [{{name: a, worker_type: {worker}, input_mapping: {{x: goal.instruction}}}}]\n"
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    for folder in ("workers", "pipelines", "schedules", "deploy"):
        (tmp_path / folder).mkdir()
    (tmp_path / "workers/one.yaml").write_text(WORKER.format(name="one"))
    (tmp_path / "workers/two.yml").write_text(WORKER.format(name="two"))
    (tmp_path / "pipelines/flow.yaml").write_text(PIPELINE.format(name="flow", worker="one"))
    (tmp_path / "deploy/router_rules.yaml").write_text("tier_overrides: {one: frontier}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(project, *paths, **options):
    return [(one.id, one.file) for one in load_catalog(Settings(project=project), paths, **options)[1]]


def test_a_project_is_read_whole(project):
    catalog = require_catalog(Settings(project=project))
    assert set(catalog.workers) == {"one", "two"}
    assert set(catalog.pipelines) == {"flow"}
    assert catalog.rules.tier_overrides == {"one": "frontier"}
    assert catalog.files["worker", "two"] == project / "workers/two.yml"
    assert catalog.workers["one"].tier == "local"


def test_an_empty_project_is_right(tmp_path):
    catalog, problems = load_catalog(Settings(project=tmp_path))
    assert (dict(catalog.workers), problems) == ({}, [])


def test_drafts_and_templates_are_left_alone(project):
    (project / "workers/_template.yaml").write_text("nonsense: [")
    (project / "workers/.hidden.yaml").write_text("nonsense: [")
    assert found(project) == []


def test_a_broken_file_is_left_out_and_makes_the_catalog_unusable(project):
    (project / "workers/two.yml").write_text("name: two\nworker_kind: processor\n")
    catalog, problems = load_catalog(Settings(project=project))
    assert set(catalog.workers) == {"one"}
    assert [one.id for one in problems] == ["LQ111"]
    with pytest.raises(ConfigError, match="loomq validate") as caught:
        require_catalog(Settings(project=project))
    assert caught.value.problems == tuple(problems)


def test_a_worker_whose_file_is_broken_is_not_called_unknown(project):
    (project / "workers/one.yaml").write_text("name: one\nfoo: 1\nworker_kind: processor\n")
    assert {file for _, file in found(project)} == {"workers/one.yaml"}


def test_rules_that_are_all_comments_are_no_rules(project):
    (project / "deploy/router_rules.yaml").write_text("# tier_overrides: {one: frontier}\n")
    assert require_catalog(Settings(project=project)).rules.tier_overrides == {}


def test_workers_that_share_a_key_must_agree_on_its_slots(project):
    (project / "workers/one.yaml").write_text(WORKER.format(name="one") + "concurrency_key: press\nmax_concurrent: 2\n")
    (project / "workers/two.yml").write_text(WORKER.format(name="two") + "concurrency_key: press\n")
    _, (problem,) = load_catalog(Settings(project=project))
    assert (problem.id, problem.file) == ("LQ117", "workers/two.yml")
    assert problem.message == 'worker one gives the key "press" 2 slots, and this one 1'


@pytest.mark.parametrize(
    ("schema", "is_refused"),
    [
        ("{additionalProperties: false, properties: {customer: {}}}", True),
        ("{additionalProperties: false, properties: {custmer: {}}}", False),
        ("{additionalProperties: false, anyOf: [{}]}", False),
        ("{properties: {customer: {}}}", False),
        ("{additionalProperties: false, patternProperties: {x: {}}}", False),
    ],
)
def test_a_key_that_no_payload_can_have_is_refused(project, schema, is_refused):
    more = f"concurrency_key: payload.custmer.id\ninput_schema: {schema}\n"
    (project / "workers/one.yaml").write_text(WORKER.format(name="one") + more)
    assert (("LQ117", "workers/one.yaml") in found(project)) == is_refused


def test_a_warning_makes_nothing_unusable(project):
    schema = "output_schema: {type: object, properties: {title: {type: string}}}\n"
    (project / "workers/one.yaml").write_text(WORKER.format(name="one") + schema)
    (project / "pipelines/flow.yaml").write_text(
        "name: flow\npipeline_stages:\n"
        "  - {name: a, worker_type: one}\n"
        "  - {name: b, worker_type: two, input_mapping: {x: a.output.titel}}\n"
    )
    problems = load_catalog(Settings(project=project))[1]
    assert [(one.id, one.severity) for one in problems] == [("LQ204", "warning")]
    assert set(require_catalog(Settings(project=project)).pipelines) == {"flow"}


def test_two_files_with_one_name_are_refused(project):
    (project / "workers/one.yml").write_text(WORKER.format(name="one"))
    assert found(project) == [("LQ116", "workers/one.yml")]


def test_only_the_asked_files_are_reported_but_the_project_is_known_to_them(project, tmp_path_factory):
    (project / "workers/two.yml").write_text("nonsense: 1\n")
    assert found(project, project / "pipelines/flow.yaml") == []
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "flow2.yaml"
    elsewhere.write_text(PIPELINE.format(name="flow2", worker="on"))
    assert found(project, elsewhere) == [("LQ201", str(elsewhere))]
    assert {file for _, file in found(project, project)} == {"workers/two.yml"}
    assert {file for _, file in found(project, project / "workers")} == {"workers/two.yml"}


def test_a_given_file_wins_over_the_project_s_of_the_same_name(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edited") / "workers"
    folder.mkdir()
    (folder / "one.yaml").write_text(WORKER.format(name="one") + "description: edited\n")
    catalog, problems = load_catalog(Settings(project=project), [folder])
    assert (problems, catalog.workers["one"].description) == ([], "edited")


def test_a_given_path_that_is_missing_or_of_no_kind_is_reported(project):
    (project / "words.yaml").write_text("a: 1\n")
    assert found(project, project / "none.yaml") == [("LQ101", "none.yaml")]
    assert found(project, project / "words.yaml") == [("LQ107", "words.yaml")]


def test_a_file_outside_the_folders_is_known_by_its_keys(project):
    (project / "lone.yaml").write_text(PIPELINE.format(name="lone", worker="one"))
    assert set(load_catalog(Settings(project=project), [project / "lone.yaml"])[0].pipelines) == {"flow", "lone"}


SIDE_EFFECT = "from pathlib import Path\nPath(__file__).with_name('touched').touch()\n\nclass Thing: pass\n"


def test_a_name_outside_the_allow_list_is_reported_and_not_imported(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    (project / "evil_module.py").write_text(SIDE_EFFECT)
    text = "name: two\nworker_kind: processor\nprocessing_backend: evil_module.Thing\n"
    text += "output_schema_ref: evil_module.Thing\n"
    (project / "workers/two.yml").write_text(text)
    (project / "pipelines/flow.yaml").write_text(PIPELINE.format(name="flow", worker="two"))
    assert found(project, imports=True)[1:] == [("LQ130", "workers/two.yml")] * 2
    assert not (project / "touched").exists()
    assert "evil_module" not in sys.modules


def test_an_allowed_backend_is_imported_only_when_asked_to(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    (project / "my_backends.py").write_text(SIDE_EFFECT)
    text = "name: two\nworker_kind: processor\nprocessing_backend: my_backends.Thing\n"
    (project / "workers/two.yml").write_text(text)
    (project / "workers/one.yaml").write_text(text.replace("two", "one").replace("Thing", "Nothing"))
    settings = Settings(project=project, import_allow=("my_backends",))
    assert load_catalog(settings)[1] == []
    assert not (project / "touched").exists()
    problems = load_catalog(settings, imports=True)[1]
    assert [(one.id, one.message.split(" ")[-1]) for one in problems] == [
        ("LQ131", "'Nothing'"),
        ("LQ131", "ProcessingBackend"),
    ]
    monkeypatch.delitem(sys.modules, "my_backends")


def worker(**said):
    return WorkerSpec(name="w", worker_kind="processor", processing_backend="a.B", **said)


def test_the_stage_s_schema_wins_over_the_worker_s():
    spec = worker(input_schema={"title": "worker in"}, output_schema={"title": "worker out"})
    stage = StageSpec(name="s", worker_type="w", output_schema={"title": "stage out"})
    assert resolve_schemas(spec, allow=()) == ({"title": "worker in"}, {"title": "worker out"})
    assert resolve_schemas(spec, stage, allow=()) == ({"title": "worker in"}, {"title": "stage out"})
    assert resolve_schemas(worker(), allow=()) == (None, None)


def test_a_referred_model_gives_its_schema_and_an_inline_schema_wins():
    name = "loomq.messages.TokenUsage"
    found = resolve_schemas(worker(input_schema_ref=name, output_schema_ref=name, output_schema={}), allow=("loomq",))
    assert found.input["properties"]["prompt_tokens"]["type"] == "integer"
    assert found.output == {}
    with pytest.raises(ImportRefusedError):
        resolve_schemas(worker(input_schema_ref=name), allow=())


def test_a_hash_depends_on_content_and_not_on_order():
    assert spec_hash({"a": 1, "b": [2]}) == spec_hash({"b": [2], "a": 1})
    assert spec_hash({"a": 1}) != spec_hash({"a": "1"})
    assert len(spec_hash({})) == 64
