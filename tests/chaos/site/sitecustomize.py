"""Give each Python process of a crash-point test, however it is started, the points at which it may be killed."""

import os

if "CRASH_POINTS" in os.environ:
    from chaos import crash_points

    crash_points.install()
