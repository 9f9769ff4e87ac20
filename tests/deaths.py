"""Code for a project's own processes that die at named points of the product, each once; what is wrapped follows it."""

#: Wants ``HERE``, a folder that keeps note of who died where.
DEATHS = '''
import os, signal
from functools import wraps
from pathlib import Path

from billiard.process import current_process

HERE = Path(__file__).parent.parent


def reached(point):
    """Die here, the first time that a pool's child comes by."""
    if current_process().name == "MainProcess":
        return
    try:
        os.close(os.open(HERE / f"died_{point}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def around(owner, name, told=lambda *a, **k: ""):
    original = getattr(owner, name)

    @wraps(original)
    def wrapped(*args, **options):
        which = told(*args, **options)
        reached(f"{name}.before{which}")
        found = original(*args, **options)
        reached(f"{name}.after{which}")
        return found

    setattr(owner, name, wrapped)

'''


def died_in(project) -> set[str]:
    """List the points that a process of the project has died at."""
    return {file.name.removeprefix("died_") for file in project.folder.glob("died_*")}
