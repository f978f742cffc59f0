"""Splits: pieces of the input, one a map task. Pure; what reads files is in `ec262.storage`.

A split says what it is (`spec`, which stands in the task's header) and gives its data parts (`load`). Splits can be
pickled: a backend may have its own workers load them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, ClassVar, Protocol

from ec262.errors import ProgramError
from ec262.mapreduce.records import Reader
from ec262.protocol.canonical import Pair, decode_pairs, encode_pairs, encode_value, sort_pairs

TASKS_BY_ITEM = 1000
"""Up to so many items make a task each; more are put together into about so many tasks."""
SPLIT_BYTES = 1024 * 1024
"""A task of several items is not made larger than this."""


class Split(Protocol):
    """A piece of the input.

    Attributes:
        anywhere: whether another process (of this machine, or of one that sees the same files) can load it, so that
            the split itself can be sent rather than its data.
    """

    @property
    def anywhere(self) -> bool: ...

    def spec(self) -> dict[str, Any]:
        """What its parts are: ``{"format": "pairs" | "blocks" | "records", ...}``."""
        ...

    def load(self) -> list[bytes]:
        """Its data parts; may read files, and may be called again."""
        ...

    def label(self) -> str:
        """The split for a person, such as ``"book.txt, from byte 4194304"``."""
        ...

    def tag(self) -> bytes:
        """Up to 16 bytes that tell it from a split of other input, for checkpoints."""
        ...

    def is_empty(self) -> bool:
        """Whether it has no records, as far as that is known without reading."""
        ...


@dataclass(frozen=True, slots=True)
class PairsSplit:
    """Canonical pairs."""

    data: bytes
    anywhere: ClassVar[bool] = False

    def spec(self) -> dict[str, Any]:
        """See `Split`."""
        return {"format": "pairs"}

    def load(self) -> list[bytes]:
        """See `Split`."""
        return [self.data]

    def label(self) -> str:
        """See `Split`."""
        keys = [key for key, _ in decode_pairs(self.data)]
        if len(keys) == 1:
            return f"key {keys[0]!r:.80}"
        return f"{len(keys)} items from key {keys[0]!r:.80}" if keys else "no items"

    def tag(self) -> bytes:
        """See `Split`."""
        return hashlib.sha256(self.data).digest()[:16]

    def is_empty(self) -> bool:
        """See `Split`."""
        return False


@dataclass(frozen=True, slots=True)
class BlocksSplit:
    """The result of an earlier stage's reduce task: `read` gives its part."""

    number: int
    read: Callable[[], bytes]
    anywhere: ClassVar[bool] = False

    def spec(self) -> dict[str, Any]:
        """See `Split`."""
        return {"format": "blocks"}

    def load(self) -> list[bytes]:
        """See `Split`."""
        return [self.read()]

    def label(self) -> str:
        """See `Split`."""
        return f"reduce task {self.number} of the stage before"

    def tag(self) -> bytes:
        """See `Split`."""
        return b""

    def is_empty(self) -> bool:
        """See `Split`."""
        return False


@dataclass(frozen=True, slots=True)
class RecordsSplit:
    """A piece of a file that was read already: `data` begins at byte `offset` of it."""

    data: bytes
    offset: int
    name: str
    reader: Reader
    anywhere: ClassVar[bool] = False

    def spec(self) -> dict[str, Any]:
        """See `Split`."""
        return {"format": "records", "name": self.name, "reader": self.reader.to_wire()}

    def load(self) -> list[bytes]:
        """See `Split`."""
        return [self.data, encode_value(self.offset)]

    def label(self) -> str:
        """See `Split`."""
        return f"{self.name}, from byte {self.offset}"

    def tag(self) -> bytes:
        """See `Split`."""
        return hashlib.sha256(self.data).digest()[:16]

    def is_empty(self) -> bool:
        """See `Split`."""
        return not self.data and self.reader.kind != "whole"


def split_items(data: Mapping[Any, Any] | Iterable[Pair], items_per_task: int | None = None) -> Iterator[bytes]:
    """The input of each map task, as one part of canonical pairs; the data are taken as tasks are wanted.

    Args:
        data: a dictionary, taken in key order, or an iterable of (key, value) pairs, taken in its own.
        items_per_task: how many items one task maps. Without it every item is a task while there are no more than
            `TASKS_BY_ITEM`; beyond that items are put together, up to `SPLIT_BYTES` a task: each task costs a credit.
            Of an iterable that does not say how many it has, so many items are read ahead to find out.

    Raises:
        ValueNotPortable: a key or value cannot travel.
        ProgramError: the data are neither a dictionary nor pairs.
    """
    if items_per_task is not None and items_per_task < 1:
        raise ProgramError("items_per_task has to be 1 or more")
    pairs = iter(sort_pairs(data.items())) if isinstance(data, Mapping) else _pairs(data)
    if items_per_task is None:
        ahead = list(islice(pairs, TASKS_BY_ITEM + 1))
        if len(ahead) > TASKS_BY_ITEM:
            total = len(data) if isinstance(data, Sized) else TASKS_BY_ITEM * TASKS_BY_ITEM
            return _split_by_size(chain(ahead, pairs), -(-total // TASKS_BY_ITEM))
        pairs = iter(ahead)
    return _split_by_count(pairs, items_per_task or 1)


def _split_by_count(pairs: Iterator[Pair], step: int) -> Iterator[bytes]:
    while group := list(islice(pairs, step)):
        yield encode_pairs(group, where="data")


def _split_by_size(pairs: Iterator[Pair], step: int) -> Iterator[bytes]:
    """Groups of up to `step` pairs, halved until they fit `SPLIT_BYTES` or hold one pair."""
    while group := list(islice(pairs, step)):
        waiting = [group]
        while waiting:
            group = waiting.pop()
            part = encode_pairs(group, where="data")
            if len(part) > SPLIT_BYTES and len(group) > 1:
                middle = len(group) // 2
                waiting += [group[middle:], group[:middle]]
            else:
                yield part


def _pairs(data: Iterable[Pair]) -> Iterator[Pair]:
    try:
        items = iter(data)
    except TypeError:
        raise ProgramError(f"data has to be a dictionary or (key, value) pairs, not a {type(data).__name__}") from None
    return map(_pair, items)


def _pair(item: Any) -> Pair:
    if isinstance(item, (str, bytes)):  # two characters look like a pair
        raise ProgramError(f"data: {item!r:.80} is not a (key, value) pair")
    try:
        key, value = item
    except (TypeError, ValueError):
        raise ProgramError(f"data: {item!r:.80} is not a (key, value) pair") from None
    return key, value
