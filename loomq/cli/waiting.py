"""Wait for a goal in front of somebody: progress meanwhile, the outcome at the end, and what an interruption leaves."""

from __future__ import annotations

import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from loomq.cli.faults import Interrupted
from loomq.cli.goal import print_faults, print_notes, print_result, print_stages, print_total
from loomq.cli.output import emit
from loomq.cli.progress import watch
from loomq.errors import EnvironmentNotReadyError, GoalFailedError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from loomq.loom import Loom
    from loomq.services.inspect import GoalView
    from loomq.services.submit import GoalHandle

_LOOK_EVERY_S = 0.2


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a block as Ctrl-C does, so that it can clean up."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  (the signature is signal's)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def follow(
    loom: Loom,
    handle: GoalHandle,
    *,
    timeout_s: float | None,
    as_json: bool,
    afterwards: str,
    check: Callable[[], None] = lambda: None,
) -> GoalView:
    """Wait until a goal has ended, showing its progress on stderr.

    Args:
        timeout_s: Seconds to wait; ``None`` waits without bound.
        afterwards: What becomes of the goal if nobody waits for it any more.
        check: Called again and again; raises when waiting has become pointless.

    Raises:
        WaitTimeoutError: The time is up.
        EnvironmentNotReadyError: A service went away, or ``check`` says so.
        Interrupted: Ctrl-C or SIGTERM.
    """
    from loomq.services import inspect

    look = f"look at it: loomq show {handle.goal_id}"
    try:
        with watch(as_json=as_json) as shown:

            def update() -> None:
                shown.update(inspect.at_work(loom, handle.goal_id))
                check()

            with suppress(GoalFailedError):  # its view says so, and holds its result so far
                handle.result(timeout_s, on_change=update, every_s=_LOOK_EVERY_S)
            shown.update(inspect.at_work(loom, handle.goal_id))
    except WaitTimeoutError:
        raise WaitTimeoutError(
            f"goal {handle.goal_id} has not ended within {timeout_s:g} s; {afterwards}", hint=look
        ) from None
    except EnvironmentNotReadyError as error:
        error.hint = "\n".join(filter(None, (error.hint, f"goal {handle.goal_id} is kept; {look}")))
        raise
    except KeyboardInterrupt:
        raise Interrupted(f"goal {handle.goal_id} has not ended; {afterwards}", hint=look) from None
    return inspect.detailed(loom, handle.goal_id)


def ended(loom: Loom, handle: GoalHandle) -> GoalView | None:
    """Read a goal if it has ended; ``None`` if it has not, or nobody can tell."""
    from loomq.services import inspect

    with suppress(EnvironmentNotReadyError):
        if inspect.has_ended(loom, handle.goal_id):
            return inspect.detailed(loom, handle.goal_id)
    return None


def print_outcome(view: GoalView, *, as_json: bool) -> None:
    """Print how a goal ended: stages, faults, result.

    Raises:
        GoalFailedError: It did not complete.
    """
    if as_json:
        emit(view.to_json())
    else:
        print_stages(view)
        print_notes(view)
        if view.status == "completed":  # else the error says it, on stderr
            print_faults(view)
        print_result(view)
        print_total(view)
    if view.status != "completed":
        error = view.error or {}
        raise GoalFailedError(
            f"goal {view.goal_id} {view.status}: {error.get('message', 'no error was recorded')}",
            hint="\n".join(filter(None, (error.get("hint"), f"all about it: loomq show {view.goal_id}"))),
            goal_id=str(view.goal_id),
            error=error,
            output=view.result,
        )
