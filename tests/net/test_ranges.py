"""Ranges that are processed as they come: bounded by bytes and by groups, and none kept waiting by a slow one."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanrecon.net.flight import Flight
from leanrecon.net.ranges import Bytes, RangeFile, read_whole

DATA = np.random.default_rng(0).bytes(200_000)


class Far(RangeFile):
    """Bytes that come through a flight; those of the ranges that are ``held_back`` once ``go`` is set."""

    def __init__(self, flight: Flight | None, held_back: tuple[int, ...] = ()) -> None:
        super().__init__("far", len(DATA), "")
        self.flight = None if flight is None else lambda nbytes: flight
        self.held = 1000
        self.held_back, self.go = held_back, threading.Event()
        self.asked: list[int] = []
        self.under_way = self.most = 0
        self.lock = threading.Lock()

    def fetch(self, start: int, stop: int, into: memoryview | None = None) -> Bytes:
        with self.lock:
            self.asked.append(start)
            self.under_way += stop - start
            self.most = max(self.most, self.under_way)
        if start in self.held_back:
            self.go.wait(20)
        if start < 0:
            raise ValueError("no such bytes")
        with self.lock:
            self.under_way -= stop - start
        if into is None:
            return DATA[start:stop]
        into[:] = DATA[start:stop]
        return into


@pytest.fixture
def flight() -> Iterator[Flight]:
    flight = Flight(16)
    yield flight
    flight.close()


@pytest.mark.parametrize("near", [True, False])
@given(
    nbytes=st.lists(st.integers(1, 900), max_size=60),
    held=st.integers(1, 3000),
    per_group=st.integers(1, 9),
    groups=st.integers(1, 4),
)
def test_all_spans_come_once(near: bool, nbytes: list[int], held: int, per_group: int, groups: int) -> None:
    flight = None if near else Flight(4)
    file = Far(flight)
    stops = np.cumsum(nbytes, dtype=int).tolist()
    spans = [(stop - n, stop) for stop, n in zip(stops, nbytes, strict=True)]
    memory = bytearray(len(DATA))

    def into(k: int) -> memoryview | None:
        return memoryview(memory)[slice(*spans[k])] if k % 2 else None

    given = {"into": into, "group": lambda k: k // per_group, "groups": groups}
    found = dict(file.as_they_come(spans, lambda k, data: (k, bytes(data)), held, **given))
    assert found == {k: DATA[a:b] for k, (a, b) in enumerate(spans)}
    assert all(memory[a:b] == DATA[a:b] for a, b in spans[1::2])
    assert file.most <= max(held, *nbytes, 0)
    if flight is not None:
        flight.close()


def test_a_slow_range_keeps_no_other_waiting(flight: Flight) -> None:
    file = Far(flight, held_back=(0,))
    coming = file.as_they_come([(100 * k, 100 * k + 100) for k in range(50)], lambda k, data: k)
    first = [next(coming) for _ in range(49)]
    assert sorted(first) == list(range(1, 50))
    file.go.set()
    assert list(coming) == [0]


def test_nothing_is_asked_for_beyond_the_groups_that_are_open(flight: Flight) -> None:
    file = Far(flight, held_back=(300,))
    spans = [(100 * k, 100 * k + 100) for k in range(30)]
    coming = file.as_they_come(spans, lambda k, data: k, group=lambda k: k // 3, groups=4)
    first = [next(coming) for _ in range(14)]  # of groups 0 to 4, all but the one that is held back
    assert sorted(first) == [0, 1, 2, *range(4, 15)]
    threading.Timer(0.1, file.go.set).start()
    assert next(coming) == 3
    assert max(file.asked) == 1400
    assert sorted(coming) == list(range(15, 30))


def test_an_error_ends_it_and_what_waits_is_not_asked_for(flight: Flight) -> None:
    file = Far(flight)
    spans = [(-1, 99), *((100 * k, 100 * k + 100) for k in range(1, 500))]
    with pytest.raises(ValueError, match="no such bytes"):
        list(file.as_they_come(spans, lambda k, data: k))
    time.sleep(0.1)
    assert len(file.asked) < 500


@pytest.mark.parametrize("near", [True, False])
def test_small_files_are_read_whole(near: bool, flight: Flight) -> None:
    files = [Far(None if near else flight) for _ in range(3)]
    files[1].size = 0
    assert read_whole(files) == [DATA, b"", DATA]
    assert sorted(files[0].asked) == list(range(0, 200_000, 40 * 1024))
