"""``loomq validate`` and ``loomq schema`` at the command line."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from loomq.cli import schema, validate
from loomq.services.configs import json_schema, kinds

PROJECT = Path(__file__).parents[2] / "broken_project"


@pytest.fixture
def run(monkeypatch):
    for name in ("LOOMQ_IMPORT_ALLOW", "LOOMQ_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    # Reading the project puts its folder on the path; the test puts it back.
    monkeypatch.setattr(sys, "path", [*sys.path])

    def invoke(*arguments, project=PROJECT, command=validate.command):
        monkeypatch.chdir(project)
        return CliRunner().invoke(command, [str(argument) for argument in arguments])

    return invoke


def test_a_broken_project_ends_with_2_and_a_summary_beside_the_data(run):
    found = run()
    assert found.exit_code == 2
    assert "error[LQ208]: pipeline_stages.0.name: stages wait for each other: a -> b -> c -> a" in found.stdout
    assert "problems in" in found.stderr
    assert found.stdout.count("[LQ") == validate.SHOWN
    assert "… and" in found.stderr


def test_a_right_project_ends_with_0_and_says_nothing_on_stdout(run, tmp_path):
    (tmp_path / "workers").mkdir()
    found = run(project=tmp_path)
    assert (found.exit_code, found.stdout) == (0, "")
    assert found.stderr == "0 files, no problems\n"


def test_paths_narrow_what_is_shown(run):
    found = run("pipelines/circle.yaml")
    assert {line.split(":")[0] for line in found.stdout.splitlines() if "error[" in line} == {"pipelines/circle.yaml"}
    assert run("nowhere.yaml").exit_code == 2


@pytest.mark.parametrize("arguments", [["--json"], ["--format", "json"]])
def test_json_has_every_problem_and_nothing_else(run, arguments):
    found = run(*arguments)
    data = json.loads(found.stdout)
    assert (found.exit_code, data["valid"], data["schema_version"]) == (2, False, 1)
    assert len(data["problems"]) > validate.SHOWN
    assert {"id", "file", "line", "col", "message"} <= set(data["problems"][0])


def test_github_annotations_are_one_line_each(run):
    found = run("--format", "github", "workers/misspelt_keys.yaml")
    assert len(found.stdout.splitlines()) == 4
    assert all(line.startswith("::error file=workers/misspelt_keys.yaml,line=") for line in found.stdout.splitlines())


@pytest.mark.parametrize("kind", kinds())
def test_the_schema_of_each_kind_is_printed(run, kind):
    found = run(kind, command=schema.command)
    assert found.exit_code == 0
    assert json.loads(found.stdout) == json_schema(kind)


def test_an_unknown_kind_is_a_usage_error(run):
    assert run("workre", command=schema.command).exit_code == 2
    assert set(schema.KINDS) == set(kinds())
