"""Scopes: how far an address reaches, and whether to connect to one that somebody else named. No I/O.

A foreman connects to addresses that discovery hands it. A public discovery, or whoever has taken it over, could hand
out the foreman's own machine, its router or a cloud's metadata service: a request forged by the server's word
(CWE-918). So nobody's address is connected to that lies nearer than discovery itself does.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address


class Scope(IntEnum):
    """From where an address can be reached, from near to far."""

    NEVER = 0
    """nobody computes there: metadata services of clouds, link-local, multicast, reserved and unspecified addresses"""
    LOOPBACK = 1
    PRIVATE = 2
    GLOBAL = 3


# Metadata services that are not link-local (those at 169.254.x.x are): Amazon's and Google's over IPv6, Alibaba's,
# Oracle's, Azure's (a global address that Azure routes to the host).
_METADATA: frozenset[Address] = frozenset(
    map(ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"))
)
# IPv6 addresses that carry an IPv4 one to which a gateway passes on what comes: NAT64 (RFC 6052) and 6to4.
_NAT64 = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_THIS_NETWORK = IPv4Network("0.0.0.0/8")
_NEVER_SIX: tuple[IPv6Network, ...] = (
    # Teredo; IPv4-compatible; site-local, which is no more; NAT64 of a local network (RFC 8215)
    *(IPv6Network("2001::/32"), IPv6Network("::/96"), IPv6Network("fec0::/10"), IPv6Network("64:ff9b:1::/48")),
)


def scope_of(address: str) -> Scope:
    """The scope of an address; what is no IP address in numbers (a name, a zone, an odd spelling) is `NEVER` one."""
    try:
        return _scope(ip_address(address))
    except ValueError:
        return Scope.NEVER


def refusal(address: str, seen_from: Collection[str], *, near_too: bool = False) -> str:
    """Why not to connect to an address that discovery named; empty: nothing speaks against it.

    Args:
        seen_from: the addresses that discovery itself was reached at. It may name what lies as far as the farthest.
        near_too: loopback and private addresses are fine, whoever names them.
    """
    scope = scope_of(address)
    if scope is Scope.NEVER:
        return f"{address[:64]!a} is no address of a worker"
    nearest = max((scope_of(each) for each in seen_from), default=Scope.GLOBAL)
    if scope < nearest and not near_too:
        return (
            f"discovery is elsewhere and named {address}, a {scope.name.lower()} address, where this machine does not "
            "connect on a stranger's word (EC262_PRIVATE_PEERS=1 allows it, on a network that you trust)"
        )
    return ""


def _scope(address: Address) -> Scope:
    if address.version == 6:
        if address.scope_id is not None:
            return Scope.NEVER
        if address.is_loopback:
            return Scope.LOOPBACK
        if address.ipv4_mapped is not None:
            return _scope(address.ipv4_mapped)
        if address in _NAT64:
            return _scope(IPv4Address(int(address) & 0xFFFFFFFF))
        if address in _SIX_TO_FOUR and address.sixtofour is not None:
            return _scope(address.sixtofour)
        if any(address in network for network in _NEVER_SIX):
            return Scope.NEVER
    elif address in _THIS_NETWORK:
        return Scope.NEVER
    if address in _METADATA or address.is_link_local or address.is_multicast or address.is_unspecified:
        return Scope.NEVER
    if address.is_loopback:
        return Scope.LOOPBACK
    if address.is_global:
        return Scope.GLOBAL
    return Scope.NEVER if address.is_reserved else Scope.PRIVATE
