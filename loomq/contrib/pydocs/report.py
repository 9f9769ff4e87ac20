"""Report: put what the stages found into one JSON file and one page that needs nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loomq.contrib.pydocs.page import render
from loomq.contrib.pydocs.place import workspace
from loomq.workers.base import SyncProcessingBackend

if TYPE_CHECKING:
    from collections.abc import Mapping


class Report(SyncProcessingBackend):
    """Write the report.

    Args:
        packages: How many packages are shown with their keywords, the ones with the most passages first.
        groups: How many groups of near duplicates are shown.
    """

    def __init__(self, packages: int = 18, groups: int = 12) -> None:
        self._packages = packages
        self._groups = groups

    def process_sync(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Write ``report.html`` and ``report.json`` and say where they are."""
        space = workspace()
        keywords = space.read_json(payload["keywords_ref"])
        groups = space.read_json(payload["near_duplicates"]["groups_ref"])
        ranked = space.read_json(payload["readability"]["readability_ref"])
        corpus, cut = payload["corpus"], payload["cut"]
        report = {
            "python": corpus["python"],
            "figures": {
                "files": corpus["files"],
                "source_bytes": corpus["bytes"],
                "documents": cut["docs"],
                "chars": cut["chars"],
                "passages": cut["chunks"],
                "packages": cut["packages"],
                "near_duplicate_groups": payload["near_duplicates"]["groups"],
                "reading_ease": payload["readability"]["overall"]["reading_ease"],
            },
            "answer": payload["answer"],
            "summary": _summary(payload),
            "digest": payload["digest"],
            "keywords": {
                "overall": keywords["overall"][:20],
                "packages": _telling(keywords["packages"], payload["digest"], self._packages),
            },
            "readability": {"overall": payload["readability"]["overall"], "packages": ranked},
            "near_duplicates": groups,
        }
        html_ref = space.write_text(f"{payload['goal_id']}/report.html", render(report, self._groups))
        json_ref = space.write_json(f"{payload['goal_id']}/report.json", report)
        output = {
            "html_ref": html_ref,
            "json_ref": json_ref,
            "html_path": str(space.resolve(html_ref)),
            "json_path": str(space.resolve(json_ref)),
            "figures": report["figures"],
        }
        return {"output": output, "model_used": None}


def _summary(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Take the summary with its model's name, and with the places of those sentences that it really quotes."""
    said = payload["summary"]
    places = {entry["text"]: entry for entry in payload["digest"]["sentences"]}
    quotes = [places[text] for text in said.get("sentences", ()) if text in places]
    return {"text": said["summary"], "model": payload["summary_by"], "quotes": quotes}


def _telling(keywords: Mapping[str, list[Any]], digest: Mapping[str, Any], limit: int) -> dict[str, list[Any]]:
    """Take the packages that the digest speaks of, then those with the strongest keywords."""
    first = [entry["package"] for entry in digest["packages"] if entry["package"] in keywords]
    strength = {package: sum(entry["score"] for entry in entries) for package, entries in keywords.items() if entries}
    others = sorted(
        strength.keys() - set(first), key=lambda package: (package.startswith("_"), -strength[package], package)
    )
    return {package: keywords[package] for package in [*first, *others][:limit]}
