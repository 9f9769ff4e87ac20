"""`.siloignore`: globs, folders, comments, and what is taken back."""

from __future__ import annotations

import pytest

from loomq.knowledge.ignore import is_ignored, read_rules


@pytest.mark.parametrize(
    ("lines", "ref", "ignored"),
    [
        ("", "a.md", False),
        ("a.md", "a.md", True),
        ("a.md", "deep/er/a.md", True),
        ("a.md", "aa.md", False),
        ("A.md", "a.md", False),
        ("*.csv", "a.csv", True),
        ("*.csv", "deep/a.csv", True),
        ("*.csv", "a.md", False),
        ("data-?.csv", "data-1.csv", True),
        ("data-[0-4].csv", "data-5.csv", False),
        ("drafts/", "drafts/a.md", True),
        ("drafts/", "deep/drafts/er/a.md", True),
        ("drafts/", "drafts", False),
        ("drafts.md/", "deep/drafts.md", False),
        ("drafts", "drafts/a.md", True),
        ("old*/", "older/a.md", True),
        ("deep/drafts/", "deep/drafts/a.md", True),
        ("deep/drafts/", "very/deep/drafts/a.md", False),
        ("deep/a.md", "deep/a.md", True),
        ("deep/a.md", "very/deep/a.md", False),
        ("deep/*.md", "deep/a.md", True),
        ("deep/*.md", "deep/er/a.md", True),
        ("/a.md", "a.md", True),
        ("/a.md", "deep/a.md", False),
        ("/drafts/", "deep/drafts/a.md", False),
        ("**/a.md", "a.md", True),
        ("**/a.md", "deep/a.md", True),
        ("deep/**", "deep/er/a.md", True),
        ("# a.md", "a.md", False),
        ("#a.md", "a.md", False),
        ("  a.md  ", "a.md", True),
        ("x\r\na.md\r\n", "a.md", True),
        ("*\n!a.md", "a.md", False),
        ("*\n!a.md", "b.md", True),
        ("!a.md\n*", "a.md", True),
        ("drafts/\n! drafts/keep.md", "drafts/keep.md", False),
        ("*.md\n!drafts/\n*secret*", "drafts/a.md", False),
        ("*.md\n!drafts/\n*secret*", "drafts/secret.md", True),
        ("/", "a.md", False),
        ("!", "a.md", False),
        ("!/", "a.md", False),
        ("[", "a.md", False),
    ],
)
def test_the_last_rule_that_names_a_file_decides(lines, ref, ignored):
    assert is_ignored(read_rules(lines), ref) is ignored
