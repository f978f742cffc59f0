"""Operator: the store of a service, for commands that whoever runs it gives beside it.

There is no operator's key and no operator's route: who may read the data directory or connect to Redis is the operator.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from discovery.archive.files import LEDGER, segments
from discovery.store.configuration import FILE, told_url
from discovery.store.server import start_server
from discovery.store.store import Store
from ec262.errors import SetupError


@contextmanager
def store_of(
    redis_url: str | None, data_dir: Path | None, archive: Path | None = None
) -> Iterator[tuple[Store, Path | None]]:
    """The store of a service, and its archive; the embedded one is used as it runs, or started for as long as it takes.

    Args:
        redis_url: where the service's Redis is; None: it is the embedded one of `data_dir`.
        archive: the segments' directory, where it is neither in `data_dir` nor where Redis says.

    Raises:
        SetupError: there is no such data directory or URL, or the embedded store does not start.
    """
    with ExitStack() as stack:
        url = redis_url
        if url is None:
            if data_dir is None or not (data_dir / FILE).is_file():
                raise SetupError(f"{data_dir} is no directory of a discovery service that has a store of its own")
            url = _running(data_dir) or stack.enter_context(start_server(data_dir)).url
        if archive is None and data_dir is not None and segments(data_dir / LEDGER):
            archive = data_dir / LEDGER
        try:
            store = Store(url)
        except ValueError as reason:
            raise SetupError(f"{url}: {reason}; it takes redis://HOST:PORT/DB or unix:///PATH") from None
        stack.callback(store.close)
        yield store, archive


def _running(data_dir: Path) -> str | None:
    """Where the embedded store of a data directory listens; None: it does not run."""
    try:
        lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
    return told_url(data_dir)
