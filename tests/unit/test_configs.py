"""The files of a project, read again: here, in forked children, and not if they are broken."""

import os

import pytest

from loomq.configs import Configs
from loomq.errors import ConfigError
from loomq.settings import Settings

WORKER = "name: {0}\nworker_kind: processor\nprocessing_backend: loomq.contrib.pydocs.chunk.Chunk\n"


@pytest.fixture
def folder(tmp_path):
    for name in ("workers", "pipelines", "deploy"):
        (tmp_path / name).mkdir()
    (tmp_path / "workers" / "a.yaml").write_text(WORKER.format("a"))
    return tmp_path


@pytest.fixture
def heard():
    return []


@pytest.fixture
def configs(folder, heard):
    return Configs(Settings(project=folder), heard.append)


def test_nothing_is_read_before_it_is_needed(tmp_path):
    Configs(Settings(project=tmp_path / "nowhere"))


def test_a_reload_tells_what_has_changed(folder, configs, heard):
    assert configs.router.queues_in_use == ("a.local",)
    assert configs.reload().is_empty
    (folder / "workers" / "b.yaml").write_text(WORKER.format("b"))
    (folder / "workers" / "a.yaml").write_text(WORKER.format("a") + "rate_limit: 5/s\n")
    (folder / "deploy" / "router_rules.yaml").write_text("tier_overrides: {a: standard}\n")
    change = configs.reload()
    assert (change.added, change.changed, change.removed) == (("b",), ("a",), ())
    assert (change.queues, change.rules) == (("a.standard", "b.local"), True)
    assert heard[-1] == change
    assert configs.limits.worker("a").rate == "5/s"
    (folder / "workers" / "b.yaml").unlink()
    assert configs.reload().removed == ("b",)


def test_a_broken_file_is_refused_and_the_old_ones_stay(folder, configs, heard):
    before = configs.project
    (folder / "workers" / "a.yaml").write_text("name: a\nworker_kind: proccessor\n")
    with pytest.raises(ConfigError, match="worker_kind"):
        configs.reload()
    assert configs.project is before
    assert not heard


def test_a_forked_child_hears_of_a_reload_before_its_next_task(folder, configs):
    assert set(configs.project.catalog.workers) == {"a"}
    ask, answer = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.read(ask[0], 1)
        configs.catch_up()
        os.write(answer[1], ",".join(sorted(configs.project.catalog.workers)).encode())
        os._exit(0)
    (folder / "workers" / "b.yaml").write_text(WORKER.format("b"))
    configs.reload()
    os.write(ask[1], b"!")
    assert os.read(answer[0], 100) == b"a,b"
    assert os.waitpid(child, 0)[1] == 0
    for end in (*ask, *answer):
        os.close(end)


def test_a_child_that_finds_the_files_broken_goes_on_with_what_it_had(folder, configs, caplog):
    before = configs.project
    configs.reload()
    twin = Configs(Settings(project=folder))
    twin._project, twin._shared = before, configs._shared
    (folder / "workers" / "a.yaml").write_text("name: [\n")
    twin.catch_up()
    assert twin.project is before
    assert "broken again" in caplog.text
    twin.catch_up()
    assert caplog.text.count("broken again") == 1
