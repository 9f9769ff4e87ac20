"""The event loop beside a worker's own thread."""

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from loomq.errors import SoftDeadline
from loomq.testing import wait_until
from loomq.workers.deadline import soft_deadline
from loomq.workers.loop import EventLoop


@pytest.fixture
def loop():
    """A loop whose thread is stopped afterwards."""
    made = EventLoop()
    yield made
    if made._loop is not None:
        made._loop.call_soon_threadsafe(made._loop.stop)
        wait_until(lambda: not made._loop.is_running(), "the loop to stop", 5)
        made._loop.close()


async def _give(value, delay_s=0.0):
    await asyncio.sleep(delay_s)
    return value


def test_making_one_starts_nothing():
    before = threading.active_count()
    EventLoop()
    assert threading.active_count() == before


def test_work_runs_to_its_end_in_the_loops_own_thread(loop):
    async def where():
        return threading.current_thread().name, asyncio.get_running_loop()

    name, first = loop.run(where(), 5)
    assert name == "loomq-loop"
    assert threading.current_thread().name != name
    assert loop.run(where(), 5) == (name, first)
    assert loop.run(_give({"x": 1}), 5) == {"x": 1}


def test_errors_come_back_as_they_are(loop):
    async def fail(error):
        raise error

    with pytest.raises(KeyError, match="mine"):
        loop.run(fail(KeyError("mine")), 5)
    # The work's own timeout is not the stage's.
    with pytest.raises(TimeoutError, match="the server's"):
        loop.run(fail(TimeoutError("the server's")), 5)
    assert loop.run(_give(2), 5) == 2


def test_work_is_cancelled_at_its_deadline(loop):
    seen = []

    async def long():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    before = time.monotonic()
    with pytest.raises(SoftDeadline, match=r"cancelled after 0\.05 s"):
        loop.run(long(), 0.05)
    assert time.monotonic() - before < 2
    assert seen == ["cancelled"]
    assert loop.run(_give(3), 5) == 3


def test_a_signal_in_the_callers_thread_cancels_the_work(loop):
    cancelled = threading.Event()

    async def long():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(SoftDeadline, match="interrupted"), soft_deadline(0.05):
        loop.run(long(), 60)
    wait_until(cancelled.is_set, "the work to be cancelled", 5)


def test_threads_share_the_loop_and_their_work_overlaps(loop):
    found, together, all_here = [], [], asyncio.Event()

    async def meet(number):
        together.append(number)
        if len(together) == 4:
            all_here.set()
        await all_here.wait()
        return number

    threads = [threading.Thread(target=lambda n=n: found.append(loop.run(meet(n), 10))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(found) == [0, 1, 2, 3]


def test_a_forked_child_has_a_loop_of_its_own():
    script = """
    import asyncio, os, sys, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # forking with a thread is what this is about
    from loomq.workers.loop import EventLoop

    async def pid():
        await asyncio.sleep(0.01)
        return os.getpid()

    loop = EventLoop()
    assert loop.run(pid(), 5) == os.getpid()
    child = os.fork()
    if not child:
        os._exit(0 if loop.run(pid(), 5) == os.getpid() else 1)
    print(os.waitpid(child, 0)[1], loop.run(pid(), 5) == os.getpid())
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": ""},
    )
    assert (ran.stdout, ran.stderr) == ("0 True\n", "")
