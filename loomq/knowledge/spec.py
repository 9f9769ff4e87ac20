"""What a worker's YAML file may say of its knowledge (formats.md §1, §9)."""

from __future__ import annotations

from typing import Literal

from loomq.config import Flag, Name, Size, Spec, Text

MAX_FOLDER_BYTES = 10 * 1024 * 1024


class KnowledgeSource(Spec):
    """A file whose text stands before the system prompt."""

    path: Text
    """Relative to the project."""
    inject_as: Literal["reference", "few_shot"] = "reference"
    """few_shot puts it as examples."""
    max_bytes: Size | None = None
    """A larger file cannot be loaded; the whole of a source may have 10 MiB at most."""
    required: Flag = True
    """Whether the task fails if it cannot be loaded; else the result names it in degraded_modes."""


class FolderSilo(Spec):
    """A folder that the worker reads and, if allowed, writes."""

    name: Name
    type: Literal["folder"]
    path: Text
    """Relative to the project; every node that runs the worker must see the same folder."""
    permissions: Literal["read", "read_write"] = "read"
    required: Flag = True
    """Whether the task fails if it cannot be loaded; else the result names it in degraded_modes."""
    max_files: Size = 1000
    """How many files the silo may hold when the worker writes."""
    max_bytes: Size = MAX_FOLDER_BYTES
    """How many bytes it may hold when the worker writes; more cannot be loaded than 10 MiB."""
