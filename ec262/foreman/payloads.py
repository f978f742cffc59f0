"""Payloads: what a foreman sends to workers, cut and sealed, and what it gets from them, opened and checked. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from ec262.errors import LimitExceeded, Malformed, SealBroken, TaskFailed
from ec262.foreman.schedule import Replica, Task
from ec262.protocol import messages as m
from ec262.protocol.canonical import decode_value
from ec262.protocol.framing import frame_parts, parts_digest, unframe_parts
from ec262.protocol.receipts import Kind, failure_commitment, result_commitment
from ec262.protocol.routes import route
from ec262.protocol.sealing import OVERHEAD_BYTES, seal, unseal

TOKEN_BYTES = 4 * 1024 * 1024
"""Plain bytes a token; larger things travel as several."""
PUSH_BYTES = 16 * 1024 * 1024
"""As much as one push carries of several inputs; an input that is larger goes alone."""
MAX_PUSH_BYTES = route("worker", "push_tasks").max_body_bytes
"""A worker refuses longer pushes, unread."""
BESIDES_BYTES = 1024 * 1024
"""Left in a push for tickets and what is around the tokens."""
MAX_FACTS_BYTES = 1024 * 1024
"""Of a failure; a worker's sandbox says at most a quarter of it, in ASCII."""
TEXT_CHARACTERS = 20_000
"""Most that is shown of a text from a worker."""


def input_digest(parts: Sequence[bytes]) -> bytes:
    """What a ticket binds a task's input with."""
    return parts_digest(parts, domain=b"input")


def seal_input(task: Task, parts: Sequence[bytes]) -> list[bytes]:
    """A task's input as tokens, the same for all its replicas."""
    return seal_pieces(task.input_key, frame_parts(parts))


def seal_pieces(key: bytes, data: bytes) -> list[bytes]:
    """Bytes of any length as tokens."""
    return [seal(key, data[at : at + TOKEN_BYTES]) for at in range(0, max(1, len(data)), TOKEN_BYTES)]


def sealed_size(size: int) -> int:
    """Bytes of the tokens that so many plain bytes become, rather more than less."""
    return size + (OVERHEAD_BYTES + 5) * (size // TOKEN_BYTES + 1)


def check_fits(task: Task, parts: Sequence[bytes], program_size: int) -> None:
    """Whether a task's input can be sent to a worker at all: in one push, with the program.

    Raises:
        LimitExceeded: it cannot; says what to do.
    """
    size = sum(map(len, parts)) + 4 * len(parts) + 7
    room = MAX_PUSH_BYTES - BESIDES_BYTES - sealed_size(program_size)
    if sealed_size(size) <= room:
        return
    most = max(0, room)
    advice = (
        "a smaller split_size, or split_by= where records span lines; of dictionaries and pairs a smaller "
        "items_per_task, unless a single item is as large"
        if task.phase == "map"
        else "more reducers, or a combiner, unless a single key's values are as large"
    )
    raise LimitExceeded(
        f"{describe(task)}: its input has {size / 1e6:.1f} MB, and a worker takes at most {most / 1e6:.1f} MB "
        f"for one task: choose {advice}",
        error_type="LimitExceeded",
    )


def batches(pairs: Sequence[tuple[Task, Replica]]) -> list[int]:
    """Borders of runs whose inputs together are about `PUSH_BYTES`; 0 and the end included."""
    borders = [0]
    size = 0
    for at, (task, _) in enumerate(pairs):
        if size and size + task.size > PUSH_BYTES:
            borders.append(at)
            size = 0
        size += task.size
    if pairs:
        borders.append(len(pairs))
    return borders


def open_result(verdict: m.TaskVerdict, result_key: bytes, tokens: Sequence[bytes], task: Task) -> list[bytes]:
    """A paid result's parts, when they are what was agreed on.

    Raises:
        TaskFailed: what was agreed on is that the program failed.
        Malformed, SealBroken: the bytes delivered are not the result that their worker committed to.
    """
    parts = unframe_parts(b"".join([unseal(result_key, token) for token in tokens]))
    if verdict.kind is Kind.OK:
        if result_commitment(parts) != verdict.commitment:
            raise Malformed("the result is not the one its worker committed to")
        return parts
    facts = decode_value(parts[0], room=0) if len(parts) == 1 and len(parts[0]) <= MAX_FACTS_BYTES else None
    if not isinstance(facts, dict) or verdict.kind is None:
        raise Malformed("a failure without its facts")
    agreed = ("limit",) if verdict.kind is Kind.LIMIT else ("type", "line")
    if failure_commitment(verdict.kind, *(str(facts.get(name, "")) for name in agreed)) != verdict.commitment:
        raise Malformed("the failure is not the one its worker committed to")
    error_type = printable(facts.get("type", ""))
    text = f"{describe(task)}: {error_type}: {printable(facts.get('message', ''))}"
    remote = printable(facts.get("traceback", ""))
    if remote:
        text += f"\n\nOn the worker:\n{remote}"
    if verdict.kind is Kind.LIMIT:
        raise LimitExceeded(text, error_type=error_type, remote_traceback=remote)
    raise TaskFailed(text, error_type=error_type, remote_traceback=remote)


def dispute_of(job_id: str, lease_id: str, result_key: bytes, tokens: Sequence[bytes]) -> m.Dispute | None:
    """What shows discovery that a result is not its worker's commitment: the first token that does not open, or, if all
    do, all of them. None: they are more than discovery takes."""
    shown = list(enumerate(tokens))
    for position, token in shown:
        try:
            unseal(result_key, token)
        except SealBroken:
            shown = [(position, token)]
            break
    digests = [hashlib.sha256(token).digest() for token in tokens]
    size = sum(len(token) for _, token in shown)
    most = route("discovery", "dispute").max_body_bytes
    if not tokens or size + 64 * len(tokens) + BESIDES_BYTES > most:
        return None
    proof = [m.ShownToken(position=position, token=token) for position, token in shown]
    return m.Dispute(job_id=job_id, lease_id=lease_id, digests=digests, tokens=proof)


def describe(task: Task) -> str:
    """The task for a person."""
    label = task.label if isinstance(task.label, str) else task.label()
    return label or f"{task.phase} task {task.number}"


def printable(thing: Any) -> str:
    """Text from a stranger for a terminal: no control characters but line ends, of a bearable length."""
    text = str(thing)[:TEXT_CHARACTERS]
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
