"""Which sources are read, and how they are dealt."""

from __future__ import annotations

import pytest

from loomq.contrib.pydocs.collect import Collect, deal, sources
from loomq.errors import BackendError


def test_tests_caches_and_other_peoples_packages_are_left_out(tmp_path):
    for name in (
        "a.py",
        "pkg/b.py",
        "pkg/test/c.py",
        "site-packages/d.py",
        "idlelib/e.py",
        "pkg/__pycache__/f.py",
        "config-3.11/g.py",
        "pydoc_data/topics.py",
        "pydoc_data/other.py",
        "notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "linked").symlink_to(tmp_path / "pkg")
    assert sorted(sources(tmp_path)) == [("a.py", 6), ("pkg/b.py", 6), ("pydoc_data/topics.py", 6)]


def test_shards_are_of_equal_size_and_hold_each_file_once():
    files = [(f"f{number}.py", (number * 7919) % 1000 + 1) for number in range(200)]
    dealt = deal(files, 4)
    assert sorted(name for shard in dealt for name in shard) == sorted(name for name, _ in files)
    sizes = dict(files)
    loads = [sum(sizes[name] for name in shard) for shard in dealt]
    assert max(loads) - min(loads) <= max(sizes.values())


def test_a_python_without_sources_is_named(space, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackendError, match="no Python sources"):
        Collect(root=str(tmp_path / "empty")).process_sync({"goal_id": "g"}, {})
