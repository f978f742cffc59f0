"""Splitter: input to map tasks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ec262.errors import ProgramError
from ec262.protocol.canonical import Pair, encode_pairs, sort_pairs

TASKS_BY_ITEM = 1000
"""Up to so many items make a task each; more are put together into about so many tasks."""
SPLIT_BYTES = 1024 * 1024
"""A task of several items is not made larger than this."""


def split_items(data: Mapping[Any, Any] | Iterable[Pair], items_per_task: int | None = None) -> list[bytes]:
    """The input of each map task, as one part of canonical pairs.

    Args:
        data: a dictionary, taken in key order, or an iterable of (key, value) pairs, taken in its own.
        items_per_task: how many items one task maps. Without it every item is a task while there are no more than
            `TASKS_BY_ITEM`; beyond that items are put together, up to `SPLIT_BYTES` a task: each task costs a credit.

    Raises:
        ValueNotPortable: a key or value cannot travel.
        ProgramError: the data are neither a dictionary nor pairs.
    """
    if items_per_task is not None and items_per_task < 1:
        raise ProgramError("items_per_task has to be 1 or more")
    pairs = sort_pairs(data.items()) if isinstance(data, Mapping) else _pairs(data)
    if items_per_task is None and len(pairs) > TASKS_BY_ITEM:
        return _split_by_size(pairs, -(-len(pairs) // TASKS_BY_ITEM))
    step = items_per_task or 1
    return [encode_pairs(pairs[at : at + step], where="data") for at in range(0, len(pairs), step)]


def _split_by_size(pairs: list[Pair], step: int) -> list[bytes]:
    """Groups of up to `step` pairs, halved until they fit `SPLIT_BYTES` or hold one pair."""
    made: list[bytes] = []
    waiting = [pairs[at : at + step] for at in range(0, len(pairs), step)]
    waiting.reverse()
    while waiting:
        group = waiting.pop()
        part = encode_pairs(group, where="data")
        if len(part) > SPLIT_BYTES and len(group) > 1:
            middle = len(group) // 2
            waiting += [group[middle:], group[:middle]]
        else:
            made.append(part)
    return made


def _pairs(data: Iterable[Pair]) -> list[Pair]:
    try:
        items = iter(data)
    except TypeError:
        raise ProgramError(f"data has to be a dictionary or (key, value) pairs, not a {type(data).__name__}") from None
    pairs = []
    for item in items:
        try:
            key, value = item
        except (TypeError, ValueError):
            raise ProgramError(f"data: {item!r:.80} is not a (key, value) pair") from None
        pairs.append((key, value))
    return pairs
