"""What each problem's id means at length: the likely cause, an example, and what to type next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loomq.errors import NotFoundError
from loomq.problems import EXPLANATIONS, listed, suggest

# For each id: the likely cause; what is wrong and what is right, or nothing; the next command.
_VALIDATE, _SCHEMA = "loomq validate", "loomq schema worker"
_MORE: dict[str, tuple[str, str, str, str]] = {
    "LQ101": ("a wrong path, or a file saved in another encoding", "", "", "file -i workers/NAME.yaml"),
    "LQ102": ("a tab for indentation, or a text with a colon and no quotes", "title: a: b", 'title: "a: b"', _VALIDATE),
    "LQ103": ("a block was copied, and one of its keys not renamed", "{a: 1, a: 2}", "{a: 1, b: 2}", _VALIDATE),
    "LQ104": ("a YAML feature that runs code or hides structure", "!!python/name:os.system", "plain text", _VALIDATE),
    "LQ105": ("aliases that stand for aliases, or a value that belongs into a file of its own", "", "", _VALIDATE),
    "LQ106": ("a number that is not finite", "max: .inf", "max: 60", _VALIDATE),
    "LQ107": ("the file stands in none of the project's folders", "", "", "mv NAME.yaml workers/"),
    "LQ110": ("a misspelt key, or one indented too far or not enough", "worker_knd: llm", "worker_kind: llm", _SCHEMA),
    "LQ111": ("a key that this kind of worker, stage or entry cannot do without", "", "", _SCHEMA),
    "LQ112": ("quotes around a number, or none around a text", 'timeout_seconds: "60"', "timeout_seconds: 60", _SCHEMA),
    "LQ113": ("a word that is not in the list", "tier: large", "tier: frontier", _SCHEMA),
    "LQ114": ("a value too small, too large or not of the form", "timeout_seconds: 0", "timeout_seconds: 60", _SCHEMA),
    "LQ115": ("the file was renamed and its name not, or has capitals or dashes", "My-Worker", "my_worker", _VALIDATE),
    "LQ116": ("a file was copied and its name kept", "", "", _VALIDATE),
    "LQ117": ("a key left over from another kind", "worker_kind: llm, processing_backend: a.B", "one of both", _SCHEMA),
    "LQ120": ("a key or value of a later version", "worker_kind: agent", "worker_kind: llm", _VALIDATE),
    "LQ130": (
        "the package is not among those that YAML may import",
        "processing_backend: shop.prices.Total",
        'import_allow = ["shop"] in loomq.toml',
        _VALIDATE,
    ),
    "LQ131": ("a misspelt class, or an import that fails", "", "", "python -c 'import PACKAGE.MODULE'"),
    "LQ132": ("a misspelt type, or a pattern with look-around", "{type: int}", "{type: integer}", _VALIDATE),
    "LQ133": (
        "a path that is not relative to the project, or a file that only other machines have",
        "{path: guide.md}",
        "{path: knowledge/guide.md}",
        "loomq try WORKER",
    ),
    "LQ140": ("a cron line with the wrong number of fields", 'cron: "0 25 * * *"', 'cron: "0 1 * * *"', _VALIDATE),
    "LQ201": (
        "a misspelt worker, or its file is missing",
        "worker_type: sumarizer",
        "worker_type: summarizer",
        _VALIDATE,
    ),
    "LQ202": ("a path with a gap or an open bracket", "a.output..x", "a.output.x", _VALIDATE),
    "LQ203": ("a misspelt stage, or a path that forgets goal.context", "context.text", "goal.context.text", _VALIDATE),
    "LQ204": ("the producing worker never gives that field", "a.output.txt", "a.output.text", "loomq plan PIPELINE"),
    "LQ205": ("two contracts that do not agree on a type", "", "", "loomq plan PIPELINE"),
    "LQ206": ("a stage whose mapping forgets a field that its worker needs", "", "", "loomq plan PIPELINE"),
    "LQ207": (
        "a misspelt key, or the pipeline's input_schema lacks it",
        "goal.context.txt",
        "goal.context.text",
        _VALIDATE,
    ),
    "LQ208": ("two stages that read each other", "a reads b.output, b reads a.output", "", "loomq graph PIPELINE"),
    "LQ209": ("a stage that reads its own output", "depends_on: [me]", "depends_on: []", _VALIDATE),
    "LQ210": ("depends_on replaces what the mapping implies", "depends_on: []", "leave depends_on out", _VALIDATE),
    "LQ211": ("a misspelt stage in depends_on", "depends_on: [colect]", "depends_on: [collect]", _VALIDATE),
    "LQ212": ("a worker that takes no additional properties", "", "", "loomq plan PIPELINE"),
    "LQ213": (
        "an operator that does not exist, or a text of several words without quotes",
        "condition: a.output.n = 1",
        "condition: a.output.n == 1",
        _VALIDATE,
    ),
    "LQ214": (
        "quotes around a number, or a path on the right, where it is text",
        "condition: a.output.n > '5'",
        "condition: a.output.n > 5",
        _VALIDATE,
    ),
    "LQ215": ("the path of one item, or of an object", "a.output.urls[0]", "a.output.urls", "loomq plan PIPELINE"),
    "LQ216": ("a misspelt pipeline, or its file is missing", "pipeline: reviews", "pipeline: review", _VALIDATE),
    "LQ217": ("a stage that runs the pipeline it stands in", "", "", "loomq graph PIPELINE"),
    "LQ218": (
        "a value that lacks what the worker promises",
        "fallback: {value: {}}",
        "fallback: {value: {score: 0}}",
        _VALIDATE,
    ),
    "LQ219": (
        "a stage with a condition, read without a way out",
        "total: count.output.n",
        "total: count.output.n | default(0)",
        "loomq plan PIPELINE",
    ),
    "LQ220": (
        "a schedule's context or payload lacks a field that the contract requires",
        "context: {}",
        "context: {text: some text}",
        _VALIDATE,
    ),
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """One id explained.

    Args:
        wrong, right: An example; either may be empty.
    """

    id: str
    what: str
    cause: str
    wrong: str
    right: str
    next: str

    def to_json(self) -> dict[str, Any]:
        """Describe the explanation."""
        example = {"wrong": self.wrong or None, "right": self.right or None} if self.wrong or self.right else None
        return {"id": self.id, "what": self.what, "cause": self.cause, "example": example, "next": self.next}


def explain(id_: str) -> Explanation:
    """Explain an id, in whatever case it was typed.

    Raises:
        NotFoundError: No problem has it.
    """
    asked = id_.upper()
    if asked not in EXPLANATIONS:
        near = sorted(known for known in EXPLANATIONS if known[:-1] == asked[:-1])
        hint = suggest(asked, EXPLANATIONS) if not near else f"near it: {listed(near)}"
        raise NotFoundError(
            f"no problem has the id {id_}", hint=hint or f"ids run from {min(EXPLANATIONS)} to {max(EXPLANATIONS)}"
        )
    return Explanation(asked, EXPLANATIONS[asked], *_MORE[asked])


def ids() -> tuple[str, ...]:
    """List the ids."""
    return tuple(EXPLANATIONS)
