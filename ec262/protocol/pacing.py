"""Pacing: what a request counts as against the limits of requests, and how a caller keeps to limits that it does not
know. No I/O.

A service says no to who asks too often (``rate-limited``). For a short request it is enough to come again. Who has
megabytes to send, in many requests at once, would send most of them for nothing, and again, and be refused other
things meanwhile. So such a caller learns how fast it may go: additive increase, multiplicative decrease, as in
congestion control (RFC 5681), of requests a second.
"""

from __future__ import annotations

BODY_A_REQUEST = 64 * 1024
"""A request counts as one, and as one more for each so many bytes of its body: large ones cost more to serve."""

_FIRST_A_SECOND = 100.0
"""After the first refusal."""
_LEAST_A_SECOND = 2.0
_MOST_A_SECOND = 1000.0
"""Who may go as fast as that need not wait at all any more."""
_FASTER = 0.05
"""Requests a second that a request which was counted and not refused adds, for each that it counts as."""
_SLOWER = 0.7


def cost_of(body_bytes: int) -> int:
    """What a request counts as."""
    return 1 + body_bytes // BODY_A_REQUEST


class Pace:
    """How fast one caller goes: as it likes, until it was refused.

    Attributes:
        a_second: requests a second, by `cost_of`; 0: as it likes.
        slowed: how often it was slowed down. Who waited for a turn meanwhile takes another one: his was of a caller
            that went faster.
    """

    def __init__(self) -> None:
        self.a_second = 0.0
        self.slowed = 0
        self._next_s = 0.0
        self._slowed_s = float("-inf")

    def turn(self, cost: int, now_s: float) -> float:
        """After how many seconds a request may go out, 0: now. It has that turn then."""
        wait_s = max(0.0, self._next_s - now_s)
        if self.a_second:
            self._next_s = now_s + wait_s + cost / self.a_second
        return wait_s

    def refused(self, wait_s: float, now_s: float) -> None:
        """There was no room for a request; there is none before `wait_s`. Many at once were one haste."""
        if now_s >= self._slowed_s:
            self._slowed_s = now_s + wait_s
            self.slowed += 1
            self.a_second = max(_LEAST_A_SECOND, self.a_second * _SLOWER) if self.a_second else _FIRST_A_SECOND
            self._next_s = now_s
        self._next_s = max(self._next_s, now_s + wait_s)

    def answered(self, cost: int) -> None:
        """A request was not refused."""
        if self.a_second:
            self.a_second += _FASTER * cost
            if self.a_second > _MOST_A_SECOND:
                self.a_second = self._next_s = 0.0
