"""Importing loomq opens nothing and costs next to nothing."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

BUDGET_S = 0.050
HEAVY = {"alembic", "celery", "click", "httpx", "kombu", "psycopg", "pydantic", "redis", "rich", "sqlalchemy", "yaml"}

WATCHED = """
import json, sys
seen = []
sys.addaudithook(lambda event, args: seen.append((event, str(args[0]) if args else "")))
import loomq
deeds = [deed for deed in seen if deed[0] == "open" or deed[0].partition(".")[0] in ("socket", "subprocess", "sqlite3")]
print(json.dumps({"home": loomq.__path__[0], "deeds": deeds, "modules": sorted(sys.modules)}))
"""
TIMED = "import resource; used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime)"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


def test_importing_loomq_touches_no_file_but_code_and_no_socket():
    seen = json.loads(run(WATCHED))
    ours = (seen["home"], sys.base_prefix, sys.prefix)
    strange = [deed for deed in seen["deeds"] if deed[0] != "open" or not deed[1].startswith(ours)]
    code = [deed for deed in seen["deeds"] if deed[1].endswith((".py", ".pyc"))]
    assert not strange
    assert code, "the hook saw nothing, so this test can't fail"


def test_importing_loomq_loads_none_of_the_heavy_libraries():
    loaded = {name.partition(".")[0] for name in json.loads(run(WATCHED))["modules"]}
    assert "loomq" in loaded
    assert not loaded & HEAVY


def test_importing_loomq_costs_less_than_fifty_milliseconds_of_processor_time():
    bare, with_loomq = [], []
    for _ in range(5):
        bare.append(float(run(TIMED)))
        with_loomq.append(float(run(f"import loomq; {TIMED}")))
    assert statistics.median(with_loomq) - statistics.median(bare) < BUDGET_S
