"""Python processors: built once a process and spec, reset after every task."""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING, Any

from loomq.errors import BackendError, PipelineWorkerError
from loomq.registry import load_dotted, project_on_path
from loomq.workers.base import ProcessingBackend, SyncProcessingBackend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loomq.workers.loop import EventLoop
    from loomq.workers.spec import WorkerSpec


logger = logging.getLogger(__name__)


class Processors:
    """The processing backends of one process.

    A backend serves one task at a time: in a threads pool each thread has its own.

    Args:
        project: The folder that user code is imported from.
        allow: Packages that backends may come from, besides our own.
        loop: Where asynchronous backends run.
    """

    def __init__(self, project: Path, allow: Sequence[str], loop: EventLoop) -> None:
        self._project = project
        self._allow = tuple(allow)
        self._loop = loop
        self._built = threading.local()
        self._writes_alone: dict[str, bool] = {}

    def run(self, spec: WorkerSpec, payload: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Process one payload and reset the backend, whatever comes of it.

        Returns:
            ``{"output": {...}, "model_used": str | None}``.

        Raises:
            ImportRefusedError: The backend's name may not be imported.
            PipelineWorkerError: It gave something else than that, or could not be built.
            SoftDeadline: Its time was up.
        """
        backend = self._backend(spec)
        try:
            if isinstance(backend, SyncProcessingBackend):
                found = backend.process_sync(payload, spec.backend_config)
            else:
                found = self._loop.run(backend.process(payload, spec.backend_config), timeout_s)
        except BaseException:
            try:
                self._reset(spec, backend)
            except BackendError:
                logger.exception("after a failure, which is the one that counts")
            raise
        self._reset(spec, backend)
        if not isinstance(found, dict) or not isinstance(found.get("output"), dict):
            raise PipelineWorkerError(
                f"{spec.processing_backend} gave {type(found).__name__}, not {{'output': {{...}}, 'model_used': ...}}"
            )
        if not isinstance(found.get("model_used"), str | None):
            raise PipelineWorkerError(f"{spec.processing_backend} gave a model_used that is no string")
        return found

    def writes_alone(self, spec: WorkerSpec) -> bool:
        """Say whether a worker's backend takes one task at a time over the whole cluster; it is not built for that.

        Raises:
            ImportRefusedError: The backend's name may not be imported.
        """
        name = spec.processing_backend or ""
        if name not in self._writes_alone:
            self._writes_alone[name] = bool(getattr(self._class(spec), "serialize_writes", False))
        return self._writes_alone[name]

    def knows(self, spec: WorkerSpec) -> bool:
        """Say whether a worker's backend has been imported."""
        return spec.processing_backend in self._writes_alone

    def _class(self, spec: WorkerSpec) -> type[ProcessingBackend]:
        project_on_path(self._project)
        found: type[ProcessingBackend] = load_dotted(
            spec.processing_backend or "", allow=self._allow, expect=ProcessingBackend
        )
        return found

    def _backend(self, spec: WorkerSpec) -> ProcessingBackend:
        key = f"{spec.processing_backend} {json.dumps(spec.backend_config, sort_keys=True)}"
        built: dict[str, ProcessingBackend] = self._built.__dict__.setdefault("backends", {})
        if key not in built:
            kind = self._class(spec)
            try:
                built[key] = kind(**spec.backend_config)
            except Exception as error:
                raise BackendError(
                    f"{spec.processing_backend} cannot be built from its backend_config: {error}"
                ) from error
        return built[key]

    def _reset(self, spec: WorkerSpec, backend: ProcessingBackend) -> None:
        try:
            backend.reset()
        except Exception as error:
            self._built.__dict__.clear()  # what cannot be reset is not used again
            raise BackendError(f"{spec.processing_backend} failed to reset: {error}") from error
