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


def test_bench_quick_compares_both_systems_on_the_same_work(server_urls):
    database, broker = server_urls
    given = {**os.environ, "LOOMQ_TEST_DATABASE_URL": database, "LOOMQ_TEST_BROKER_URL": broker}
    counts = ["--diamonds", "2", "--chains", "1", "--bursts", "1", "--burst", "5"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quick", "--json", *counts],
        cwd=ROOT,
        env=given,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr

    found = {line["benchmark"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(found) == ["diamond", "chain_of_50", "burst"]
    for line in found.values():
        assert {"loomq_ms", "raw_ms", "ratio", "fsync_ms", "commit_ms", "cpus", "versions"} <= line.keys()
        assert line["versions"]["celery"].startswith("5.7")
    # Each result was compared with what the work gives before it was counted.
    assert {name: (line["loomq_results"], line["raw_results"]) for name, line in found.items()} == {
        "diamond": (2, 2),
        "chain_of_50": (1, 1),
        "burst": (5, 5),
    }
