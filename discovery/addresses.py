"""Addresses: where a request comes from, and how much of the world one person easily has. No I/O.

Who has one IPv4 address often has its /24 within reach; who has one IPv6 address has a /64 for the asking (RFC 6177
recommends more), and with little trouble a /48.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

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
        proxies: networks of proxies that are believed. Each adds to the header whom it heard from, so that the last
            entry is the one that a believed proxy wrote; what stands before it is the caller's own invention, unless
            that last one is a believed proxy too.

    Anybody can send such headers: where `peer` is none of the proxies, they mean nothing. (werkzeug's `ProxyFix` counts
    hops instead, and believes whoever connects: who gets past the proxy is whoever he likes.) A proxy that names
    nobody, or what is no address, is the caller itself.
    """
    named = [entry.strip() for header in forwarded for entry in header.split(",")]
    at = plain(peer)
    while named and believed(at, proxies):
        try:
            at = plain(_without_port(named.pop()))
        except ValueError:
            break
    return at


def believed(address: str, proxies: Collection[str]) -> bool:
    """Whether a proxy there is believed.

    Args:
        proxies: networks in CIDR notation, or addresses.
    """
    if not proxies:
        return False
    parsed = _parse(address)
    return any(parsed in network for network in _networks(tuple(proxies)))


class Believed(Container[str]):
    """The addresses of proxies that are believed."""

    def __init__(self, proxies: Collection[str]) -> None:
        self._proxies = tuple(proxies)

    def __contains__(self, address: object) -> bool:
        return isinstance(address, str) and bool(address) and believed(address, self._proxies)


@lru_cache(maxsize=64)
def _networks(proxies: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ip_network, proxies))


def _without_port(entry: str) -> str:
    """An entry of the header: some proxies write the port as well, and then an IPv6 address in brackets."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


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
