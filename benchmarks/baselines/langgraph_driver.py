"""LangGraph with its Postgres checkpointer: graphs in one process, a checkpoint a superstep."""

import operator
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypedDict

from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from benchmarks import work
from benchmarks.baselines.protocol import serve

LINKS, WIDTH = int(os.environ["BENCH_LINKS"]), int(os.environ["BENCH_WIDTH"])
SLOTS = int(os.environ.get("BENCH_SLOTS", "2"))


class State(TypedDict):
    n: int
    run: str
    values: Annotated[list, operator.add]


def one(state):
    return {"n": work.step({"n": state["n"]})["n"]}


def side(state):
    return {"values": [work.step({"n": state["n"]})["n"]]}


def last(state):
    return {"n": work.step({"n": state["n"], "run": state["run"]})["n"]}


def join(state):
    return {"n": work.join(state["values"], state["run"])["n"]}


def graphs(saver):
    noop = StateGraph(State)
    noop.add_node("a", last)
    noop.add_edge(START, "a")
    diamond = StateGraph(State)
    for name, work_of in (("a", one), ("b", side), ("c", side), ("d", join)):
        diamond.add_node(name, work_of)
    diamond.add_edge(START, "a")
    diamond.add_edge("a", "b")
    diamond.add_edge("a", "c")
    diamond.add_edge(["b", "c"], "d")
    chain = StateGraph(State)
    chain.add_sequence([(f"s{n}", one) for n in range(LINKS - 1)] + [("last", last)])
    chain.add_edge(START, "s0")
    fan = StateGraph(State)
    fan.add_node("a", one)
    fan.add_node("b", side)
    fan.add_node("c", join)
    fan.add_edge(START, "a")
    fan.add_conditional_edges("a", lambda state: [Send("b", state) for _ in range(WIDTH)], ["b"])
    fan.add_edge("b", "c")
    fan.add_edge("c", END)
    made = {"noop": noop, "diamond": diamond, "chain": chain, "fan": fan}
    return {name: graph.compile(checkpointer=saver) for name, graph in made.items()}


if __name__ == "__main__":
    given = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool = ConnectionPool(os.environ["BENCH_POSTGRES"], kwargs=given, min_size=SLOTS, max_size=SLOTS, open=True)
    saver = PostgresSaver(pool)
    saver.setup()
    known = graphs(saver)
    threads = ThreadPoolExecutor(SLOTS)

    def run_one(kind, run):
        options = {"configurable": {"thread_id": run}, "recursion_limit": 200}
        known[kind].invoke({"n": 0, "run": run, "values": []}, options)

    def hand_in(kind, runs):
        for run in runs:
            threads.submit(run_one, kind, run)

    serve(hand_in)
