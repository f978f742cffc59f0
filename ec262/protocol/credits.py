"""Credits: what a replica costs, and how long. Discovery charges it, and the foreman reckons with it beforehand."""

from __future__ import annotations

AT_HAND = 2
"""Tasks a slot that a foreman keeps at a worker where tasks take long: one runs, one waits."""


def price_of(cpu_limit_s: float) -> int:
    """Credits for one replica: one for up to 60 CPU seconds, in proportion beyond."""
    return max(1, -(-int(cpu_limit_s * 1000) // 60_000))


def least_timeout_s(cpu_limit_s: float) -> float:
    """No lease's deadline is nearer, whatever its foreman asks for: a replica's credits may be in escrow for so long.

    A task may use its CPU limit, and waits for another one before it where its foreman keeps the worker busy.
    """
    return AT_HAND * cpu_limit_s
