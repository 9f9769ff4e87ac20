"""Named points in loomq's own functions at which a process is killed, once for each point and stage.

The product knows nothing of this: each process of the test's project imports it by ``site/sitecustomize.py`` and wraps
what it finds. The folder that ``CRASH_POINTS`` names holds the plan (``{point: [stage, …]}``, read anew each time) and
a file for each (point, stage) that was reached; whoever makes that file dies by SIGKILL.
"""

from __future__ import annotations

import json
import os
import signal
from functools import wraps
from pathlib import Path
from typing import Any

ANY = "-"  # in place of a stage, for a point that belongs to none
# What a plan may say besides.
QUIET = "quiet"  # agents neither sweep nor take back
TWICE = "twice"  # every message is sent twice
FAILS = "work.fails."  # points at which the stage fails instead, for good


class Folder:
    """The plan, the marks, and what the stages did."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "marks").mkdir(parents=True, exist_ok=True)

    def plan(self, points: dict[str, Any]) -> None:
        """Say which points kill from now on, and for which stages."""
        fresh = self.path / "plan.new"
        fresh.write_text(json.dumps({point: sorted(stages) for point, stages in points.items()}))
        fresh.replace(self.path / "plan.json")

    def planned(self) -> dict[str, list[str]]:
        """Read the plan."""
        return json.loads((self.path / "plan.json").read_text())

    def missing(self) -> set[tuple[str, str]]:
        """List the planned points that no process has died at yet."""
        reached = {tuple(mark.name.split("~")) for mark in (self.path / "marks").iterdir()}
        return {(point, stage) for point, stages in self.planned().items() for stage in stages} - reached

    def mark(self, point: str, stage: str) -> bool:
        """Take note that a point was reached; False if it had been before."""
        try:
            os.close(os.open(self.path / "marks" / f"{point}~{stage}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def note_effect(self, goal: Any, stage: str, *, in_order: bool) -> None:
        """Write down that a stage's work begins, and whether all its parents were done by then."""
        with (self.path / "effects").open("a") as out:
            out.write(f"{goal} {stage} {'in order' if in_order else 'EARLY'}\n")


