"""Files that tasks share: every name stays below one folder, whatever it says and whoever swaps links meanwhile."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
import unicodedata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from loomq.errors import UnsafePathError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PART_BYTES = 255
MAX_NAME_BYTES = 4096

_DRIVE = re.compile(r"[A-Za-z]:")
_REFUSED_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.tmp")  # of a write whose process was killed
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a pipe that someone left there must not wait for its other end.
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def normal_ref(name: str) -> str:
    """Give a relative name in its one spelling, without a look at any disk.

    Args:
        name: As for ``safe_path``.

    Raises:
        UnsafePathError: As from ``safe_path``, but for links.
    """
    return "/".join(_parts(name))


def safe_path(root: Path, name: str) -> Path:
    """Say where a relative name leads, if it stays below ``root``.

    This answers for the moment of the call; to open the file use ``WorkspaceManager``, which follows no link at all.

    Args:
        root: The folder to stay in; it need not exist yet.
        name: A relative name with forward slashes, from an untrusted place.

    Returns:
        The absolute path, links resolved.

    Raises:
        UnsafePathError: The name is absolute, climbs, carries characters that no file name needs, is too long, or
            leads outside by a link.
    """
    top = root.resolve()
    try:
        found = top.joinpath(*_parts(name)).resolve()
    except (OSError, RuntimeError) as error:
        raise UnsafePathError(f"{_shown(name)} cannot be resolved: {error}") from error
    if not found.is_relative_to(top) or found == top:
        raise UnsafePathError(f"{_shown(name)} leads outside the workspace")
    return found


class WorkspaceManager:
    """Read and write files below one folder by file ref, a relative name such as ``"report/summary.json"``.

    Every component is opened relative to its parent without following links, so a link swapped in between a check
    and its use leads nowhere. Writes appear whole or not at all.

    Args:
        root: The folder; the first write makes it.

    Every method raises ``UnsafePathError`` for a ref that would leave the folder, and ``FileNotFoundError`` for one
    that is not there.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).resolve()

    def resolve(self, ref: str) -> Path:
        """Give the absolute path of a ref, for messages and for programs that need a path."""
        return safe_path(self.root, ref)

    def size(self, ref: str) -> int:
        """Give the file's size in bytes."""
        with self.open_read(ref) as file:
            return os.fstat(file.fileno()).st_size

    @contextlib.contextmanager
    def open_read(self, ref: str) -> Iterator[IO[bytes]]:
        """Open a file for reading bytes, to stream what is too big to hold."""
        with self._folder_of(ref) as (folder, leaf):
            try:
                descriptor = os.open(leaf, _READ_FLAGS, dir_fd=folder)
            except OSError as error:
                raise _explained(error, ref) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UnsafePathError(f"{_shown(ref)} is not a regular file")
        with open(descriptor, "rb") as file:  # noqa: PTH123  (a descriptor, not a path)
            yield file

    @contextlib.contextmanager
    def open_write(self, ref: str) -> Iterator[IO[bytes]]:
        """Open a file for writing bytes; it appears under its name when the block ends without an error."""
        with self._folder_of(ref, make=True) as (folder, leaf):
            passing = f".{secrets.token_hex(8)}.tmp"
            descriptor = os.open(passing, _WRITE_FLAGS, 0o644, dir_fd=folder)
            try:
                with open(descriptor, "wb") as file:  # noqa: PTH123  (a descriptor, not a path)
                    yield file
                    file.flush()
                    os.fsync(descriptor)
                os.replace(passing, leaf, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(passing, dir_fd=folder)
                raise
            os.fsync(folder)

    def walk(self) -> Iterator[tuple[str, int]]:
        """List the regular files below the root, each with its size in bytes, in the order of their refs.

        Links, pipes, sockets, folders too deep to have refs and what killed writes left behind are passed over. What
        comes or goes meanwhile may be listed or not; a ref may hold characters that no other method takes.
        """
        waiting = self._listed("")
        while waiting:
            ref, size = waiting.pop()
            if ref.endswith("/"):
                waiting += self._listed(ref)
            else:
                yield ref, size

    def delete(self, ref: str) -> None:
        """Remove a regular file; its folder stays, even if that leaves it empty."""
        with self._folder_of(ref) as (folder, leaf):
            try:
                if not stat.S_ISREG(os.stat(leaf, dir_fd=folder, follow_symlinks=False).st_mode):
                    raise UnsafePathError(f"{_shown(ref)} is not a regular file")
                os.unlink(leaf, dir_fd=folder)
            except OSError as error:
                raise _explained(error, ref) from error
            os.fsync(folder)

    def read_text(self, ref: str, max_bytes: int | None = None) -> str:
        """Read a whole UTF-8 file.

        Args:
            max_bytes: The most that it may take, counted while reading.

        Raises:
            OSError: It is larger (``EFBIG``).
        """
        with self.open_read(ref) as file:
            data = file.read() if max_bytes is None else file.read(max_bytes + 1)
        if max_bytes is not None and len(data) > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {max_bytes:,} bytes", ref)
        return data.decode()

    def read_json(self, ref: str) -> Any:
        """Read a whole JSON file."""
        return json.loads(self.read_text(ref))

    def write_text(self, ref: str, text: str) -> str:
        """Write a whole UTF-8 file and give its ref back."""
        with self.open_write(ref) as file:
            file.write(text.encode())
        return ref

    def write_json(self, ref: str, value: Any) -> str:
        """Write a value as a JSON file and give its ref back."""
        return self.write_text(ref, json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1))

    @contextlib.contextmanager
    def _folder_of(self, ref: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder that holds a ref, and name the ref's last part."""
        safe_path(self.root, ref)
        *folders, leaf = _parts(ref)
        if make:
            self.root.mkdir(parents=True, exist_ok=True)
        with self._folder(folders, ref, make=make) as folder:
            yield folder, leaf

    @contextlib.contextmanager
    def _folder(self, parts: list[str], ref: str, *, make: bool = False) -> Iterator[int]:
        """Open a folder, component by component; the root's own links were resolved when it was named."""
        current = os.open(self.root, _FOLDER_FLAGS)
        try:
            for part in parts:
                current = _step(current, part, ref, make=make)
            yield current
        finally:
            os.close(current)

    def _listed(self, folder: str) -> list[tuple[str, int]]:
        """List what stands in one folder, last first; the refs of folders, and ``folder`` itself, end in a slash."""
        try:
            with self._folder(folder.split("/")[:-1], folder) as descriptor, os.scandir(descriptor) as entries:
                return sorted(filter(None, (_entry(folder, entry) for entry in entries)), reverse=True)
        except (FileNotFoundError, UnsafePathError):
            if not folder:
                raise
            return []


def _step(folder: int, part: str, ref: str, *, make: bool) -> int:
    """Go one folder down; the folder left behind is closed only when the next one is open."""
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, 0o755, dir_fd=folder)
            os.fsync(folder)
    try:
        below = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
    except OSError as error:
        raise _explained(error, ref) from error
    os.close(folder)
    return below


