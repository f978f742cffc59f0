"""Dump: all that a Redis holds, at one instant, while it goes on; and back into one.

Redis gives a copy of itself to whoever asks as a replica does (``SYNC``): so this takes neither access to its files nor
a pause of it. It forks once, as for any snapshot.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import redis

from discovery.store.connection import TIMEOUT_S
from ec262.errors import SetupError

_PIECE = 1 << 20
_MARK_BYTES = 40
_PAGE = 1000
K = TypeVar("K")


def receive_dump(url: str, file: BinaryIO, progress: Callable[[int], object] = int) -> int:
    """Writes the dataset of the Redis at `url`, of one instant, in its own format (RDB); returns its size in bytes.

    Raises:
        SetupError: it gives none away. redis.RedisError, OSError: the connection broke.
    """
    pool: redis.ConnectionPool = redis.ConnectionPool.from_url(url, socket_timeout=2 * TIMEOUT_S)
    connection: Any = pool.make_connection()
    try:
        connection.connect()
        connection.send_command("REPLCONF", "capa", "eof")  # else it would leave a copy in a file of its own
        with contextlib.suppress(redis.ResponseError):
            connection.read_response()
        connection.send_command("SYNC")
        reader = _Reader(connection._sock)
        head = reader.line()
        while not head:  # sent while it forks
            head = reader.line()
        if not head.startswith(b"$"):
            raise SetupError(f"this Redis gives no copy of itself away (it answered {head[:200]!r}): use its own")
        mark = head[5:] if head.startswith(b"$EOF:") else b""
        pieces = reader.until(mark) if mark else reader.exactly(int(head[1:]))
        size = 0
        for piece in pieces:
            file.write(piece)
            size += len(piece)
            progress(size)
        return size
    finally:
        connection.disconnect()


class _Reader:
    """Bytes of a socket, past the client's own parser: what comes is no reply, and too large to be held."""

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self._held = b""

    def _more(self) -> bytes:
        piece: bytes = self._socket.recv(_PIECE)
        if not piece:
            raise SetupError("Redis closed the connection before its copy was whole; see its log")
        return piece

    def line(self) -> bytes:
        """A line, without its end."""
        while b"\n" not in self._held:
            self._held += self._more()
        line, _, self._held = self._held.partition(b"\n")
        return line.rstrip(b"\r")

    def exactly(self, size: int) -> Iterator[bytes]:
        """So many bytes."""
        while size:
            piece = (self._held or self._more())[:size]
            self._held = self._held[len(piece) :]
            size -= len(piece)
            yield piece

    def until(self, mark: bytes) -> Iterator[bytes]:
        """All up to a mark of random bytes."""
        held = self._held
        while (at := held.find(mark)) < 0:
            if len(held) > len(mark):
                yield held[: -len(mark)]
                held = held[-len(mark) :]
            held += self._more()
        yield held[:at]


def place_dump(dump: Path, directory: Path) -> None:
    """Makes `directory` one whose server begins with a dump: an append-only file that has only its preamble.

    Servers since Redis 7 make of it the directory of files that they have now.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(dump, directory / "appendonly.aof")
    (directory / "appendonly.aof").chmod(0o600)


def copy_dataset(source: redis.Redis, target: redis.Redis, progress: Callable[[int], object] = int) -> int:
    """Copies every key of one Redis to another, of whatever version; returns how many.

    For a `source` that nobody writes to. Raises `redis.RedisError`.
    """
    copied = 0
    for key in source.scan_iter(count=_PAGE):
        kind = source.type(key).decode()  # type: ignore[union-attr]
        _COPIES[kind](source, target, key)
        left_ms: Any = source.pttl(key)
        if left_ms > 0:
            target.pexpire(key, left_ms)
        copied += 1
        progress(copied)
    return copied


def _copy_string(source: Any, target: Any, key: bytes) -> None:
    target.set(key, source.get(key))


def _copy_hash(source: Any, target: Any, key: bytes) -> None:
    for page in _pages(source.hscan_iter(key, count=_PAGE)):
        target.hset(key, mapping=dict(page))


def _copy_set(source: Any, target: Any, key: bytes) -> None:
    for page in _pages(source.sscan_iter(key, count=_PAGE)):
        target.sadd(key, *page)


def _copy_sorted_set(source: Any, target: Any, key: bytes) -> None:
    for page in _pages(source.zscan_iter(key, count=_PAGE)):
        target.zadd(key, dict(page))


def _copy_list(source: Any, target: Any, key: bytes) -> None:
    for start in range(0, source.llen(key), _PAGE):
        target.rpush(key, *source.lrange(key, start, start + _PAGE - 1))


def _copy_stream(source: Any, target: Any, key: bytes) -> None:
    """With its entries' ids, and the last one it ever gave: the ledger's entries are known by them."""
    at = b"-"
    while page := source.xrange(key, at, "+", count=_PAGE):
        pipeline = target.pipeline(transaction=False)
        for entry, fields in page:
            pipeline.xadd(key, fields, id=entry)
        pipeline.execute()
        at = b"(" + page[-1][0]
    last = source.xinfo_stream(key)["last-generated-id"]
    if not target.exists(key):  # all of it is on disk
        target.xadd(key, {"m": b""}, id=last)
        target.xtrim(key, maxlen=0, approximate=False)
    target.execute_command("XSETID", key, last)


_COPIES: dict[str, Callable[[Any, Any, bytes], None]] = {
    "string": _copy_string,
    "hash": _copy_hash,
    "set": _copy_set,
    "zset": _copy_sorted_set,
    "list": _copy_list,
    "stream": _copy_stream,
}


def _pages(items: Iterator[K]) -> Iterator[list[K]]:
    while page := list(itertools.islice(items, _PAGE)):
        yield page
