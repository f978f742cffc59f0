"""The connection to Redis: what the client does, but for how it writes commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from redis._parsers import Encoder

TIMEOUT_S = 30


class Packer:
    """Writes a command as one byte string.

    The client writes it in pieces of 6 KB and sends each with a call of its own: for a commit of a thousand tasks these
    calls took longer than all that was decided.
    """

    def __init__(self) -> None:
        self._encode: Callable[[Any], bytes] = Encoder("utf-8", "strict", False).encode  # type: ignore[no-untyped-call]

    def pack(self, *arguments: Any) -> list[bytes]:
        """The command in the protocol's form (RESP); its name may be two words."""
        name = arguments[0].encode() if isinstance(arguments[0], str) else arguments[0]
        words = [*name.split(), *arguments[1:]]
        pieces = [b"*%d\r\n" % len(words)]
        for word in words:
            data = word if type(word) is bytes else self._encode(word)
            pieces += (b"$%d\r\n" % len(data), data, b"\r\n")
        return [b"".join(pieces)]


def connect(url: str) -> redis.Redis:
    """A client of the Redis at `url`; raises ValueError where that is none."""
    pool: redis.ConnectionPool = redis.ConnectionPool.from_url(url, socket_timeout=TIMEOUT_S, command_packer=Packer())
    return redis.Redis(connection_pool=pool)
