"""Ids that sort by time."""

import threading
import time
import uuid

from loomq.ids import uuid7


def test_an_id_says_its_version_and_variant():
    for _ in range(1000):
        made = uuid7()
        assert made.version == 7
        assert made.variant == uuid.RFC_4122


def test_an_id_begins_with_the_milliseconds_of_its_making():
    before = time.time_ns() // 1_000_000
    made = uuid7()
    after = time.time_ns() // 1_000_000
    assert before <= made.int >> 80 <= after


def test_ids_of_later_milliseconds_sort_later(monkeypatch):
    clock = iter(range(1_700_000_000_000, 1_700_000_002_000))
    monkeypatch.setattr("loomq.ids.time.time_ns", lambda: next(clock) * 1_000_000)
    made = [uuid7() for _ in range(2000)]
    assert made == sorted(made)
    assert [str(one) for one in made] == sorted(map(str, made))
    assert [one.int >> 80 for one in made] == list(range(1_700_000_000_000, 1_700_000_002_000))


def test_ids_of_one_millisecond_sort_by_its_fractions(monkeypatch):
    clock = iter(range(1_700_000_000_000_000_000, 1_700_000_000_001_000_000, 250))
    monkeypatch.setattr("loomq.ids.time.time_ns", lambda: next(clock))
    made = [uuid7() for _ in range(4000)]
    assert made == sorted(made)
    assert {one.int >> 80 for one in made} == {1_700_000_000_000}


def test_ids_of_one_moment_differ_in_all_their_random_bits(monkeypatch):
    monkeypatch.setattr("loomq.ids.time.time_ns", lambda: 1_700_000_000_000_000_000)
    made = [uuid7().int for _ in range(2000)]
    assert len(set(made)) == 2000
    ones = zeros = 0
    for number in made:
        ones |= number
        zeros |= ~number
    random_bits = (1 << 62) - 1
    assert ones & zeros & ((1 << 128) - 1) == random_bits


def test_threads_never_make_the_same_id():
    found = []

    def make():
        found.extend([uuid7() for _ in range(2000)])

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 16_000
