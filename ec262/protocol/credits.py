"""Credits: what a replica costs. Discovery charges it, and the foreman reckons with it before it starts."""

from __future__ import annotations


def price_of(cpu_limit_s: float) -> int:
    """Credits for one replica: one for up to 60 CPU seconds, in proportion beyond."""
    return max(1, -(-int(cpu_limit_s * 1000) // 60_000))
