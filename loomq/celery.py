"""What ``celery -A loomq worker|beat|flower|inspect`` starts: the app of the project that it is called in."""

from __future__ import annotations

from loomq.loom import Loom
from loomq.queues import control
from loomq.settings import Settings

control.install()
app = Loom(Settings.load()).app
