"""Which addresses a foreman connects to because discovery named them."""

from __future__ import annotations

import pytest

from ec262.protocol.scopes import Scope, refusal, scope_of

HERE, NEAR, FAR = "127.0.0.1", "192.168.1.7", "9.9.9.9"

NEVER = [
    *("169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "fd00:ec2::254"),
    *("fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "::ffff:168.63.129.16", "169.254.170.2"),
    *("0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "fe80::1", "fe80::1%eth0"),
    *("fec0::1", "::127.0.0.1", "::7f00:1", "2001:0:1::1", "64:ff9b:1::a00:1"),
    *("localhost", "metadata.google.internal", "127.1", "0x7f000001", "2130706433", "017700000001", "127.0.0.1:80"),
    *("", " 127.0.0.1", "127.0.0.1\n", "[::1]", "1.2.3.4/8", "１２７.0.0.1"),
]
LOOPBACK = ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]
PRIVATE = ["10.1.2.3", "172.16.0.1", "192.168.1.7", "100.64.0.1", "fd12:3456::1", "::ffff:10.0.0.1", "192.0.2.1"]
GLOBAL = ["9.9.9.9", "2606:4700::1111", "::ffff:9.9.9.9", "64:ff9b::909:909"]


@pytest.mark.parametrize("address", NEVER)
def test_attack_name_a_metadata_service_or_what_is_no_address(address: str) -> None:
    assert scope_of(address) is Scope.NEVER
    for discovery in (HERE, NEAR, FAR):
        assert refusal(address, [discovery], near_too=True)


@pytest.mark.parametrize("address", LOOPBACK)
def test_attack_name_the_foremans_own_machine(address: str) -> None:
    assert scope_of(address) is Scope.LOOPBACK
    assert refusal(address, [FAR])
    assert refusal(address, [NEAR])
    assert not refusal(address, [HERE])
    assert not refusal(address, [FAR], near_too=True)


@pytest.mark.parametrize("address", PRIVATE)
def test_attack_name_the_foremans_own_network(address: str) -> None:
    assert scope_of(address) is Scope.PRIVATE
    assert refusal(address, [FAR])
    assert not refusal(address, [NEAR])
    assert not refusal(address, [HERE])
    assert not refusal(address, [FAR], near_too=True)


@pytest.mark.parametrize("address", GLOBAL)
def test_addresses_of_the_internet_may_be_named_by_anybody(address: str) -> None:
    assert scope_of(address) is Scope.GLOBAL
    assert not refusal(address, [FAR])
    assert not refusal(address, [HERE])


def test_attack_a_discovery_whose_name_also_means_this_machine() -> None:
    """Of the addresses that it was reached at the farthest counts: a second answer of its name service wins nothing."""
    assert refusal(HERE, [HERE, FAR])
    assert refusal(NEAR, [FAR, NEAR])
    assert refusal(HERE, []), "nor does one that was not reached at all"


def test_a_refusal_says_what_to_do_and_nothing_ugly() -> None:
    assert "EC262_PRIVATE_PEERS=1" in refusal(HERE, [FAR])
    assert refusal("\x1b[31m" + "x" * 500, [FAR]).isprintable()
    assert len(refusal("x" * 500, [FAR])) < 200
