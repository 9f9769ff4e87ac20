"""``loomq init`` and ``loomq new`` write files that are right from the start, and replace none."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from loomq.cli import init
from loomq.services.scaffold import TEMPLATES


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_schema_lines(folder):
    files = [*folder.glob("workers/*.yaml"), *folder.glob("pipelines/*.yaml")]
    assert files
    for file in files:
        line = re.match(r"# yaml-language-server: \$schema=(\S+)\n", file.read_text())
        assert line
        assert (file.parent / line[1]).is_file()


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_validates_without_a_warning(empty, template):
    out, err = empty("init", "my-shop.2", "--template", template)
    folder = empty.folder / "my-shop.2"
    assert sorted(snapshot(folder)) == out.split()
    assert "  cd my-shop.2\n  loomq validate\n" in err
    report = json.loads(empty("--project", str(folder), "validate", "--json")[0])
    assert (report["problems"], report["files"] >= 2) == ([], True)
    check_schema_lines(folder)
    assert "$" not in (folder / "loomq.toml").read_text()


def test_the_face_offers_the_templates_that_exist():
    assert init.TEMPLATES == TEMPLATES


def test_init_replaces_nothing_and_then_writes_nothing(empty):
    empty.write("loomq.toml", "# mine\n")
    _, err = empty("init", code=2)
    assert "loomq.toml already; nothing was written" in err
    assert snapshot(empty.folder) == {"loomq.toml": b"# mine\n"}


@pytest.mark.parametrize("name", ["json", "yaml", "workers", "2nd try", "Größe"])
def test_a_folder_may_be_called_anything(empty, name):
    empty("init", name)
    report = json.loads(empty("--project", str(empty.folder / name), "validate", "--json")[0])
    assert report["valid"]


def test_a_new_worker_in_an_empty_folder_validates_and_can_be_tried_at_once(empty):
    made = json.loads(empty("new", "worker", "shout", "--json")[0])
    assert made["files"] == [
        ".loomq/schemas/worker.schema.json",
        "loomq.toml",
        "shop/__init__.py",
        "shop/shout.py",
        "workers/shout.yaml",
    ]
    check_schema_lines(empty.folder)
    for line in made["next"][:2]:
        empty(*shlex.split(line)[1:])


def test_a_toml_without_import_allow_gets_one_and_keeps_the_rest(empty):
    empty.write("loomq.toml", "lease_seconds = 20\n")
    made = json.loads(empty("new", "worker", "shout", "--json")[0])
    assert made["changed"] == ["loomq.toml"]
    assert (empty.folder / "loomq.toml").read_text() == 'import_allow = ["shop"]\nlease_seconds = 20\n'


def test_an_import_allow_that_names_nothing_of_the_project_is_left_to_the_user(empty):
    empty.write("loomq.toml", 'import_allow = ["json"]\n')
    _, err = empty("new", "worker", "shout", code=2)
    assert "import_allow names no package of the project: json" in err
    assert list(snapshot(empty.folder)) == ["loomq.toml"]


def test_a_new_llm_worker_validates(empty):
    empty("new", "worker", "ask", "--kind", "llm")
    assert json.loads(empty("validate", "--json")[0])["problems"] == []


def test_a_new_pipeline_maps_what_its_worker_requires_and_brings_a_worker_if_there_is_none(empty):
    made = json.loads(empty("new", "pipeline", "solo", "--json")[0])
    assert {"workers/solo_step.yaml", "pipelines/solo.yaml"} <= set(made["files"])
    assert made["next"][-1] == "loomq run solo -i text='some text'"
    empty.write(
        "workers/strict.yaml",
        """
        name: strict
        worker_kind: processor
        processing_backend: shop.solo_step.Backend
        input_schema:
          type: object
          required: [size, mode]
          properties: {size: {type: integer, minimum: 3}, mode: {enum: [fast, slow]}, note: {type: string}}
        """,
    )
    made = json.loads(empty("new", "pipeline", "sized", "--worker", "strict", "--json")[0])
    assert made["next"][-1] == "loomq run sized -i size=3 -i mode=fast"
    assert "note: goal.context.note?" in (empty.folder / "pipelines/sized.yaml").read_text()
    assert json.loads(empty("validate", "--json")[0])["problems"] == []
    empty("plan", "sized")


def test_an_existing_file_a_bad_name_and_an_unknown_worker_are_refused(program):
    before = snapshot(program.folder)
    assert "workers/echo.yaml already" in program("new", "worker", "echo", code=2)[1]
    assert "cannot be a name" in program("new", "worker", "My-Worker", code=2)[1]
    assert "cannot be a name" in program("new", "pipeline", "../up", code=2)[1]
    assert 'did you mean "echo"?' in program("new", "pipeline", "p", "-w", "ecko", code=2)[1]
    assert snapshot(program.folder) == before


def test_a_new_schedule_hands_in_what_its_target_takes(empty):
    before = snapshot(empty.folder)
    error = json.loads(empty("new", "schedule", "nightly", "--json", code=2)[1])["error"]
    assert "loomq new pipeline" in error["hint"]
    assert snapshot(empty.folder) == before
    empty("new", "worker", "step")
    empty("new", "pipeline", "report")
    empty("new", "schedule", "nightly")
    empty("new", "schedule", "often", "--for", "step", "--when", "10 minutes")
    empty("new", "schedule", "cron", "--for", "report", "--when", "0 9 * * mon-fri")
    assert json.loads(empty("validate", "--json")[0])["problems"] == []
    check_schema_lines(empty.folder)
    assert "every: day at 06:00" in (empty.folder / "schedules/nightly.yaml").read_text()
    assert (
        'every: 10 minutes\n    task:\n      worker_type: "step"' in (empty.folder / "schedules/often.yaml").read_text()
    )
    assert 'cron: "0 9 * * mon-fri"\n    goal:\n' in (empty.folder / "schedules/cron.yaml").read_text()
    assert "is not understood" in empty("new", "schedule", "wrong", "--when", "sometimes", code=2)[1]
    assert 'did you mean "report"?' in empty("new", "schedule", "wrong", "--for", "reprt", code=2)[1]


def test_a_new_orchestrator_may_use_the_project_s_workers_or_those_that_are_named(empty):
    empty("new", "orchestrator", "scout", "--json")
    assert "\n  - name: scout_step\n" in (empty.folder / "pipelines/scout.yaml").read_text()
    empty("new", "worker", "other")
    empty("new", "orchestrator", "narrow", "-w", "other")
    assert "available_workers:\n  - name: other\n# " in (empty.folder / "pipelines/narrow.yaml").read_text()
    assert json.loads(empty("validate", "--json")[0])["problems"] == []
    check_schema_lines(empty.folder)
    assert 'did you mean "other"?' in empty("new", "orchestrator", "wrong", "-w", "othr", code=2)[1]
