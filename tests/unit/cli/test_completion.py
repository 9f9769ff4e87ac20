"""Shells get their scripts, and answers while somebody types."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from loomq.cli import completion, main


def completions(monkeypatch, capsys, line: str) -> list[str]:
    words = line.split(" ")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv(completion.VARIABLE, "bash_complete")
    assert completion.answer(main.cli) == 0
    return [found.partition(",")[2] for found in capsys.readouterr().out.split()]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("loomq exp", ["explain", "explain-error"]),
        ("loomq plan d", ["diamond"]),
        ("loomq try ", ["echo"]),
        ("loomq run ", ["diamond", "echo"]),
        ("loomq graph diamond --format s", ["svg"]),
        ("loomq explain-error LQ11", [f"LQ11{digit}" for digit in range(8)]),
        ("loomq show ", []),  # no database runs, and none is started
        ("loomq dead-letter replay ", []),
    ],
)
def test_what_is_typed_is_completed(program, monkeypatch, capsys, line, found):
    assert completions(monkeypatch, capsys, line) == found


def test_files_that_are_templates_are_no_names(program, monkeypatch, capsys):
    program.write("workers/_template.yaml", "name: x\n")
    assert completions(monkeypatch, capsys, "loomq try ") == ["echo"]


def test_nobody_asks_unless_the_shell_does(monkeypatch):
    monkeypatch.delenv(completion.VARIABLE, raising=False)
    assert completion.answer(main.cli) is None


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_each_shell_takes_its_script(empty, shell):
    found = json.loads(empty("completion", shell, "--json")[0])
    assert empty("completion", shell) == (found["script"] + "\n", "")
    assert completion.VARIABLE in found["script"]
    assert f"loomq completion {shell}" in found["setup"]
    if shutil.which(shell):
        subprocess.run([shell, "-n", "/dev/stdin"], input=found["script"], text=True, check=True)
