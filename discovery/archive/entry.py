"""Entries: what one commit moved, and what for, as bytes. Pure.

An entry is MessagePack: ``[movements, whats]``. Each of `whats` is (what, count) and holds for the next `count`
movements: a commit mostly has one. An entry that is a list of movements alone says nothing of what they were for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from discovery.changes import Move
from ec262.errors import Malformed

START = "start"
"""What starting credits are for. The others begin with a kind and a colon: job, transfer, mint, burn."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[list[Move], list[tuple[str, int]]])
_bare_decoder = msgspec.msgpack.Decoder(list[Move])


def encode_entry(moves: Sequence[Move], whats: Sequence[tuple[str, int]] = ()) -> bytes:
    """One commit's entry."""
    return _encoder.encode((moves, whats))


def decode_entry(data: bytes) -> tuple[list[Move], list[tuple[str, int]]]:
    """The movements of an entry, and what they were for.

    Raises:
        Malformed: the bytes are no entry.
    """
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError:
        pass  # of the form without whats
    except msgspec.DecodeError as reason:
        raise Malformed(f"no entry of the ledger: {reason}") from None
    try:
        return _bare_decoder.decode(data), []
    except msgspec.DecodeError as reason:
        raise Malformed(f"no entry of the ledger: {reason}") from None


def whats_of(moves: Sequence[Move], jobs: Mapping[str, str]) -> list[tuple[str, int]]:
    """What movements were for, by the jobs of the tasks whose escrow they touch.

    Args:
        jobs: the job of each task of the commit. Where there is but one job, all movements were for it.
    """
    names = set(jobs.values())
    if len(names) == 1:
        return [(f"job:{names.pop()}", len(moves))]
    runs: list[tuple[str, int]] = []
    for source, target, _ in moves:
        task = source if source.startswith("escrow:") else target
        job = jobs.get(task[7:]) if task.startswith("escrow:") else None
        what = "" if job is None else f"job:{job}"
        if runs and runs[-1][0] == what:
            runs[-1] = (what, runs[-1][1] + 1)
        else:
            runs.append((what, 1))
    return runs


def with_whats(moves: Sequence[Move], whats: Sequence[tuple[str, int]]) -> list[str]:
    """What each movement was for; empty where the entry does not say."""
    named = [what for what, count in whats for _ in range(min(count, len(moves)))]
    return (named + [""] * len(moves))[: len(moves)]
