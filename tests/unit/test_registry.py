"""The loader of dotted names."""

from __future__ import annotations

import sys

import pytest

from loomq.errors import ImportRefusedError
from loomq.registry import is_allowed, load_dotted, project_on_path
from loomq.workers.base import ProcessingBackend

MODULE = """
from os import system
from pathlib import Path
from loomq.workers.base import SyncProcessingBackend

class Shout(SyncProcessingBackend):
    def process_sync(self, payload, config):
        return {"output": {}, "model_used": None}

class Plain:
    pass

def rows():
    return []

LIMIT = 3
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    package = tmp_path / "acme_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shout.py").write_text(MODULE)
    (package / "broken.py").write_text("raise RuntimeError('no licence key')")
    (package / "quits.py").write_text("import sys; sys.exit(7)")
    other = tmp_path / "acme_pkgx"
    other.mkdir()
    (other / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Thing: pass\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    project_on_path(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("acme_pkg")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loomq.contrib.pydocs.ask.Ask", True),
        ("acme_pkg.shout.Shout", True),
        ("acme_pkgx.Thing", False),
        ("loomq.contribx.Thing", False),
        ("loomq.settings.Settings", False),
        ("os.system", False),
        ("acme_pkg", False),
        ("acme_pkg..shout", False),
        (".acme_pkg.shout", False),
        ("acme_pkg.shout:Shout", False),
        ("", False),
    ],
)
def test_a_prefix_allows_its_package_and_nothing_that_only_looks_like_it(name, expected):
    assert is_allowed(name, ["acme_pkg"]) is expected


def test_an_empty_prefix_allows_nothing():
    assert not is_allowed("os.system", ["", "."])


def test_classes_and_functions_are_found(project):
    backend = load_dotted("acme_pkg.shout.Shout", allow=["acme_pkg"], expect=ProcessingBackend)
    assert backend.__name__ == "Shout"
    assert load_dotted("acme_pkg.shout.rows", allow=["acme_pkg"])() == []


def test_a_name_outside_is_refused_before_its_module_runs(project):
    with pytest.raises(ImportRefusedError, match="LOOMQ_IMPORT_ALLOW=acme_pkgx") as caught:
        load_dotted("acme_pkgx.Thing", allow=["acme_pkg"])
    assert "loomq.toml" in str(caught.value)
    assert not (project / "ran").exists()
    load_dotted("acme_pkgx.Thing", allow=["acme_pkgx"])
    assert (project / "ran").exists()


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "builtins.eval", "importlib.import_module"])
def test_the_standard_library_is_not_a_backend(name):
    with pytest.raises(ImportRefusedError, match="outside the packages"):
        load_dotted(name, allow=["acme_pkg"])


@pytest.mark.parametrize("attribute", ["system", "Path"])
def test_what_an_allowed_module_only_imported_is_refused(project, attribute):
    with pytest.raises(ImportRefusedError, match="outside the packages"):
        load_dotted(f"acme_pkg.shout.{attribute}", allow=["acme_pkg"])


def test_an_import_that_fails_keeps_its_cause(project):
    with pytest.raises(ImportRefusedError, match="no licence key") as caught:
        load_dotted("acme_pkg.broken.Thing", allow=["acme_pkg"])
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_module_that_exits_does_not_end_the_process(project):
    with pytest.raises(ImportRefusedError, match="SystemExit"):
        load_dotted("acme_pkg.quits.Thing", allow=["acme_pkg"])


def test_a_module_that_is_not_there_is_named(project):
    with pytest.raises(ImportRefusedError, match=r"acme_pkg\.missing") as caught:
        load_dotted("acme_pkg.missing.Thing", allow=["acme_pkg"])
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("attribute", "said"),
    [("Missing", "has no 'Missing'"), ("LIMIT", "is a int"), ("Plain", "not a ProcessingBackend")],
)
def test_a_thing_of_the_wrong_kind_is_refused(project, attribute, said):
    with pytest.raises(ImportRefusedError, match=said):
        load_dotted(f"acme_pkg.shout.{attribute}", allow=["acme_pkg"], expect=ProcessingBackend)


def test_a_project_joins_the_path_once_and_last(project):
    before = list(sys.path)
    project_on_path(project)
    assert sys.path == before
    assert sys.path[-1] == str(project)
