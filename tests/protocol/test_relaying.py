"""Transfers in parts: what goes in comes out, within bounds, whatever a foreman sends."""

from __future__ import annotations

import random
import secrets

import pytest

from ec262.errors import Malformed
from ec262.protocol.relaying import (
    CALL_BYTES,
    KEPT,
    MISSING,
    MOST_PARTS,
    PART_BYTES,
    RelayedAnswer,
    RelayedRequest,
    Transfers,
    challenge,
    pack,
    part_of,
    parts_of,
    proof,
    unpack_answer,
    unpack_request,
)

ROOM = 16 * PART_BYTES


def requests(body: bytes, transfer: str = "") -> list[RelayedRequest]:
    transfer = transfer or secrets.token_hex(16)
    last = parts_of(len(body)) - 1
    return [
        RelayedRequest(
            transfer=transfer, what="serve" if number == last else "keep", part=number, body=part_of(body, number)
        )
        for number in range(last + 1)
    ]


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
def test_a_request_in_parts_is_whole_again(size: int) -> None:
    body = random.Random(size).randbytes(size)
    transfers = Transfers(ROOM)
    *first, last = requests(body)
    random.Random(1).shuffle(first)  # they travel side by side
    for part in first:
        assert len(pack(part)) <= CALL_BYTES
        assert transfers.keep("a", unpack_request(pack(part)), 0.0)
        assert transfers.keep("a", part, 0.0), "sent again, because no answer came"
    assert transfers.whole("a", unpack_request(pack(last))) == body
    assert transfers.bytes == 0


@pytest.mark.parametrize("size", [0, PART_BYTES, PART_BYTES + 1, 5 * PART_BYTES - 1])
def test_an_answer_in_parts_is_whole_again(size: int) -> None:
    body = random.Random(size).randbytes(size)
    transfers = Transfers(ROOM)
    answer = transfers.answer("a", "ab" * 16, RelayedAnswer(status=200, media="x/y"), body, 0.0)
    assert (answer.status, answer.media, answer.size) == (200, "x/y", size)
    pieces = [unpack_answer(pack(answer)).body]
    for number in range(1, parts_of(size)):
        pieces.append(transfers.more("a", RelayedRequest(transfer="ab" * 16, what="more", part=number), 0.0).body)
    assert b"".join(pieces) == body
    transfers.over("a", "ab" * 16)
    assert transfers.bytes == 0


def test_a_part_that_is_missing_is_noticed() -> None:
    transfers = Transfers(ROOM)
    first, _, last = requests(b"x" * (3 * PART_BYTES))
    assert transfers.keep("a", first, 0.0)
    assert transfers.whole("a", last) is None
    assert transfers.whole("a", last) is None
    assert transfers.bytes == 0
    assert transfers.more("a", RelayedRequest(transfer="ab" * 16, what="more", part=1), 0.0).status == MISSING


def test_attack_take_parts_of_another_foremans_transfer() -> None:
    """Also who knows its id gets nothing of it, and puts nothing into it."""
    transfers = Transfers(ROOM)
    first, last = requests(b"x" * (2 * PART_BYTES))
    transfers.keep("a", first, 0.0)
    transfers.answer("a", "ab" * 16, RelayedAnswer(status=200), b"y" * (2 * PART_BYTES), 0.0)
    assert transfers.whole("b", last) is None
    assert transfers.more("b", RelayedRequest(transfer="ab" * 16, what="more", part=1), 0.0).status == MISSING
    transfers.over("b", "ab" * 16)
    assert transfers.more("a", RelayedRequest(transfer="ab" * 16, what="more", part=1), 0.0).status == KEPT
    assert transfers.whole("a", last) == b"x" * (2 * PART_BYTES)


@pytest.mark.parametrize("size", [0, PART_BYTES])
def test_attack_fill_a_worker_with_parts(size: int) -> None:
    """One foreman gets half of the room, in bytes or in parts of none; others still have the rest."""
    transfers = Transfers(ROOM)
    kept = 0
    while transfers.keep("a", RelayedRequest(transfer=secrets.token_hex(16), what="keep", body=b"x" * size), 0.0):
        kept += 1
        assert kept < 100_000
    assert transfers.bytes <= ROOM // 2
    assert transfers.keep("b", RelayedRequest(transfer=secrets.token_hex(16), what="keep", body=b"x" * 1000), 0.0)


def test_what_nobody_goes_on_with_is_dropped() -> None:
    transfers = Transfers(ROOM, idle_s=10.0)
    first, last = requests(b"x" * (2 * PART_BYTES))
    transfers.keep("a", first, 0.0)
    transfers.answer("a", "ab" * 16, RelayedAnswer(status=200), b"y" * (2 * PART_BYTES), 0.0)
    transfers.more("a", RelayedRequest(transfer="ab" * 16, what="more", part=1), 8.0)
    assert transfers.bytes > 2 * PART_BYTES
    assert transfers.more("a", RelayedRequest(transfer="ab" * 16, what="more", part=1), 12.0).status == KEPT
    assert transfers.whole("a", last) is None
    assert transfers.more("b", RelayedRequest(transfer="00" * 16, what="more", part=1), 40.0).status == MISSING
    assert transfers.bytes == 0


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\xc1",
        b"{}",
        pack(RelayedAnswer(status=200)),
        pack(RelayedRequest(transfer="ab" * 16))[:-3],
        pack(RelayedRequest(transfer="../etc")),
        pack(RelayedRequest(transfer="ab" * 16, part=MOST_PARTS)),
        pack(RelayedRequest(transfer="ab" * 16, part=-1)),
        pack(RelayedRequest(transfer="ab" * 16, method="PATCH")),  # type: ignore[arg-type]
        pack(RelayedRequest(transfer="ab" * 16, target="/\r\nHost: x")),
        pack(RelayedRequest(transfer="ab" * 16, authorization="x\r\ny")),
        pack(RelayedRequest(transfer="ab" * 16, body=b"x" * (PART_BYTES + 1))),
        b"\x91" * 100_000,
    ],
)
def test_attack_send_what_is_no_request(junk: bytes) -> None:
    with pytest.raises(Malformed):
        unpack_request(junk)


def test_the_challenge_binds_nonce_purpose_and_worker() -> None:
    made = {
        challenge("ab" * 16, "n", "reach"),
        challenge("ab" * 16, "n", "call"),
        challenge("ab" * 16, "m", "reach"),
        challenge("cd" * 16, "n", "reach"),
        proof("ab" * 16, "n"),
        proof("cd" * 16, "n"),
        proof("ab" * 16, "m"),
    }
    assert len(made) == 7
