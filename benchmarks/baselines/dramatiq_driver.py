"""dramatiq over Redis: independent tasks and chains; it keeps nothing of either."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks import work
from benchmarks.baselines.protocol import serve

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_REDIS"]))
LINKS = int(os.environ["BENCH_LINKS"])


@dramatiq.actor(max_retries=0)
def first(run):
    return work.step({"n": 0, "run": run})["n"]


@dramatiq.actor(max_retries=0)
def link(run, n):
    return work.step({"n": n, "run": run})["n"]


def hand_in(kind, runs):
    for run in runs:
        if kind == "noop":
            first.send(run)
        else:
            links = [link.message(None) for _ in range(LINKS - 2)]
            dramatiq.pipeline([first.message(None), *links, link.message(run)]).run()


if __name__ == "__main__":
    serve(hand_in)
