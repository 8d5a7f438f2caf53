"""Requests under way against Little's law: a link is full with rate times latency bytes of them, and more don't help."""

import heapq
import threading

import numpy as np
import pytest

from leanrecon.net import flight
from leanrecon.net.flight import FIRST, Flight, Pace


class Link:
    """A simulated link: a request waits for its latency, then its bytes come in turn at the rate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rate: float, latency: float) -> None:
        self.rate, self.latency = rate, latency
        self.now = self.free = 0.0
        self.coming: list[tuple[float, int]] = []
        self.limits: list[int] = []
        monkeypatch.setattr(flight.time, "monotonic", lambda: self.now)

    def carry(self, requests: Pace, sizes: np.ndarray) -> float:
        """Send requests of these sizes, as many at once as may be; returns the bytes a second of the last half."""
        halfway, nbytes, came = 0.0, 0, 0
        left = iter(sizes.tolist())
        asked = next(left, None)
        while asked is not None or self.coming:
            while asked is not None and len(self.coming) < requests.limit:
                self.free = max(self.free, self.now + self.latency) + asked / self.rate
                heapq.heappush(self.coming, (self.free, asked))
                asked = next(left, None)
            self.now, size = heapq.heappop(self.coming)
            self.limits.append(requests.limit)
            requests.landed(size, len(self.coming) + 1)
            came += 1
            if came == len(sizes) // 2:
                halfway = self.now
            nbytes += size * (came > len(sizes) // 2)
        return nbytes / (self.now - halfway)


@pytest.mark.parametrize("latency", [0.001, 0.03, 0.1, 0.2])
@pytest.mark.parametrize("rate", [5e6, 50e6])
@pytest.mark.parametrize("size", [4_000, 30_000, 500_000])
def test_as_many_requests_are_under_way_as_fill_the_link(
    monkeypatch: pytest.MonkeyPatch, rate: float, latency: float, size: int
) -> None:
    most = 128
    requests = Pace(most)
    sizes = np.random.default_rng(0).integers(size // 2, size * 3 // 2, 6000)
    link = Link(monkeypatch, rate, latency)
    found = link.carry(requests, sizes)
    needed = rate * latency / size + 1
    assert found > 0.8 * min(rate, most * size / latency)
    assert np.median(link.limits[3000:]) <= max(FIRST, 4 * needed)  # more are tried now and then
    assert max(link.limits) <= most


def test_a_link_that_has_become_slower_to_answer_gets_more_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Pace(64)
    sizes = np.full(30_000, 20_000)
    link = Link(monkeypatch, 5e6, 0.02)
    link.carry(requests, sizes)
    assert np.median(link.limits) == FIRST
    link.latency = 0.25  # now 5e6 * 0.25 / 20_000 = 62 fill it
    assert link.carry(requests, sizes) > 0.75 * 5e6
    assert requests.limit == 64


def test_never_more_than_may_be_are_under_way() -> None:
    requests, lock = Flight(3), threading.Lock()
    busy = most = 0

    def ask(k: int) -> int:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        requests.landed(1)
        with lock:
            busy -= 1
        return k

    asked = [requests.submit(ask, k) for k in range(600)]
    assert [future.result() for future in asked] == list(range(600))
    assert 1 <= most <= 3
    requests.close()


def test_what_is_cancelled_is_not_asked_for_and_errors_are_told() -> None:
    requests, go, asked = Flight(1), threading.Event(), []

    def ask(k: int) -> None:
        go.wait()
        asked.append(k)
        raise ValueError(k)

    futures = [requests.submit(ask, k) for k in range(4)]
    assert futures[2].cancel()
    go.set()
    assert [type(future.exception()) for future in (futures[0], futures[1], futures[3])] == [ValueError] * 3
    assert asked == [0, 1, 3]
    requests.close()


def test_a_server_that_refuses_is_asked_less_and_later_more_again(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Pace(128)
    link = Link(monkeypatch, 50e6, 0.2)
    link.carry(requests, np.full(6000, 20_000))
    assert requests.limit == 128
    requests.refused()
    assert requests.limit == 64
    for _ in range(60):  # those that were under way are refused too
        requests.refused()
    assert requests.limit == 64
    link.now += 2 * flight.CALM
    requests.refused()
    assert requests.limit == 32
    link.carry(requests, np.full(20_000, 20_000))
    assert requests.limit == 128


def test_few_requests_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Pace(128)
    link = Link(monkeypatch, 5e6, 0.2)
    for _ in range(100):
        link.carry(requests, np.full(FIRST - 1, 1000))
    assert requests.limit == FIRST


def test_a_long_way_begins_with_more_requests() -> None:
    limits = []
    for seconds in (0.001, 0.05, 0.1, 0.2, 3.0):
        requests = Flight(256)
        requests.begin(seconds)
        requests.begin(0.001)
        limits.append(requests.limit)
        requests.close()
    assert limits == [32, 32, 64, 128, 256]
    requests = Flight(256)
    requests.landed(1)
    requests.begin(0.2)  # it has measurements of its own
    assert requests.limit == 32
    requests.close()
