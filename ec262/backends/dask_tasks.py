"""What Dask's workers run for the Dask backend. They import it by name: the cluster's machines need EC262 installed.

A result is *facts*, small and always fetched, and parts. What a program raises is a fact, no exception: Dask would try
it again, and it would fail again.
"""

# mypy: allow-untyped-calls
# Much of Dask has no annotations.

from __future__ import annotations

import contextvars
import hashlib
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Final

from cloudpickle import cloudpickle
from distributed import Queue, get_client, get_worker

import ec262
from ec262.mapreduce.program import Program, execute, split_counters
from ec262.sandbox.child import explain
from ec262.sandbox.unpack import Loader

VERSION: Final = ec262.__version__
OK, FAILED, UNREAD, AGAIN = "ok", "failed", "unread", "again"
"""States: done; the program raised; the input could not be loaded on that machine; would have been a second time."""
_MOST_PROGRAMS: Final = 4
_TICKET_S: Final = 0.05

Facts = dict[str, Any]
"""``state``, ``worker`` (address), ``error`` (explained), ``loaded`` and ``made`` (bytes), and of a shuffled map task
``counts`` and ``filled`` (partitions with something in them, a bit each)."""
Source = bytes | list[bytes]
"""What loads a task's parts, pickled, or the parts."""

_programs: dict[str, tuple[Loader, Callable[[bytes], Program]]] = {}


def same(thing: bytes) -> bytes:
    """The packed program as a result of Dask's, computed anew when a worker is lost with it."""
    return thing


def run_task(packed: bytes, source: Source, once: str = "") -> tuple[Facts, list[bytes]]:
    """Computes one task.

    Args:
        packed: the program.
        source: its input.
        once: a name for the task if it must not run twice, else empty.
    """
    facts: Facts = {"state": OK, "worker": get_worker().address, "error": b"", "loaded": 0, "made": 0}
    if once and not _first_time(once):
        return {**facts, "state": AGAIN}, []
    try:
        parts = source if isinstance(source, list) else pickle.loads(source)()  # noqa: S301 - as Dask's own tasks
    except Exception:
        return {**facts, "state": UNREAD}, []
    facts["loaded"] = sum(map(len, parts))
    loader, load = _loader_of(packed)
    try:
        # A copy of the context keeps what a task does to decimal's from the next.
        made = contextvars.copy_context().run(lambda: execute(load(b""), parts))
    except BaseException as reason:
        loader.remember_lines()
        return {**facts, "state": FAILED, "error": explain(reason)}, []
    facts["made"] = sum(map(len, made))
    return facts, made


def run_map(packed: bytes, source: Source, borders: Sequence[int]) -> list[Any]:
    """Computes a map task whose result stays on the cluster.

    Args:
        borders: of the groups that the partitions are put into, first and last included.

    Returns:
        The parts of each group (None if there is no result), and the facts.
    """
    facts, made = run_task(packed, source)
    groups = len(borders) - 1
    if facts["state"] != OK:
        return [*[None] * groups, facts]
    parts, counts = split_counters(made, borders[-1])
    facts["counts"] = counts
    facts["filled"] = sum(1 << at for at, part in enumerate(parts) if part)
    return [*(parts[borders[at] : borders[at + 1]] for at in range(groups)), facts]


def piece(made: list[Any], at: int) -> Any:
    """One item of `run_map`'s result."""
    return made[at]


def run_reduces(
    packed: bytes, headers: Sequence[bytes], pieces: Sequence[list[bytes] | None]
) -> list[tuple[Facts, list[bytes]] | None]:
    """Reduces the partitions of a group.

    Args:
        headers: of the reduce tasks, one a partition.
        pieces: the group's parts of every map task, in order.

    Returns:
        The result of each partition, None for one that is empty.

    Raises:
        RuntimeError: a map task that had a result once has none now.
    """
    made: list[tuple[Facts, list[bytes]] | None] = []
    for at, header in enumerate(headers):
        column = []
        for each in pieces:
            if each is None:
                raise RuntimeError("a map task whose result was lost did not give it again")
            if each[at]:
                column.append(each[at])
        made.append(run_task(packed, [header, *column]) if column else None)
    return made


def _loader_of(packed: bytes) -> tuple[Loader, Callable[[bytes], Program]]:
    digest = hashlib.sha256(packed).hexdigest()
    known = _programs.get(digest)
    if known is None:
        while len(_programs) >= _MOST_PROGRAMS:
            _programs.pop(next(iter(_programs)), None)
        loader = Loader(None, cloudpickle)
        known = _programs[digest] = (loader, loader.prepare(packed))
    return known


def _first_time(name: str) -> bool:
    """Whether nobody asked this before: the place of a queue for one can be taken once in a cluster."""
    try:
        Queue(name, maxsize=1, client=get_client()).put(1, timeout=_TICKET_S)
    except TimeoutError:
        return False
    return True
