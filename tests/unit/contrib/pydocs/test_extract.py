"""Docstrings and topics, each with the line where it stands."""

from __future__ import annotations

import textwrap

from loomq.contrib.pydocs.extract import Extract, documents

SOURCE = '''
"""
Module text,
second line.
"""

class Outer:
    "One line."

    def method(self):
        """\\
        After a continued line.

        Second paragraph.
        """
        def inner():
            """Not for readers."""

    class Inner:
        """Inner text."""

if True:
    async def conditional():
        r"""Raw \\d text."""
else:
    def other():
        "joined " \\
        "text\\n" \\
        "third line"

def bare():
    pass
'''


def read(tmp_path, name, source):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(source)
    return {document.symbol: document for document in documents(tmp_path, name)}


def test_every_docstring_is_found_with_its_line_and_kind(tmp_path):
    found = read(tmp_path, "pkg/mod.py", SOURCE)
    told = {symbol: (document.kind, document.line, document.text) for symbol, document in found.items()}
    assert told == {
        "pkg.mod": ("module", 3, "Module text,\nsecond line."),
        "pkg.mod.Outer": ("class", 8, "One line."),
        "pkg.mod.Outer.method": ("function", 12, "After a continued line.\n\nSecond paragraph."),
        "pkg.mod.Outer.Inner": ("class", 20, "Inner text."),
        "pkg.mod.conditional": ("function", 24, "Raw \\d text."),
        "pkg.mod.other": ("function", 27, "joined text\nthird line"),
    }
    lines = SOURCE.split("\n")
    for document in found.values():
        for fragment in document.text.split("\n"):
            if fragment and fragment != "joined text":
                line = document.line_at(document.text.index(fragment))
                assert fragment in lines[line - 1]
    assert {document.package for document in found.values()} == {"pkg"}


def test_the_package_file_is_named_after_its_package(tmp_path):
    assert list(read(tmp_path, "pkg/__init__.py", '"""Package text."""')) == ["pkg"]


def test_language_topics_are_found_in_both_ways_that_pythons_write_them(tmp_path):
    joined = read(
        tmp_path,
        "pydoc_data/topics.py",
        "topics = {'if': 'The \"if\" statement\\n'\n"
        "       '*****\\n'\n"
        "       '\\n'\n"
        "       'It isn\\'t a loop, '\n"
        "       'is it?\\n'\n"
        "       'Last words.\\n',\n"
        " 'in': 'Membership tests.'}\n",
    )
    topic = joined["help('if')"]
    assert (topic.kind, topic.package, topic.line) == ("topic", "language reference", 1)
    assert topic.line_at(topic.text.index("It isn't")) == 4
    assert topic.line_at(topic.text.index("Last words")) == 6
    assert joined["help('in')"].line == 7
    raw = read(
        tmp_path,
        "pydoc_data/topics.py",
        textwrap.dedent('''\
            topics = {
                'if': r"""The "if" statement
            *****

            Last words.
            """,
            }
            '''),
    )
    assert raw["help('if')"].line_at(raw["help('if')"].text.index("Last")) == 5


def test_characters_that_databases_refuse_become_spaces(tmp_path):
    found = read(tmp_path, "mod.py", '"""Nul \\0, bell \\x07, lone \\ud800 half."""')
    assert found["mod"].text == "Nul  , bell  , lone   half."


def test_short_texts_are_left_out_and_broken_files_counted(space, tmp_path):
    (tmp_path / "good.py").write_text(f'"""{"Long enough. " * 8}"""\ndef f():\n    "Short."\n')
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "encoded.py").write_bytes(b"# coding: nonsense\nx = 1\n")
    space.write_json(
        "g/sources_0.json", {"root": str(tmp_path), "files": ["good.py", "broken.py", "encoded.py", "gone.py"]}
    )
    output = Extract(min_chars=80).process_sync({"shard": "g/sources_0.json"}, {})["output"]
    assert (output["docs"], output["files"], output["unreadable_files"]) == (1, 4, 3)
