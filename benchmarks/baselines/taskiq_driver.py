"""taskiq over a Redis list: independent tasks; it keeps nothing."""

import asyncio
import os

from taskiq_redis import ListQueueBroker

from benchmarks import work
from benchmarks.baselines.protocol import serve

broker = ListQueueBroker(os.environ["BENCH_REDIS"], socket_timeout=None)


@broker.task
def step(run: str) -> int:
    return int(work.step({"n": 0, "run": run})["n"])


loop = asyncio.new_event_loop()


def hand_in(kind, runs):
    async def send():
        for run in runs:
            await step.kiq(run)

    loop.run_until_complete(send())


if __name__ == "__main__":
    loop.run_until_complete(broker.startup())
    serve(hand_in)
