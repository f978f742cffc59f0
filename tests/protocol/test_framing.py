"""Framing: one way to write a list of parts, one way to read it, and a digest that binds its order and borders."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ec262.errors import Malformed
from ec262.protocol.framing import MAX_PARTS, frame_parts, parts_digest, unframe_parts

QUICK = settings(max_examples=150, deadline=None)
parts_lists = st.lists(st.binary(max_size=30), max_size=6)


@QUICK
@given(parts_lists)
def test_parts_come_back(parts: list[bytes]) -> None:
    assert unframe_parts(frame_parts(parts)) == parts


@QUICK
@given(parts_lists, st.data())
def test_a_changed_frame_is_malformed_or_another_list(parts: list[bytes], data: st.DataObject) -> None:
    frame = bytearray(frame_parts(parts))
    at = data.draw(st.integers(0, len(frame) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "append", "insert", "remove"]))
    if how == "flip":
        frame[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del frame[at:]
    elif how == "append":
        frame += data.draw(st.binary(min_size=1, max_size=8))
    elif how == "insert":
        frame[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    else:
        del frame[at]
    changed = bytes(frame)
    if changed == frame_parts(parts):
        return  # a byte put in beside an equal one
    try:
        read = unframe_parts(changed)
    except Malformed:
        return
    assert read != parts
    assert frame_parts(read) == changed


@QUICK
@given(st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(lambda tail: b"EP1" + tail)))
def test_any_bytes_are_a_list_or_malformed(data: bytes) -> None:
    try:
        read = unframe_parts(data)
    except Malformed:
        return
    assert frame_parts(read) == data


def test_known_bytes() -> None:
    assert frame_parts([b"", b"ab"]) == b"EP1\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x02ab"
    assert frame_parts([]) == b"EP1\x00\x00\x00\x00"


@pytest.mark.parametrize("count", [MAX_PARTS + 1, 2**31, 2**32 - 1])
def test_an_impossible_count_costs_nothing(count: int) -> None:
    with pytest.raises(Malformed):
        unframe_parts(b"EP1" + struct.pack(">I", count) + bytes(64))


def test_the_largest_list() -> None:
    assert unframe_parts(frame_parts([b""] * MAX_PARTS)) == [b""] * MAX_PARTS
    with pytest.raises(Malformed):
        unframe_parts(frame_parts([b""] * (MAX_PARTS + 1)))


@QUICK
@given(parts_lists, parts_lists)
def test_digests_differ_where_the_lists_differ(one: list[bytes], other: list[bytes]) -> None:
    assert (parts_digest(one, domain=b"x") == parts_digest(other, domain=b"x")) == (one == other)


@QUICK
@given(parts_lists, st.binary(max_size=8), st.binary(max_size=8))
def test_digests_of_different_domains_differ(parts: list[bytes], one: bytes, other: bytes) -> None:
    one, other = one.replace(b"\0", b""), other.replace(b"\0", b"")
    assert (parts_digest(parts, domain=one) == parts_digest(parts, domain=other)) == (one == other)


def test_borders_and_order_are_in_the_digest() -> None:
    lists = [[b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"c", b"ab"], [b"ab", b"c", b""], [b"", b"ab", b"c"], []]
    assert len({parts_digest(parts, domain=b"input") for parts in lists}) == len(lists)
