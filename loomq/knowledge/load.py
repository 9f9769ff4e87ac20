"""What a worker knows, read from the disk: one file, or the texts of a folder that no link leads out of."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from loomq.errors import KnowledgeError, UnsafePathError
from loomq.knowledge.examples import numbered
from loomq.knowledge.ignore import IGNORE_FILE, is_ignored, read_rules
from loomq.knowledge.spec import MAX_FOLDER_BYTES
from loomq.workspace import WorkspaceManager

if TYPE_CHECKING:
    from loomq.knowledge.spec import FolderSilo, KnowledgeSource

SUFFIXES = frozenset({".md", ".txt", ".yaml", ".yml", ".json", ".csv", ".toml"})
MAX_IGNORE_BYTES = 64 * 1024

_FAULTS = (OSError, UnsafePathError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Piece:
    """A text that stands before the system prompt.

    Args:
        name: The source's path or the silo's name.
        file: Its ref within the silo; the path again for a source.
        text: All of it.
        few_shot: Whether it shows what a good answer looks like.
    """

    name: str
    file: str
    text: str
    few_shot: bool = False


def load_source(project: Path, source: KnowledgeSource) -> Piece:
    """Read a knowledge source; as examples if it is meant so and is a list of them, else as it is.

    Args:
        project: What its path is relative to.

    Raises:
        KnowledgeError: It is not there, too large, or no UTF-8 text.
    """
    most = min(source.max_bytes or MAX_FOLDER_BYTES, MAX_FOLDER_BYTES)
    try:
        where = located(project, source.path)
        text = _unmarked(WorkspaceManager(where.parent).read_text(where.name, most))
    except _FAULTS as error:
        too_large = f"it may have {most:,} bytes: shorten it, or raise max_bytes ({MAX_FOLDER_BYTES:,} at most)"
        raise _failure(f"knowledge source {source.path}", error, _absent(project), too_large) from error
    is_few_shot = source.inject_as == "few_shot"
    return Piece(source.path, source.path, (numbered(text) if is_few_shot else None) or text, is_few_shot)


def load_folder(project: Path, silo: FolderSilo) -> list[Piece]:
    """Read the texts of a silo's folder, in the order of their refs.

    Hidden files, those of other suffixes and what ``.siloignore`` names are left out; links are not followed. A folder
    that the worker writes may be missing: the first change makes it.

    Args:
        project: What its path is relative to.

    Raises:
        KnowledgeError: The folder is not there, holds more than 10 MiB of text, or a file that is no UTF-8.
    """
    what = f"silo {silo.name} ({silo.path})"
    try:
        files = WorkspaceManager(located(project, silo.path))
        refs = [ref for ref, _ in files.walk() if is_text(ref) and not is_hidden(ref)]
    except _FAULTS as error:
        if isinstance(error, FileNotFoundError) and silo.permissions == "read_write":
            return []
        raise _failure(what, error, _absent(project)) from error
    rules = read_rules(_unmarked(_text(files, what, IGNORE_FILE, MAX_IGNORE_BYTES) or ""))
    pieces, left = [], MAX_FOLDER_BYTES
    for ref in refs:
        text = None if is_ignored(rules, ref) else _text(files, what, ref, left)
        if text is not None:
            left -= len(text.encode())
            pieces.append(Piece(silo.name, ref, _unmarked(text)))
    return pieces


def located(project: Path, path: str) -> Path:
    """Say where a path of a YAML file leads, ``~`` expanded and links resolved: it is the operator's own.

    Raises:
        FileNotFoundError: Nowhere: no such home, a circle of links.
    """
    try:
        return (project / Path(path).expanduser()).resolve()
    except (RuntimeError, ValueError) as error:
        raise FileNotFoundError(errno.ENOENT, str(error), path) from error


def folder_of(project: Path, silo: FolderSilo) -> str:
    """Give the one name of a silo's folder, however its path is written: relative to the project if it is within it."""
    try:
        where = located(project, silo.path)
    except OSError:
        return silo.path
    top = project.resolve()
    return where.relative_to(top).as_posix() if where.is_relative_to(top) else str(where)


def is_text(ref: str) -> bool:
    """Say whether a file's suffix is one of those that silos hold."""
    return PurePosixPath(ref).suffix.lower() in SUFFIXES


def is_hidden(ref: str) -> bool:
    """Say whether a file or a folder that it is in begins with a dot."""
    return any(part.startswith(".") for part in ref.split("/"))


def _text(files: WorkspaceManager, what: str, ref: str, most: int) -> str | None:
    """Read a file of a silo; None if it is not there, or not any more."""
    try:
        return files.read_text(ref, most)
    except FileNotFoundError:
        return None
    except _FAULTS as error:
        hint = f"it may have {most:,} bytes, a silo {MAX_FOLDER_BYTES:,}; name in {IGNORE_FILE} what is not needed"
        raise _failure(f"{what}: {ref}", error, too_large=hint) from error


def _unmarked(text: str) -> str:
    """Leave out the mark that some editors put before UTF-8."""
    return text.removeprefix("\ufeff")


def _absent(project: Path) -> str:
    return f"paths are relative to the project, {project}; correct it, or say required: false"


def _failure(what: str, error: Exception, absent: str = "", too_large: str = "") -> KnowledgeError:
    """Tell why something cannot be loaded, and the way out: two of them depend on what it is."""
    if isinstance(error, UnicodeDecodeError):
        return KnowledgeError(f"{what} is not UTF-8 text (byte {error.start})", hint="save it as UTF-8")
    if isinstance(error, FileNotFoundError):
        return KnowledgeError(f"{what} is not there", hint=absent)
    if isinstance(error, NotADirectoryError):
        return KnowledgeError(f"{what} leads to something that is no folder", hint=absent)
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return KnowledgeError(f"{what} is too large", hint=too_large)
    if isinstance(error, UnsafePathError):
        hint = "use regular files with plain names, and no links"
        return KnowledgeError(f"{what} cannot be loaded: {error.message}", hint=hint)
    told = error.strerror if isinstance(error, OSError) else error
    return KnowledgeError(f"{what} cannot be loaded: {told}", hint="see that the user who runs the node may read it")
