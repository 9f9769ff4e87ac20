"""Let each Python process of a run, however it is started, write down the size of the messages that it sends."""

import os
from pathlib import Path

if "BENCH_MESSAGES" in os.environ:
    from benchmarks import messages

    messages.install(Path(os.environ["BENCH_MESSAGES"]))
