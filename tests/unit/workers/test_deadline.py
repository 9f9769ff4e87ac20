"""A stage's own deadlines: soft by a signal, hard by the end of the process."""

import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import nullcontext

import pytest

from loomq.errors import LeaseLost, SoftDeadline
from loomq.testing import wait_until
from loomq.workers.deadline import INTERRUPTION, hard_deadline, shared_deadlines, soft_deadline, undisturbed


@pytest.fixture(autouse=True)
def no_timer_of_others():
    """Put aside pytest-timeout's own alarm, and give it back."""
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.signal(signal.SIGALRM, before)
    signal.setitimer(signal.ITIMER_REAL, left)


def _spin(until_s=10.0):
    end = time.monotonic() + until_s
    while time.monotonic() < end:
        pass


@pytest.mark.parametrize("work", [_spin, lambda: threading.Event().wait(10), lambda: time.sleep(10)])
def test_work_is_interrupted_when_its_time_is_up(work):
    before = time.monotonic()
    with pytest.raises(SoftDeadline, match=r"interrupted after 0\.05 s"), soft_deadline(0.05):
        work()
    assert 0.04 < time.monotonic() - before < 2


def test_work_in_time_is_left_alone_and_nothing_rings_later():
    with soft_deadline(0.05):
        found = 1 + 1
    _spin(0.1)
    assert found == 2
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("error", [None, ValueError])
def test_the_handler_before_is_back_afterwards(error):
    rung = []
    signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    mine = signal.getsignal(signal.SIGALRM)
    try:
        with soft_deadline(10):
            assert signal.getsignal(signal.SIGALRM) is not mine
            if error:
                raise error
    except ValueError:
        pass
    assert signal.getsignal(signal.SIGALRM) is mine
    signal.raise_signal(signal.SIGALRM)
    assert rung == [1]


def test_the_handler_before_is_back_after_an_interruption():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(SoftDeadline), soft_deadline(0.02):
        _spin()
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_another_thread_is_not_interrupted_and_touches_no_signal():
    before = signal.getsignal(signal.SIGALRM)
    seen = []

    def work():
        with soft_deadline(0.01):
            seen.append((signal.getsignal(signal.SIGALRM) is before, signal.getitimer(signal.ITIMER_REAL)[0]))
            _spin(0.05)
            seen.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert seen == [(True, 0.0), "done"]


def test_a_deadline_in_the_main_thread_interrupts_only_that():
    finished = threading.Event()

    def other():
        _spin(0.1)
        finished.set()

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(SoftDeadline), soft_deadline(0.03):
        threading.Event().wait(10)
    wait_until(finished.is_set, "the other thread's work", 5)
    thread.join(5)


HARD = """
import ctypes, time
from loomq.workers.deadline import hard_deadline, soft_deadline, undisturbed

with hard_deadline(0.2, own_process={own}), soft_deadline(0.1):
    {work}
print("still here")
"""
HOLDS_THE_GIL = "sum(range(10**11))"  # one call into C: no signal handler runs before it returns
SWALLOWS = """
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            time.sleep(0.01)
        except BaseException:
            pass
"""


def _run(**parts):
    script = textwrap.dedent(HARD).format(**parts)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("work", [HOLDS_THE_GIL, SWALLOWS.strip()], ids=["holds the GIL", "swallows the soft one"])
def test_a_process_that_does_not_stop_is_ended_and_leaves_its_stack(work):
    ran = _run(own=True, work=work)
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert "Timeout (0:00:00.2" in ran.stderr
    assert 'File "<string>"' in ran.stderr


def test_work_in_time_is_not_ended_later():
    ran = _run(own=True, work="time.sleep(0.01)\ntime.sleep(0.3)")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "still here\n", "")


def test_a_process_that_serves_others_too_is_not_ended():
    with hard_deadline(0.02, own_process=False):
        _spin(0.06)


def test_what_must_come_to_its_end_does_and_is_interrupted_then():
    done = []

    def work():
        with undisturbed():
            with undisturbed():
                _spin(0.2)
            done.append("inner")
            _spin(0.05)
            done.append("outer")
        done.append("never")

    with pytest.raises(SoftDeadline), soft_deadline(0.05):
        work()
    assert done == ["inner", "outer"]


def test_a_shield_leaves_its_own_error_and_rings_once():
    def work():
        _spin(0.1)
        raise ValueError("its own")

    with pytest.raises(SoftDeadline) as caught, soft_deadline(0.05), undisturbed():
        work()
    assert isinstance(caught.value.__context__, ValueError)
    with soft_deadline(5), undisturbed():
        pass  # nothing is left over from before


@pytest.fixture
def interruptible():
    """Let interruptions pass, as a child of a pool does between its tasks."""
    before = signal.signal(INTERRUPTION, signal.SIG_IGN)
    yield
    signal.signal(INTERRUPTION, before)


def test_tasks_that_share_their_deadlines_have_each_its_own_and_nothing_rings_between_them(interruptible):
    before = signal.getsignal(signal.SIGALRM)
    with shared_deadlines():
        with soft_deadline(10):
            pass
        for number in (signal.SIGALRM, INTERRUPTION):
            signal.raise_signal(number)
        with pytest.raises(SoftDeadline, match=r"after 0\.05 s"), soft_deadline(0.05):
            _spin()
        with pytest.raises(LeaseLost), soft_deadline(10):
            signal.raise_signal(INTERRUPTION)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getsignal(INTERRUPTION) == signal.SIG_IGN


@pytest.mark.parametrize("left", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None])
@pytest.mark.parametrize("number", [signal.SIGALRM, INTERRUPTION])
def test_a_task_that_leaves_a_handler_of_its_own_takes_nothing_from_the_next(interruptible, left, number):
    before = signal.getsignal(signal.SIGALRM)
    with shared_deadlines():
        with soft_deadline(10):
            signal.signal(number, left)
        signal.raise_signal(INTERRUPTION)  # between tasks, where it must end nothing
        with pytest.raises(SoftDeadline), soft_deadline(0.02):
            _spin()
        with pytest.raises(LeaseLost), soft_deadline(10):
            signal.raise_signal(INTERRUPTION)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getsignal(INTERRUPTION) == signal.SIG_IGN


@pytest.mark.parametrize("shared", [nullcontext, shared_deadlines])
def test_a_task_that_runs_another_one_is_interrupted_all_the_same(interruptible, shared):
    def work():
        with shared(), soft_deadline(10):
            pass
        signal.raise_signal(INTERRUPTION)

    with pytest.raises(LeaseLost), shared(), soft_deadline(10):
        work()
    assert signal.getsignal(INTERRUPTION) == signal.SIG_IGN


@pytest.mark.parametrize("shared", [nullcontext, shared_deadlines])
@pytest.mark.parametrize("is_at_the_end", [True, False])
def test_an_interruption_at_the_very_edge_of_a_task_leaves_nothing_behind(
    interruptible, monkeypatch, shared, is_at_the_end
):
    before, original, struck = signal.getsignal(signal.SIGALRM), signal.setitimer, []

    def setitimer(which, seconds, *rest):
        if (seconds == 0) is is_at_the_end and not struck:
            struck.append(1)
            signal.raise_signal(INTERRUPTION)
        return original(which, seconds, *rest)

    with shared():
        monkeypatch.setattr(signal, "setitimer", setitimer)
        with nullcontext() if is_at_the_end else pytest.raises(LeaseLost), soft_deadline(10):
            pass
        assert struck
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
        signal.raise_signal(INTERRUPTION)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getsignal(INTERRUPTION) == signal.SIG_IGN
