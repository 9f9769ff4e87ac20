"""The program itself: its table of commands, its options, what it costs to ask for help."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import loomq
from loomq.cli import faults, main
from loomq.cli.options import Invocation

BUDGET_S = 0.35  # processor time of `loomq --help`; about 0.12 on a quiet machine
HEAVY = {
    "alembic", "celery", "httpx", "jsonschema_rs", "kombu", "psycopg", "pydantic", "pydantic_settings", "redis", "rich",
    "sqlalchemy", "yaml",
}  # fmt: skip
MEASURED = """
import json, resource, sys
from loomq.cli.main import run
code = run(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([code, used.ru_utime + used.ru_stime, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def measured(tmp_path, *arguments: str) -> tuple[int, float, set[str]]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**environment, "PYTHONPYCACHEPREFIX": str(tmp_path)},
    )
    code, used_s, modules = json.loads(done.stdout.splitlines()[-1])
    return code, used_s, set(modules)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["nosuch"]])
def test_help_and_usage_errors_load_none_of_the_heavy_libraries(tmp_path, arguments):
    _, _, modules = measured(tmp_path, *arguments)
    assert {"click", "loomq"} <= modules
    assert not modules & HEAVY


def test_help_costs_little_processor_time(tmp_path):
    measured(tmp_path, "--help")
    assert statistics.median(measured(tmp_path, "--help")[1] for _ in range(3)) < BUDGET_S


def test_every_command_of_the_table_is_there_with_the_shared_options():
    context = click.Context(main.cli)
    for name in main.COMMANDS:
        command = main.cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        leaves = command.commands.values() if isinstance(command, click.Group) else [command]
        for leaf in leaves:
            assert {"project", "data", "debug", "as_json"} <= {parameter.name for parameter in leaf.params}, leaf.name
            assert leaf.help


def test_the_help_lists_every_command_with_its_line():
    found = CliRunner().invoke(main.cli, ["--help"])
    assert found.exit_code == 0
    for name, line in main.COMMANDS.items():
        assert any(row.split(maxsplit=1) == [name, line] for row in found.output.splitlines())


def test_the_version_is_that_of_the_package():
    assert CliRunner().invoke(main.cli, ["--version"]).output == f"loomq {loomq.__version__}\n"


@pytest.mark.parametrize("before", [True, False])
def test_the_project_may_stand_before_or_after_the_command(tmp_path, before, monkeypatch):
    (tmp_path / "workers").mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path])
    option = ["--project", str(tmp_path), "--data", str(tmp_path / "data")]
    given = Invocation()
    found = CliRunner().invoke(main.cli, [*option, "validate"] if before else ["validate", *option], obj=given)
    assert found.exit_code == 0, found.output
    assert given == Invocation(project=tmp_path, data=tmp_path / "data")


def test_a_project_that_is_no_folder_is_a_usage_error(tmp_path, capsys):
    assert main.run(["--project", str(tmp_path / "gone"), "validate"]) == faults.USAGE
    assert "does not exist" in capsys.readouterr().err


def test_a_misspelt_command_is_answered_with_the_nearest_one(capsys):
    assert main.run(["submti"]) == faults.USAGE
    assert 'no command is called "submti"; did you mean "submit"?' in capsys.readouterr().err


def test_a_usage_error_is_json_if_json_was_asked_for(capsys):
    assert main.run(["list", "--limit", "none", "--json"]) == faults.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    error = json.loads(err)["error"]
    assert (error["type"], error["exit_code"], error["hint"]) == ("BadParameter", 2, "loomq list --help")


def test_bad_settings_are_a_configuration_error(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LOOMQ_LEASE_SECONDS", "soon")
    assert main.run(["--project", str(tmp_path), "list"]) == faults.USAGE
    err = capsys.readouterr().err
    assert "lease_seconds" in err
    assert "Traceback" not in err


def explode(*_: object, **__: object) -> None:
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize("debug", [["--debug"], []])
def test_a_traceback_is_shown_only_to_who_asks_for_it(monkeypatch, capsys, debug):
    monkeypatch.delenv("LOOMQ_DEBUG", raising=False)
    monkeypatch.setattr(Invocation, "settings", explode)
    assert main.run([*debug, "list"]) == faults.WORK_FAILED
    assert ("Traceback" in capsys.readouterr().err) == bool(debug)


def test_the_variable_shows_tracebacks_too(monkeypatch, capsys):
    monkeypatch.setenv("LOOMQ_DEBUG", "1")
    monkeypatch.setattr(Invocation, "settings", explode)
    main.run(["list"])
    assert "Traceback" in capsys.readouterr().err


def interrupt(*_: object) -> None:
    raise faults.Interrupted("goal 7 has not ended", hint="loomq show 7")


def test_an_interruption_ends_with_130_and_says_what_is_left(monkeypatch, capsys):
    monkeypatch.setattr(Invocation, "settings", interrupt)
    assert main.run(["list"]) == faults.INTERRUPTED
    assert capsys.readouterr().err.split("\n", 1)[1] == "interrupted: goal 7 has not ended\n  loomq show 7\n"


def test_a_reader_that_has_gone_causes_no_complaint():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        line = [sys.executable, "-m", "loomq.cli.main", "schema", "worker"]
        done = subprocess.run(line, stdout=out, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (faults.BROKEN_PIPE, b"")
