"""DBOS: durable workflows in one process, a checkpoint a step in Postgres."""

import os

from dbos import DBOS

from benchmarks import work
from benchmarks.baselines.protocol import serve

LINKS, WIDTH = int(os.environ["BENCH_LINKS"]), int(os.environ["BENCH_WIDTH"])
DBOS(
    config={
        "name": "bench",
        "system_database_url": os.environ["BENCH_POSTGRES"],
        "run_admin_server": False,
        "log_level": "ERROR",
    }
)


@DBOS.step()
def step(n, run=None):
    return work.step({"n": n, "run": run})["n"]


@DBOS.step()
def join(values, run):
    return work.join(values, run)["n"]


@DBOS.workflow()
def noop(run):
    return step(0, run)


@DBOS.workflow()
def diamond(run):
    a = step(0)
    return join([step(a), step(a)], run)


@DBOS.workflow()
def chain(run):
    n = 0
    for _ in range(LINKS - 1):
        n = step(n)
    return step(n, run)


@DBOS.workflow()
def fan(run):
    a = step(0)
    return join([step(a) for _ in range(WIDTH)], run)


KINDS = {"noop": noop, "diamond": diamond, "chain": chain, "fan": fan}


def hand_in(kind, runs):
    for run in runs:
        DBOS.start_workflow(KINDS[kind], run)


if __name__ == "__main__":
    DBOS.launch()
    serve(hand_in)
