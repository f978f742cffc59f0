"""The connection to Redis: what the client does, but for how it writes commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis._parsers import Encoder
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.exceptions import NoScriptError
from redis.retry import Retry

TIMEOUT_S = 30

Read = tuple[Script | str, Sequence[Any]]
"""A script or a command that changes nothing, and its arguments."""


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
            data = word if type(word) is bytes else word.encode() if type(word) is str else self._encode(word)
            pieces += (b"$%d\r\n" % len(data), data, b"\r\n")
        return [b"".join(pieces)]


def connect(url: str) -> redis.Redis:
    """A client of the Redis at `url`; raises ValueError where that is none.

    What fails is not repeated here: whether a command whose answer got lost was carried out only its caller can find
    out, and commits, idempotency keys and sweeps are made for that.
    """
    return redis.Redis(connection_pool=_pool(url))


def reconnect(client: redis.Redis, url: str) -> None:
    """Has a client, and all scripts and pipelines made of it, go on at another URL."""
    before, client.connection_pool = client.connection_pool, _pool(url)
    # Those in use may have found the way already: where the address is the same, they were opened anew.
    before.disconnect(inuse_connections=False)


def together(client: redis.Redis, *reads: Read) -> list[Any]:
    """The answers to several reads, asked for in one go: each question waits behind the commits of others."""
    try:
        return _together(client, reads)
    except NoScriptError:
        for what, _ in reads:
            if isinstance(what, Script):
                client.script_load(what.script)
        return _together(client, reads)


def _together(client: redis.Redis, reads: Sequence[Read]) -> list[Any]:
    # The client's own way to have scripts in a pipeline asks first whether they are known.
    pipeline = client.pipeline(transaction=False)
    for what, arguments in reads:
        if isinstance(what, Script):
            pipeline.evalsha(what.sha, 0, *arguments)
        else:
            pipeline.execute_command(what, *arguments)  # type: ignore[no-untyped-call]
    return pipeline.execute()


def _pool(url: str) -> redis.ConnectionPool:
    # Retries are set to none by hand: the client's own default has changed between its versions.
    return redis.ConnectionPool.from_url(
        url, socket_timeout=TIMEOUT_S, command_packer=Packer(), retry=Retry(NoBackoff(), 0)
    )
