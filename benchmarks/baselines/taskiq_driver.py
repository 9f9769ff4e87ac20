"""taskiq over Redis: it has tasks and their results, and no graphs; the driver awaits the parents of each stage."""

import asyncio
import os
import threading

from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from benchmarks import work
from benchmarks.baselines.protocol import serve

URL = os.environ["BENCH_REDIS"]
LINKS, WIDTH = int(os.environ["BENCH_LINKS"]), int(os.environ["BENCH_WIDTH"])
broker = ListQueueBroker(URL).with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=60))
going = set()


@broker.task("step")
def step(n, run=None):
    return work.step({"n": n, "run": run})["n"]


@broker.task("join")
def join(values, run):
    return work.join(values, run)["n"]


async def result_of(task):
    return (await (await task).wait_result(check_interval=0.001, timeout=60)).return_value


async def diamond(run):
    a = await result_of(step.kiq(0))
    await join.kiq(await asyncio.gather(result_of(step.kiq(a)), result_of(step.kiq(a))), run)


async def fan(run):
    a = await result_of(step.kiq(0))
    await join.kiq(await asyncio.gather(*[result_of(step.kiq(a)) for _ in range(WIDTH)]), run)


async def chain(run):
    n = 0
    for _ in range(LINKS - 1):
        n = await result_of(step.kiq(n))
    await step.kiq(n, run)


async def begin(kind, runs):
    for run in runs:
        if kind == "noop":
            await step.kiq(0, run)
        else:
            task = asyncio.create_task({"diamond": diamond, "fan": fan, "chain": chain}[kind](run))
            going.add(task)
            task.add_done_callback(going.discard)


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(broker.startup(), loop).result()
    serve(lambda kind, runs: asyncio.run_coroutine_threadsafe(begin(kind, runs), loop).result())