def _entry(folder: str, entry: os.DirEntry[str]) -> tuple[str, int] | None:
    """Give ref and size of a file or folder; None for anything else."""
    ref = folder + entry.name
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        return (f"{ref}/", 0) if len(os.fsencode(ref)) < MAX_NAME_BYTES else None
    is_file = stat.S_ISREG(status.st_mode) and not _LEFTOVER.fullmatch(entry.name)
    return (ref, status.st_size) if is_file else None


def _parts(name: str) -> list[str]:
    """Split a name, after everything in it that no workspace name needs was refused."""
    if any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in name):
        raise UnsafePathError(f"{_shown(name)} holds control characters")
    if name.startswith("/") or "\\" in name or _DRIVE.match(name):
        raise UnsafePathError(
            f"{_shown(name)} is not a relative name with forward slashes",
            hint="name the file relative to the workspace, such as notes/today.md",
        )
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if not parts:
        raise UnsafePathError(f"{_shown(name)} names no file")
    if ".." in parts:
        raise UnsafePathError(f"{_shown(name)} climbs out with ..")
    if len(name.encode()) > MAX_NAME_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        raise UnsafePathError(f"{_shown(name)} is too long")
    return parts


def _explained(error: OSError, ref: str) -> Exception:
    """Tell a refused link apart from a file that is not there."""
    if error.errno in {errno.ELOOP, errno.EMLINK, errno.ENOTDIR}:
        return UnsafePathError(f"{_shown(ref)} passes through a link or something that is no folder")
    if error.errno == errno.ENXIO:
        return UnsafePathError(f"{_shown(ref)} is not a regular file")
    return type(error)(error.errno, os.strerror(error.errno or 0), ref)


def _shown(name: str) -> str:
    limit = 80
    return ascii(name if len(name) <= limit else f"{name[:limit]}…")
