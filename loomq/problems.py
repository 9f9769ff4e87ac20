"""What is wrong with a file: one problem, where it stands, how it is shown, and the table of stable ids."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

EXPLANATIONS = {
    "LQ101": "The file cannot be read: it is missing, too large, or not UTF-8.",
    "LQ102": "The text is not YAML.",
    "LQ103": "A key stands twice in one mapping; YAML would silently keep the last one.",
    "LQ104": "A YAML feature that configuration may not use: object tags, keys that are not text, many documents.",
    "LQ105": "The document is nested too deeply or has too many nodes, counted with every alias expanded.",
    "LQ106": "A number that JSON cannot carry (.inf, .nan, thousands of digits).",
    "LQ107": "Nothing says what kind of file this is.",
    "LQ110": "A key that this kind of file does not have.",
    "LQ111": "A key that must be there is missing.",
    "LQ112": "A value has the wrong type.",
    "LQ113": "A value is not one of those allowed.",
    "LQ114": "A value is out of its bounds or does not have the required form.",
    "LQ115": "A name is malformed, or differs from the name of its file.",
    "LQ116": "Two things of one kind have the same name.",
    "LQ117": "Keys that contradict each other or that only make sense together.",
    "LQ120": "The formats describe this and this version does not do it yet.",
    "LQ130": "A dotted name is outside the packages that YAML may import from.",
    "LQ131": "An allowed dotted name cannot be loaded, or is not what it should be.",
    "LQ132": "A contract is not a usable JSON Schema (Draft 2020-12, local references, linear patterns).",
    "LQ133": "A file or folder of a worker's knowledge that is not there.",
    "LQ140": "A schedule that no clock understands.",
    "LQ201": "A worker_type that no worker file has.",
    "LQ202": "A path of a mapping or a for_each that is malformed.",
    "LQ203": "A path that starts at something which is not there.",
    "LQ204": "A path that the producing stage's output_schema cannot have.",
    "LQ205": "A mapped value whose type the consumer's input_schema refuses.",
    "LQ206": "A field that the consumer's input_schema requires and no mapping fills.",
    "LQ207": "A goal.context key that the pipeline's input_schema does not have.",
    "LQ208": "Stages that wait for each other in a circle.",
    "LQ209": "A stage that depends on itself.",
    "LQ210": "A path to a stage that depends_on does not make an ancestor.",
    "LQ211": "A depends_on entry that names no stage of the pipeline.",
    "LQ212": "A mapped field that the consumer's input_schema does not allow.",
    "LQ213": "A condition that is malformed.",
    "LQ214": "A comparison that never holds, or not for what it seems to compare.",
    "LQ215": "A for_each over something that is no list.",
    "LQ216": "A pipeline that no file has.",
    "LQ217": "Pipelines that contain themselves, or stand too deep inside each other.",
    "LQ218": "A fallback value that the stage's output_schema refuses.",
    "LQ219": "A part of the result that is missing when a stage is skipped.",
    "LQ220": "A schedule hands in what the pipeline or worker would refuse.",
}

_WINDOW = 160  # characters of a long line that are shown around the fault
_MOST_NAMES = 1000  # beyond it the search for a near name would be felt


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in one file.

    Args:
        id: A key of ``EXPLANATIONS``; it never changes its meaning.
        message: What is wrong, in one line.
        file: The file as the user named it.
        line: From 1.
        col: From 1, in characters.
        path: The keys that lead there, as ``pipeline_stages.0.tier``.
        hint: The way out, if one is known.
        source: The line of the file, for the caret.
        width: Characters that the caret underlines.
        severity: ``error``, or ``warning`` for what does not stop anything.
    """

    id: str
    message: str
    file: str
    line: int = 1
    col: int = 1
    path: str = ""
    hint: str = ""
    source: str = ""
    width: int = 1
    severity: str = "error"

    def headline(self) -> str:
        """Say it in one line: ``file:line:col: error[LQ103]: path: what; hint``."""
        return f"{self.file}:{self.line}:{self.col}: {self.severity}[{self.id}]: {self._text()}"

    def render(self) -> str:
        """Show the headline, the line of the file, and a caret under the fault."""
        if not self.source:
            return self.headline()
        number = f"{self.line:>5}"
        start = max(0, self.col - _WINDOW // 2) if len(self.source) > _WINDOW else 0
        shown = printable(self.source[start : start + _WINDOW])
        at = self.col - 1 - start
        # Tabs are kept in the margin, so that the caret stands under its character in any terminal.
        before = "".join("\t" if char == "\t" else " " for char in shown[:at])
        width = max(1, min(self.width, len(shown) - at))
        return f"{self.headline()}\n{number} | {shown}\n{' ' * len(number)} | {before}{'^' * width}"

    def github(self) -> str:
        """Write it as a GitHub Actions workflow command, which annotates the line in a pull request."""
        place = f"file={_property(self.file)},line={self.line},col={self.col},title={self.id}"
        return f"::{self.severity} {place}::{_data(self._text())}"

    def _text(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return printable(f"{where}{self.message}{f'; {self.hint}' if self.hint else ''}")

    def to_json(self) -> dict[str, Any]:
        """Describe it as the object that ``--json`` prints."""
        return {
            "id": self.id,
            "severity": self.severity,
            "file": self.file,
            "line": self.line,
            "col": self.col,
            "path": self.path,
            "message": self.message,
            "hint": self.hint,
        }


def suggest(name: str, known: Iterable[str]) -> str:
    """Say ``did you mean "…"?`` for a misspelt name, or nothing when no known name is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1) if len(names) <= _MOST_NAMES else []
    return f'did you mean "{near[0]}"?' if near else ""


def listed(names: Sequence[str], *, most: int = 12) -> str:
    """Join names for a message, at most ``most`` of them."""
    shown = ", ".join(names[:most])
    return f"{shown}, … ({len(names)} in all)" if len(names) > most else shown


def dotted(path: Iterable[str | int]) -> str:
    """Write a key path as one word, ``pipeline_stages.0.tier``."""
    return ".".join(str(part) for part in path)


def printable(text: str) -> str:
    """Replace what could steer a terminal; the text comes from a file that anybody wrote."""
    return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
