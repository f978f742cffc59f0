"""A caller that finds its pace: simulated against limits such as discovery's, on a clock of the test's own."""

from __future__ import annotations

import heapq

import pytest

from ec262.protocol.pacing import Pace, cost_of


class Bucket:
    """So many requests a second, and ten times as many at once."""

    def __init__(self, a_second: float) -> None:
        self.a_second = a_second
        self.left = self.burst = a_second * 10
        self.now_s = 0.0

    def takes(self, cost: int, now_s: float) -> bool:
        self.left = min(self.burst, self.left + (now_s - self.now_s) * self.a_second)
        self.now_s = now_s
        good = self.left >= cost
        if good:
            self.left -= cost
        return good


def sent(bucket: Bucket, callers: int, cost: int, until_s: float) -> tuple[int, int]:
    """What so many greenlets of one caller get through in a time, and how often they are refused."""
    pace = Pace()
    good = refused = 0
    turns = [(0.0, n, -1) for n in range(callers)]  # when, who, and when it was slowed last as it took a turn
    heapq.heapify(turns)
    while turns[0][0] < until_s:
        now_s, who, slowed = heapq.heappop(turns)
        if slowed != pace.slowed:
            heapq.heappush(turns, (now_s + pace.turn(cost, now_s), who, pace.slowed))
        elif bucket.takes(cost, now_s):
            good += cost
            pace.answered(cost)
            heapq.heappush(turns, (now_s + 0.05, who, -1))
        else:
            refused += 1
            pace.refused(1.0, now_s)
            heapq.heappush(turns, (now_s, who, -1))
    return good, refused


def test_who_was_never_refused_goes_as_it_likes() -> None:
    pace = Pace()
    for _ in range(1000):
        assert pace.turn(17, 5.0) == 0.0
        pace.answered(17)


@pytest.mark.parametrize("a_second", [20, 100, 400])
def test_it_finds_the_limit_and_is_seldom_refused(a_second: int) -> None:
    """64 at once, of a megabyte each."""
    cost = cost_of(1024 * 1024)
    good, refused = sent(Bucket(a_second), 64, cost, 120.0)
    most = a_second * 130
    assert good > 0.85 * most
    assert refused < good / cost / 5


def test_many_refusals_at_once_slow_it_down_once() -> None:
    pace = Pace()
    for _ in range(50):
        pace.refused(1.0, 10.0)
    once = pace.a_second
    assert pace.turn(1, 10.5) == 0.5
    pace.refused(1.0, 12.0)
    assert 0 < pace.a_second < once


def test_a_limit_that_is_gone_is_forgotten() -> None:
    pace = Pace()
    pace.refused(1.0, 0.0)
    for _ in range(2000):
        pace.answered(17)
    assert pace.turn(17, 1.5) == pace.turn(17, 1.5) == 0.0
