"""Addresses: where a request comes from, and how much of the world one person easily has. No I/O.

Who has one IPv4 address often has its /24 within reach; who has one IPv6 address has a /64 for the asking (RFC 6177
recommends more), and with little trouble a /48.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

WIDER = 4
"""A neighbourhood may have so many times what one of its addresses may have."""


@lru_cache(maxsize=1 << 14)
def neighbourhood(address: str) -> str:
    """The /24 (IPv4) or /64 (IPv6) an address lies in: what one person can easily have many addresses of."""
    return _block(_parse(address), 24, 64)


def origins(address: str) -> tuple[str, str]:
    """What counts as one address (IPv4: itself; IPv6: its /64), and its neighbourhood (/24; /48)."""
    parsed = _parse(address)
    return _block(parsed, 32, 64), _block(parsed, 24, 48)


def caller_of(peer: str, forwarded: Sequence[str], proxies: Collection[str]) -> str:
    """The address that a request comes from.

    Args:
        peer: the other end of the connection.
        forwarded: all ``X-Forwarded-For`` headers of the request, in order.
        proxies: addresses of proxies that are believed. Each adds to the header whom it heard from, so that the last
            entry is the one that a believed proxy wrote; what stands before it is the caller's own invention, unless
            that last one is a believed proxy too.

    Anybody can send such headers: where `peer` is none of the proxies, they mean nothing.
    """
    named = [entry.strip() for header in forwarded for entry in header.split(",")]
    at = plain(peer)
    while at in proxies and named:
        try:
            at = plain(named.pop())
        except ValueError:
            break
    return at


def plain(address: str) -> str:
    """An address in its one spelling, and an IPv4 address as such also where it came as an IPv6 one.

    Raises:
        ValueError: it is none.
    """
    return str(_parse(address))


def _parse(address: str) -> IPv4Address | IPv6Address:
    parsed = ip_address(address)
    if parsed.version == 6 and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


def _block(parsed: IPv4Address | IPv6Address, of_four: int, of_six: int) -> str:
    keep = of_four if parsed.version == 4 else of_six
    return f"{int(parsed) >> (parsed.max_prefixlen - keep):x}/{keep}"