class Process:
    """What this process is doing, and whether it has to die of it."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.stage: str | None = None  # in a worker's hand
        self.key: Any = None  # of that stage
        self.role = "sweep"  # what a process does that is no worker
        self.sent = 0  # messages since the stage was claimed, the goal submitted, or the batch taken
        self.roots: list[str] = []  # of the goal that is being submitted

    def where(self, point: str) -> str:
        """Name a point that workers have in common with others."""
        return point if self.stage else f"{self.role}.{point}"

    def reached(self, point: str, *stages: str) -> None:
        """Die here if the plan says so and nobody has; one death counts for all the stages."""
        wanted = self.folder.planned().get(point, ())
        fresh = [stage for stage in stages if stage in wanted and self.folder.mark(point, stage)]
        if fresh:
            os.kill(os.getpid(), signal.SIGKILL)


class Points:
    """The points: each method stands in for a function of the product, which it is given as ``original``."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.reached = process.reached

    def says(self, word: str) -> bool:
        """Whether the plan has that word."""
        return word in self.process.folder.planned()

    # A worker's way

    def claim(self, original, database, key, *args):
        self.process.stage, self.process.key, self.process.sent = key.name, key, 0
        self.reached("claim.before", key.name)
        found = original(database, key, *args)
        if found is not None:
            self.reached("claim.after", key.name)
        return found

    def work(self, original, executor, job):
        folder, key = self.process.folder, self.process.key
        early = executor._database.call(
            "SELECT 1 FROM stages WHERE goal_id = %(goal)s AND %(name)s = ANY (children) AND state <> 'done'",
            key.parameters(),
        )
        folder.note_effect(key.goal_id, job.stage, in_order=not early)
        self.reached("work.before", job.stage)
        for point, stages in folder.planned().items():
            if point.startswith(FAILS) and job.stage in stages and folder.mark(point, job.stage):
                from loomq.errors import PipelineValidationError

                raise PipelineValidationError("the test says so", stage=job.stage)
        done = original(executor, job)
        self.reached("work.after", job.stage)
        return done

    def stage(self, original, executor, request, turn, claim):
        self.process.stage, self.process.key = claim.key.name, claim.key
        return original(executor, request, turn, claim)

    def turn(self, original, database, ends, place, lease_s, backlog, pulled):
        fetched = [key.name for key, _ in pulled]
        self.reached("fetch.after", *fetched)
        self.reached("claim.before", *fetched)
        for end in ends:
            last_for = database.call(
                "SELECT c.name FROM stages s JOIN stages c ON c.goal_id = s.goal_id AND c.name = ANY (s.children)"
                " WHERE s.goal_id = %(goal)s AND s.name = %(name)s AND c.waits_for = 1",
                end.key.parameters(),
            )
            self.reached("join.before", *(row[0] for row in last_for))
            self.reached("claim.before", *(name for name, _ in end.next))
        found = original(database, ends, place, lease_s, backlog, pulled)
        for end, outcome in zip(ends, found.outcomes, strict=True):
            mine = [claim.key.name for claim in found.claims if claim.key.goal_id == end.key.goal_id]
            if outcome.verdict == "accepted":
                self.reached("complete.after", end.key.name)
                self.reached("join.after", *outcome.published, *outcome.held, *mine)
            if outcome.goal_ended:
                self.reached("finish.after", end.key.name)
        self.reached("claim.after", *(claim.key.name for claim in found.claims))
        return found

    def fail(self, original, database, key, *args, **options):
        self.reached("fail.before", key.name)
        verdict = original(database, key, *args, **options)
        self.reached("fail.after", key.name)
        return verdict

    def send(self, original, task, message, sending):
        process = self.process
        if process.sent and process.stage:
            self.reached("publish.middle", process.stage)
        elif process.sent:
            self.reached("submit.middle", *process.roots)
        if process.stage:
            self.reached("publish.before", message.name)
        for _ in range(2 if self.says(TWICE) else 1):
            original(task, message, dict(sending))
        process.sent += 1
        if process.stage:
            self.reached("publish.after", message.name)

    # What follows users' canvases; the sweeper does it too

    def mark_followed(self, original, database, goal_id):
        ((stage,),) = database.call("SELECT name FROM stages WHERE goal_id = %(goal)s", {"goal": goal_id})
        self.reached(self.process.where("follow.before"), stage)
        original(database, goal_id)

    def send_chord_body(self, original, backend, group_id, given=None):
        from loomq.queues.names import worker_of
        from loomq.store import results

        kept = results.read_chord(backend._database, group_id)[1] or given or {"task": None}
        name = str(worker_of(kept["task"]))
        self.reached(self.process.where("body.before"), name)
        original(backend, group_id, given)
        self.reached(self.process.where("body.after"), name)

    # Submissions

    def write_goal(self, original, database, submissions, **options):
        (one,) = submissions
        process, roots = self.process, [stage.name for stage in one.stages if not stage.waits_for]
        if process.stage is None:
            process.roots, process.sent = roots, process.sent if one.goal.task_id else 0
        self.reached("submit.before_write", *roots)
        found = original(database, submissions, **options)
        self.reached("submit.after_write", *roots)
        return found

    def submit(self, original, *args, call=None, **options):
        accepted = original(*args, call=call, **options)
        if call is None and accepted.created:
            self.reached("submit.after_publish", *self.process.roots)
        return accepted

    # The agent and the sweeper

    def free(self, original, agent, gone):
        if not self.says(QUIET):
            original(agent, gone)

    def agent_try(self, original, agent, work):
        if not (self.says(QUIET) and getattr(work, "__name__", "") == "sweep"):
            original(agent, work)

    def make_sweeper(self, original, sweeper, *args, **options):
        original(sweeper, *args, **options)
        sweeper._lease_s = 1.0

    def lead(self, original, *args):
        memory = original(*args)
        if memory is not None:
            self.reached("sweep.after_lead", ANY)
        return memory

    def take_back(self, original, *args, node=None, **options):
        taken = original(*args, node=node, **options)
        who = "sweep" if node is None else "agent"
        self.reached(f"{who}.after_take_back", *(key.name for key, _ in taken))
        return taken

    def unpublish(self, original, database, *args, **options):
        found = original(database, *args, **options)
        if found:
            lost = database.call("SELECT name FROM stages WHERE state = 'ready' AND reason = 'message lost'", {})
            self.reached("sweep.after_unpublish", *(row[0] for row in lost))
        return found

    def take_ready(self, original, *args):
        due = original(*args)
        self.process.sent = 0
        if self.process.stage is None:
            self.reached(self.process.where("after_take_ready"), *(stage.key.name for stage in due))
        return due

    def send_due(self, original, publisher, due):
        if self.process.sent:
            self.reached("sweep.middle", ANY)
        original(publisher, due)
        if self.process.stage is None:
            self.reached(self.process.where("after_send"), due.key.name)

    # Replays

    def write_replay(self, original, database, key, **options):
        self.process.role = "replay"
        self.reached("replay.before", key.name)
        verdict = original(database, key, **options)
        self.reached("replay.after", key.name)
        return verdict


def install() -> None:
    """Wrap what the points are in, and shorten the waits, so that hundreds of deaths fit into a minute."""
    from loomq.queues.results import PostgresBackend
    from loomq.queues.task import StageTask
    from loomq.runs import node, sweep
    from loomq.runs.agent import Agent
    from loomq.runs.execute import Executor
    from loomq.runs.publish import Publisher
    from loomq.runs.submit import Submitter
    from loomq.store import backlog, goals, letters, nodes, stages, turns

    node._CHECK_S = 0.1
    sweep._EMPTY_FOR_S = sweep._STALE_S = sweep._OVERTAKEN_S = 0.5
    sweep._SENT_WITHIN_S = 0.1
    points = Points(Process(Folder(Path(os.environ["CRASH_POINTS"]))))
    for owner, name, stand_in in (
        (stages, "claim", points.claim),
        (Executor, "_work", points.work),
        (Executor, "_stage", points.stage),
        (turns, "turn", points.turn),
        (stages, "fail", points.fail),
        (StageTask, "_send", points.send),
        (goals, "mark_followed", points.mark_followed),
        (PostgresBackend, "send_chord_body", points.send_chord_body),
        (goals, "submit", points.write_goal),
        (Submitter, "submit", points.submit),
        (Agent, "_free", points.free),
        (Agent, "_try", points.agent_try),
        (sweep.Sweeper, "__init__", points.make_sweeper),
        (nodes, "lead", points.lead),
        (stages, "take_back", points.take_back),
        (backlog, "unpublish_all", points.unpublish),
        (backlog, "unpublish_overtaken", points.unpublish),
        (backlog, "take_ready", points.take_ready),
        (Publisher, "send_due", points.send_due),
        (letters, "replay", points.write_replay),
    ):
        _put(owner, name, stand_in)


def _put(owner: Any, name: str, stand_in: Any) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def run(*args: Any, **options: Any) -> Any:
        return stand_in(original, *args, **options)

    setattr(owner, name, run)
