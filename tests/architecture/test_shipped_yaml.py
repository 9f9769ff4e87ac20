"""The YAML that ships is right, and the published JSON Schemas are those of the models."""

import json
import re
from pathlib import Path

import jsonschema_rs
import pytest

import loomq
from loomq.kinds import find_files, kind_of
from loomq.services.configs import json_schema, kinds, validate
from loomq.settings import Settings
from loomq.yaml_text import read_document

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(loomq.__file__).parent / "schemas"
SHIPPED = find_files(ROOT)


@pytest.mark.parametrize("kind", kinds())
def test_a_committed_schema_is_the_model_s(kind):
    text = json.dumps(json_schema(kind), indent=2, ensure_ascii=False) + "\n"
    hint = f"write it anew: loomq schema {kind} > loomq/schemas/{kind}.schema.json"
    assert (SCHEMAS / f"{kind}.schema.json").read_text() == text, hint
    jsonschema_rs.meta.validate(json_schema(kind))


def test_the_shipped_files_have_no_problem_and_not_even_a_warning():
    report = validate(Settings(project=ROOT), [])
    assert [problem.render() for problem in report.problems] == []
    assert report.files == len(SHIPPED)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_a_shipped_file_names_its_schema_and_fits_it(file):
    line = file.read_text().splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", line)
    assert named, "the first line must be the yaml-language-server's"
    schema = (file.parent / named[1]).resolve()
    value = read_document(file)[0].value
    assert schema == (SCHEMAS / f"{kind_of(file, value)}.schema.json").resolve()
    jsonschema_rs.Draft202012Validator(json.loads(schema.read_text())).validate(value)


@pytest.mark.parametrize("kind", ["worker", "pipeline"])
def test_the_published_schema_refuses_what_the_model_refuses_by_shape(kind):
    checker = jsonschema_rs.Draft202012Validator(json_schema(kind))
    good = {
        "worker": {
            "name": "w",
            "worker_kind": "processor",
            "processing_backend": "a.B",
            "default_tier": "local",
            "x-y": 1,
        },
        "pipeline": {"name": "p", "pipeline_stages": [{"name": "a", "worker_type": "w", "x-z": []}]},
    }[kind]
    assert checker.is_valid(good)
    assert not checker.is_valid({**good, "nmae": 1})
    assert not checker.is_valid({**good, "name": "No"})
