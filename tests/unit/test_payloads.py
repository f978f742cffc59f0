"""What a foreman believes of the bytes a paid worker delivered: just what was agreed on, and no control characters."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ec262.errors import LimitExceeded, Malformed, SealBroken, TaskFailed
from ec262.foreman.payloads import (
    TOKEN_BYTES,
    batches,
    describe,
    input_digest,
    open_result,
    seal_input,
    seal_pieces,
)
from ec262.foreman.schedule import Replica, Task
from ec262.protocol import messages as m
from ec262.protocol.canonical import encode_value
from ec262.protocol.framing import frame_parts, unframe_parts
from ec262.protocol.receipts import Kind, failure_commitment, result_commitment
from ec262.protocol.sealing import unseal

KEY = os.urandom(32)
PARTS = [b"header", b"data"]
TASK = Task(7, lambda: PARTS, label="map task 7 (key 'k')")


def verdict(kind: Kind, commitment: bytes) -> m.TaskVerdict:
    return m.TaskVerdict(task_id="ab" * 8, verdict="accepted", kind=kind, commitment=commitment)


def delivered(*parts: bytes, key: bytes = KEY) -> list[bytes]:
    return seal_pieces(key, frame_parts(parts))


def failure(kind: Kind = Kind.ERROR, **facts: Any) -> tuple[m.TaskVerdict, list[bytes]]:
    names = ("limit",) if kind is Kind.LIMIT else ("type", "line")
    commitment = failure_commitment(kind, *(str(facts.get(name, "")) for name in names))
    return verdict(kind, commitment), delivered(encode_value(facts))


@pytest.mark.parametrize("sizes", [[0], [10, 0, 5], [TOKEN_BYTES], [TOKEN_BYTES * 2 + 7, 3]])
def test_results_of_any_size_come_back(sizes: list[int]) -> None:
    parts = [os.urandom(size) for size in sizes]
    assert open_result(verdict(Kind.OK, result_commitment(parts)), KEY, delivered(*parts), TASK) == parts


def test_junk_behind_a_good_commitment_is_noticed() -> None:
    agreed = verdict(Kind.OK, result_commitment([b"right"]))
    for tokens in (delivered(b"wrong"), delivered(b"right", b""), seal_pieces(KEY, b"junk"), seal_pieces(KEY, b"")):
        with pytest.raises(Malformed):
            open_result(agreed, KEY, tokens, TASK)
    for tokens in (delivered(b"right", key=os.urandom(32)), [b"junk"], [b""]):
        with pytest.raises(SealBroken):
            open_result(agreed, KEY, tokens, TASK)
    with pytest.raises(Malformed):
        open_result(agreed, KEY, [], TASK)


def test_an_error_names_the_task_and_has_the_workers_traceback() -> None:
    with pytest.raises(TaskFailed, match=r"map task 7 \(key 'k'\): KeyError: 'x'") as caught:
        open_result(*_with_key(failure(type="KeyError", message="'x'", line="a.py:3", traceback="line 3")), TASK)
    assert (caught.value.error_type, caught.value.remote_traceback) == ("KeyError", "line 3")
    with pytest.raises(LimitExceeded, match="too long"):
        open_result(*_with_key(failure(Kind.LIMIT, type="LimitExceeded", limit="cpu", message="too long")), TASK)


def test_a_workers_text_cannot_drive_the_terminal() -> None:
    noise = "\x07\x9b31m\r" + "x" * 100_000
    failed = failure(type="E\x1b[2J", message=noise, line="", traceback="a\nb\x1b]0;t\x07")
    with pytest.raises(TaskFailed) as caught:
        open_result(*_with_key(failed), TASK)
    shown = str(caught.value) + caught.value.error_type + caught.value.remote_traceback
    assert not [c for c in shown if not c.isprintable() and c != "\n"]
    assert len(shown) < 50_000


def test_a_failure_other_than_the_agreed_one_is_junk() -> None:
    agreed, _ = failure(type="KeyError", line="a.py:3")
    _, other = failure(type="ValueError", line="a.py:3")
    for tokens in (other, delivered(b"[]"), delivered(b"\xff"), delivered(), delivered(b"1", b"2")):
        with pytest.raises(Malformed):
            open_result(agreed, KEY, tokens, TASK)


def _with_key(failed: tuple[m.TaskVerdict, list[bytes]]) -> tuple[m.TaskVerdict, bytes, list[bytes]]:
    return failed[0], KEY, failed[1]


def test_an_input_is_sealed_in_pieces_that_join_to_what_the_ticket_binds() -> None:
    given = [b"header", os.urandom(TOKEN_BYTES + 1)]
    tokens = seal_input(Task(1, lambda: given, input_key=KEY), given)
    assert len(tokens) == 2
    parts = unframe_parts(b"".join(unseal(KEY, token) for token in tokens))
    assert input_digest(parts) == input_digest(given)


def test_batches_hold_everything_once() -> None:
    pairs = [(Task(n, list, size=6 * 1024 * 1024), Replica(str(n), "w")) for n in range(7)]
    borders = batches(pairs)
    assert borders[0] == 0
    assert borders[-1] == 7
    assert borders == sorted(set(borders))
    assert len(borders) > 2
    assert batches([]) == [0]


def test_a_task_is_described_by_its_label_or_else_its_number() -> None:
    assert describe(TASK) == "map task 7 (key 'k')"
    assert describe(Task(3, list, label=lambda: "made when it is wanted")) == "made when it is wanted"
    assert describe(Task(1, list, "reduce")) == "reduce task 1"
