"""`.siloignore`: which files of a silo stay out of the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

IGNORE_FILE = ".siloignore"


@dataclass(frozen=True, slots=True)
class Rule:
    """One line.

    Args:
        pattern: A glob; ``*`` also spans folders.
        takes_back: Whether what it matches is loaded after all (``!``).
        only_folders: Whether it matches folders only (a slash at its end).
    """

    pattern: str
    takes_back: bool = False
    only_folders: bool = False

    def matches(self, ref: str) -> bool:
        """Say whether the rule names a file, or a folder that the file is in."""
        parts = ref.split("/")
        for end in range(1, len(parts) + (not self.only_folders)):
            path = "/".join(parts[:end])
            # With a slash before it, for /anchored and **/anywhere.
            names = [path, f"/{path}"] if "/" in self.pattern else [path, parts[end - 1]]
            if any(fnmatchcase(name, self.pattern) for name in names):
                return True
        return False


def read_rules(text: str) -> list[Rule]:
    """Read the lines of a ``.siloignore``: globs, ``#`` comments, ``folder/``, ``!`` to take back."""
    rules = []
    for line in map(str.strip, text.splitlines()):
        takes_back = line.startswith("!")
        pattern = line.removeprefix("!").strip()
        if pattern.strip("/") and not line.startswith("#"):
            rules.append(Rule(pattern.rstrip("/"), takes_back, only_folders=pattern.endswith("/")))
    return rules


def is_ignored(rules: list[Rule], ref: str) -> bool:
    """Say whether a file stays out: the last rule that names it decides."""
    return next((not rule.takes_back for rule in reversed(rules) if rule.matches(ref)), False)
