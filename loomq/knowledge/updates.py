"""Changes of silos that a model asks for: what may be done at all, and doing one on the disk."""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.errors import UnsafePathError
from loomq.inline import storable_text
from loomq.knowledge.load import SUFFIXES, is_hidden, is_text, located
from loomq.redaction import excerpt
from loomq.workspace import WorkspaceManager, normal_ref

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from loomq.knowledge.spec import FolderSilo

ACTIONS = ("add", "modify", "delete")
MAX_UPDATES = 100

_KEYS = ("silo", "action", "filename", "content")
_MAX_SHOWN = 200
_KINDS: dict[type, str] = {list: "a list", dict: "a mapping"}
# Names that loomq takes and the disk does not, now or later.
_BAD_NAMES = {errno.ENAMETOOLONG, errno.EILSEQ}


class _RefusalError(Exception):
    """Why an update is not made; it never leaves this file."""


@dataclass(frozen=True, slots=True)
class Update:
    """One change of one file.

    Args:
        silo: The silo's name.
        action: ``add``, ``modify`` or ``delete``.
        filename: The file's ref within the silo, in its one spelling.
        content: The whole new text; None for ``delete``.
    """

    silo: str
    action: str
    filename: str
    content: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A change that is not made.

    Args:
        asked: What the model asked for, texts cut short; JSON that can be stored.
        reason: Why not, for the result.
    """

    asked: dict[str, Any]
    reason: str


def read_updates(value: Any, silos: Mapping[str, FolderSilo]) -> tuple[list[Update], list[Refused]]:
    """Check what a model asks for, which is not to be trusted, without a look at the disk.

    Args:
        value: What stands under ``silo_updates`` in its answer.
        silos: The worker's folders by name.

    Returns:
        What may be tried, and what is refused; each in the order in which it was asked for.
    """
    if not isinstance(value, list):
        return [], [Refused({"silo_updates": _shown(value)}, "silo_updates is not a list")]
    if len(value) > MAX_UPDATES:
        return [], [Refused({"silo_updates": f"{len(value):,} entries"}, f"more than {MAX_UPDATES} changes at once")]
    updates, refused = [], []
    for one in value:
        try:
            updates.append(_read(one, silos))
        except _RefusalError as refusal:
            refused.append(Refused(_asked(one), str(refusal)))
    return updates, refused


def apply_update(project: Path, silo: FolderSilo, update: Update) -> str | None:
    """Make one change on the disk, whole or not at all; made once more after a crash, it is the same change.

    Whoever calls sees to it that no other change of the same folder is made meanwhile.

    Args:
        project: What the silo's path is relative to.

    Returns:
        None if it is made, or why it is refused.

    Raises:
        OSError: The disk does not let us, now: it is full, or not ours. To be tried again.
    """
    files = WorkspaceManager(located(project, silo.path))
    try:
        ref = _checked(silo, update.action, update.filename, update.content)
        if update.content is None:
            with contextlib.suppress(FileNotFoundError):
                files.delete(ref)
        else:
            _write(files, silo, update.action, ref, update.content)
    except _RefusalError as refusal:
        return str(refusal)
    except UnsafePathError as error:
        return error.message
    except OSError as error:
        if error.errno in _BAD_NAMES:
            return f"the file system does not take this filename: {error.strerror}"
        raise
    return None


def _read(one: Any, silos: Mapping[str, FolderSilo]) -> Update:
    """Read one entry of a model's list."""
    if not isinstance(one, dict):
        raise _RefusalError("not a mapping")
    if unknown := [_short(str(key)) for key in one if key not in _KEYS]:
        raise _RefusalError(f"unknown key {unknown[0]}; known are {', '.join(_KEYS)}")
    name, action, content = one.get("silo"), one.get("action"), one.get("content")
    silo = silos.get(name) if isinstance(name, str) else None
    if silo is None:
        raise _RefusalError(f"there is no silo {_shown(name)}")
    if action == "delete" and content == "":
        content = None  # what a model puts where it has nothing to say
    return Update(silo.name, str(action), _checked(silo, action, one.get("filename"), content), content)


def _checked(silo: FolderSilo, action: Any, filename: Any, content: Any) -> str:
    """Check all of a change that can be checked without the disk, and give its ref."""
    if silo.permissions != "read_write":
        raise _RefusalError(f"silo {silo.name} may only be read")
    if action not in ACTIONS:
        raise _RefusalError(f"the action is none of {', '.join(ACTIONS)}")
    if action == "delete" and content is not None:
        raise _RefusalError("delete takes no content")
    if action != "delete":
        _check_content(silo, content)
    return _checked_ref(filename)


def _checked_ref(filename: Any) -> str:
    if not isinstance(filename, str):
        raise _RefusalError("the filename is not a text")
    try:
        ref = normal_ref(filename)
    except UnsafePathError as error:
        raise _RefusalError(error.message) from None
    if is_hidden(ref):
        raise _RefusalError("no part of a filename may begin with a dot")
    if not is_text(ref):
        raise _RefusalError(f"the filename has to end in one of {' '.join(sorted(SUFFIXES))}")
    return ref


def _check_content(silo: FolderSilo, content: Any) -> None:
    if not isinstance(content, str):
        raise _RefusalError("the content is not a text")
    try:
        size = len(content.encode())
    except UnicodeEncodeError:
        raise _RefusalError("the content is not Unicode text") from None
    if "\x00" in content:
        raise _RefusalError("the content holds a NUL character")
    if size > silo.max_bytes:
        raise _RefusalError(f"the content takes {size:,} bytes; silo {silo.name} may hold {silo.max_bytes:,}")


def _write(files: WorkspaceManager, silo: FolderSilo, action: str, ref: str, content: str) -> None:
    """Write a file; also if it says the same already, for a crash may have come before it was safe on the disk."""
    data = content.encode()
    try:
        with files.open_read(ref) as file:
            is_same = file.read(len(data) + 1) == data
    except FileNotFoundError:
        is_same = False
        if action == "modify":
            raise _RefusalError("does not exist; add it") from None
    else:
        if action == "add" and not is_same:
            raise _RefusalError("exists; modify it")
    if not is_same:
        _check_quota(files, silo, ref, len(data))
    files.write_text(ref, content)


def _check_quota(files: WorkspaceManager, silo: FolderSilo, ref: str, size: int) -> None:
    """Count what the folder would hold after a write, hidden files and those of other suffixes included."""
    try:
        sizes = dict(files.walk())
    except FileNotFoundError:
        sizes = {}
    sizes[ref] = size
    if len(sizes) > silo.max_files:
        raise _RefusalError(f"silo {silo.name} would hold {len(sizes):,} files; it may hold {silo.max_files:,}")
    total = sum(sizes.values())
    if total > silo.max_bytes:
        raise _RefusalError(f"silo {silo.name} would hold {total:,} bytes; it may hold {silo.max_bytes:,}")


def _asked(one: Any) -> dict[str, Any]:
    """Show what was asked for, short and fit for ``jsonb``."""
    if not isinstance(one, dict):
        return {"update": _shown(one)}
    return {_short(str(key)): _shown(one[key]) for key in list(one)[: 2 * len(_KEYS)]}


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return _short(value)
    return value if value is None or isinstance(value, bool) else _KINDS.get(type(value), "a number")


def _short(text: str) -> str:
    return excerpt(storable_text(text), length=_MAX_SHOWN)
