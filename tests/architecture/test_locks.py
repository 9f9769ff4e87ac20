"""The locks pin everything that pyproject asks for, with hashes and without addresses."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ["runtime", "dev", "uv"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def entries(lock: str) -> list[str]:
    text = (ROOT / "requirements" / f"{lock}.lock").read_text(encoding="utf-8")
    return text.replace("\\\n", " ").splitlines()


def pins(lock: str) -> dict[str, str]:
    found = {}
    for entry in entries(lock):
        name, _, version = entry.partition(";")[0].split("--hash")[0].strip().partition("==")
        found[canonicalize_name(name)] = version
    return found


def wanted(lock: str) -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    lines = PROJECT["project"]["dependencies"] + extras["embedded"]
    return [Requirement(line) for line in lines + (PROJECT["dependency-groups"]["dev"] if lock == "dev" else [])]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_carries_hashes(lock: str):
    assert entries(lock)
    assert not [entry for entry in entries(lock) if not re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry)]


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_names_an_address(lock: str):
    assert not [entry for entry in entries(lock) if "://" in entry or "--index" in entry or "--find-links" in entry]


@pytest.mark.parametrize("lock", ["runtime", "dev"])
def test_a_lock_pins_what_pyproject_asks_for(lock: str):
    pinned = pins(lock)
    unmet = [
        str(need) for need in wanted(lock) if not need.specifier.contains(pinned.get(canonicalize_name(need.name), "0"))
    ]
    assert not unmet, "run `make lock`"


def test_the_runtime_is_tested_in_the_versions_that_are_shipped():
    dev = pins("dev")
    assert {name: version for name, version in pins("runtime").items() if dev.get(name) != version} == {}


def test_the_package_is_built_by_a_pinned_backend():
    [backend] = [Requirement(line) for line in PROJECT["build-system"]["requires"]]
    assert backend.specifier.contains(pins("dev")[backend.name])
