"""Which tools a worker has, and what of them is refused before anything runs."""

from __future__ import annotations

import sys

import pytest

from loomq.errors import ImportRefusedError, KnowledgeError
from loomq.tools.base import SyncToolProvider, ToolProvider, call_context
from loomq.tools.spec import ToolSilo
from loomq.tools.toolbox import Tool, Toolboxes, load_tool_provider

CODE = """
from loomq.tools.base import ToolProvider
built = []
class Good(ToolProvider):
    def __init__(self, name="good"):
        built.append(name)
        self.name = name
    def get_definition(self):
        return {"name": self.name, "description": "d", "parameters": {"type": "object"}}
    async def execute(self, arguments):
        return "x"
class NoTool:
    pass
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a package of tools."""
    (tmp_path / "somebodys").mkdir()
    (tmp_path / "somebodys" / "__init__.py").touch()
    (tmp_path / "somebodys" / "tools.py").write_text(CODE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "somebodys"]:
        monkeypatch.delitem(sys.modules, name)


def silo(name="t", provider="somebodys.tools.Good", **more):
    return ToolSilo(name=name, type="tool", provider=provider, **more)


class Said(ToolProvider):
    def __init__(self, definition):
        self._definition = definition

    def get_definition(self):
        return self._definition

    async def execute(self, arguments):
        return ""


def test_a_tool_is_built_once_a_process_and_configuration(project):
    boxes = Toolboxes(project, ["somebodys"])
    for _ in range(3):
        box, degraded = boxes.of("w", [silo(), silo("u", config={"name": "other"})])
    assert ([one.name for one in box.definitions], degraded) == (["good", "other"], [])
    assert sys.modules["somebodys.tools"].built == ["good", "other"]


def test_two_tools_of_one_name_are_refused(project):
    with pytest.raises(KnowledgeError, match="two tools of worker w have the same name"):
        Toolboxes(project, ["somebodys"]).of("w", [silo(), silo("u", config={"name": "good"})])


@pytest.mark.parametrize(
    ("provider", "told"),
    [
        ("os.system", "outside the packages"),
        ("subprocess.Popen", "outside the packages"),
        ("somebodys.tools.NoTool", "is not a ToolProvider"),
        ("somebodys.tools.Missing", "has no 'Missing'"),
    ],
)
def test_what_is_no_tool_is_not_built(project, provider, told):
    with pytest.raises(KnowledgeError, match=told):
        Toolboxes(project, ["somebodys"]).of("w", [silo(provider=provider)])
    box, degraded = Toolboxes(project, ["somebodys"]).of("w", [silo(provider=provider, required=False)])
    assert box.definitions == ()
    assert told in degraded[0]


def test_a_class_can_be_loaded_by_itself(project):
    sys.path.append(str(project))
    assert (
        load_tool_provider("somebodys.tools.Good", {"name": "x"}, allow=["somebodys"]).get_definition()["name"] == "x"
    )
    with pytest.raises(ImportRefusedError):
        load_tool_provider("somebodys.tools.Good", allow=[])
    with pytest.raises(KnowledgeError, match="cannot be built"):
        load_tool_provider("somebodys.tools.Good", {"nonsense": 1}, allow=["somebodys"])


@pytest.mark.parametrize(
    "definition",
    [
        None,
        {},
        {"name": "a", "description": "d"},
        {"name": "a", "description": "d", "parameters": {"$ref": "http://127.0.0.1/s"}},
        {"name": "a b", "description": "d", "parameters": {"type": "object"}},
        {"name": "x" * 65, "description": "d", "parameters": {"type": "object"}},
        {"name": 7, "description": "d", "parameters": {"type": "object"}},
    ],
)
def test_a_definition_that_no_provider_would_take_is_refused(definition):
    with pytest.raises(KnowledgeError):
        Tool.of(Said(definition), "t")


def test_there_is_no_call_outside_a_call():
    with pytest.raises(LookupError):
        call_context()


def test_what_blocks_can_be_asked_for_asynchronously():
    import asyncio

    class Slow(SyncToolProvider):
        def get_definition(self):
            return {}

        def execute_sync(self, arguments):
            return f"got {arguments['n']}"

    assert asyncio.run(Slow().execute({"n": 1})) == "got 1"
