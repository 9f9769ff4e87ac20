"""Log lines keep secrets to themselves, and cannot be forged."""

from __future__ import annotations

import io
import logging

import pytest
from canaries import EXAMPLES

from loomq.logs import SafeFormatter, guard

FORGED = "a\r\n[2026-01-01 00:00:00: INFO/MainProcess] all is well"


@pytest.fixture
def log():
    out = io.StringIO()
    logger = logging.getLogger("loomq.test.logs")
    logger.handlers, logger.propagate = [], False
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(out))
    logger.handlers[0].setFormatter(logging.Formatter("[%(levelname)s] %(message)s %(extra)s", defaults={"extra": ""}))
    guard(logger)
    guard(logger)
    return logger, out


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_secret_is_in_no_part_of_a_record(log, name):
    logger, out = log
    text, secret = EXAMPLES[name]
    logger.warning("said " + text)  # noqa: G003
    logger.warning("%s %r %d", text, {"k": text}, 5)
    logger.warning("%(a)s", {"a": ValueError(text)}, extra={"extra": text})
    try:
        try:
            {}[text]
        except KeyError as error:
            raise RuntimeError("outer") from error
    except RuntimeError:
        logger.exception("failed")
    shown = out.getvalue()
    assert secret[:8] not in shown
    assert "RuntimeError: outer" in shown


def fail():
    raise ValueError(FORGED)


def test_nothing_that_is_logged_can_pose_as_a_record(log):
    logger, out = log
    logger.info("worker %s, %s", FORGED, ValueError(FORGED))
    logger.info(FORGED)
    try:
        fail()
    except ValueError:
        logger.exception("failed")
    lines = out.getvalue().splitlines()
    assert sum(line.startswith("[") for line in lines) == 3
    assert lines[0].startswith("[INFO] worker a\\r\\n[2026")
    assert "  Traceback (most recent call last):" in lines
    assert any(line.startswith("    raise ValueError(FORGED)") for line in lines)
    assert "  [2026-01-01 00:00:00: INFO/MainProcess] all is well" in lines


def test_a_record_is_left_as_it_was_for_other_handlers():
    record = logging.LogRecord("n", logging.INFO, "f", 1, "%s", (FORGED,), None)
    assert "\\r" in SafeFormatter(logging.Formatter("%(message)s")).format(record)
    assert record.getMessage() == FORGED


def test_numbers_and_templates_are_formatted_as_ever():
    record = logging.LogRecord("n", logging.INFO, "f", 1, "%5.1f|%03d|%s|%r\n%s", (1.25, 7, None, "x\n", "y"), None)
    assert SafeFormatter().format(record) == "  1.2|007|None|'x\\n'\n  y"
