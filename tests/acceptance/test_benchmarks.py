"""The comparison with raw Celery runs and both sides do the work; how long they take is nobody's failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_bench_limits_measures_what_was_granted_and_finds_nothing_over_it(server_urls):
    database, broker = server_urls
    given = {**os.environ, "LOOMQ_TEST_DATABASE_URL": database, "LOOMQ_TEST_BROKER_URL": broker}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.limits", "--parts", "rate,cost", "--seconds", "4"],
        cwd=ROOT,
        env=given,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rate, cost = map(json.loads, done.stdout.splitlines())
    assert (rate["allowed"], rate["nodes_killed"], rate["violations"]) == (100, 2, 0)
    assert 0 < rate["granted"] <= rate["allowed"]
    assert {"rate_ms", "worker_and_tier_rate_ms", "slots_ms", "claim_ms"} <= cost.keys()


def test_the_comparison_does_the_same_work_with_both_systems(server_urls):
    database, broker = server_urls
    given = {**os.environ, "LOOMQ_TEST_DATABASE_URL": database, "LOOMQ_TEST_BROKER_URL": broker}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare", "--quick", "--rounds", "1"],
        cwd=ROOT,
        env=given,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    machine, *lines = map(json.loads, done.stdout.splitlines())
    assert {"commit_ms", "cpus", "versions", "flush_ms_added"} <= machine["machine"].keys()
    figures = {line["figure"] for line in lines}
    assert {
        "diamond_latency", "diamond_rate", "fanout_latency", "chain_latency", "diamond_cpu", "noop_rate", "submit_rate"
    } <= figures  # fmt: skip
    assert {(line["figure"], line["system"]) for line in lines} == {
        (figure, system) for figure in figures for system in ("loomq", "celery_redis")
    }
    assert all(line["median"] > 0 and line["baseline"] == "celery_redis" for line in lines)
