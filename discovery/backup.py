"""Backup: state, ledger and keys of a service of one instant, copied while it runs; and back.

What has to fit together is Redis and the ledger's archive. Redis is copied at one instant; blocks that went to disk
after that are left out of the copied archive. How far the copied Redis knows the archive, it is asked itself: a server
is started on the copy, which then is also audited as `ec262 ledger verify` does it. The keyring is copied last, so that
it has every key that a copied task needs.

::

    BACKUP/
      state.rdb        everything in Redis
      ledger/          segments; the last one ends where Redis was
      keyring.json     secrets: whoever has this file has the workers' keys
      backup.json      what was copied, when, and the SHA-256 of each file
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from discovery.archive.files import LEDGER, ArchiveFault, Walk, first_number, segments
from discovery.archive.writer import sync
from discovery.ledger import Audit, verify
from discovery.operator import store_of
from discovery.store.books import Head
from discovery.store.connection import connect
from discovery.store.dump import copy_dataset, place_dump, receive_dump
from discovery.store.server import start_server
from discovery.store.store import Store
from ec262 import __version__
from ec262.errors import EC262Error, SetupError

EXAMPLES = """\
examples:
  ec262 discovery backup --data-dir /var/lib/ec262 /backup/$(date +%F)        while the service runs, or not
  ec262 discovery backup --redis redis://db:6379/0 --data-dir /var/lib/ec262 /backup/today
  ec262 discovery restore /backup/today --data-dir /var/lib/ec262-again       then start discovery on that
  ec262 discovery restore /backup/today --data-dir DIR --redis URL            into an empty Redis of your own

A backup has the service's keys in it: keep it as safe as the service itself.

exit codes: 0 done, and the books of the copy are clean; 1 not done, and nothing is left of it; 2 wrong flags
"""
_ABOUT_BACKUP = "Copies state, ledger and keys of a service of one instant, while it runs, and audits the copy."
_ABOUT_RESTORE = "Makes a data directory of a backup, fills a Redis if the service has one of its own, and audits both."
STATE, KEYRING, MANIFEST = "state.rdb", "keyring.json", "backup.json"
FORMAT = 1
_PROGRESS_S = 0.5
Say = Callable[[str], object]


def parser() -> argparse.ArgumentParser:
    """The flags of ``ec262 discovery backup`` and ``ec262 discovery restore``."""
    made = argparse.ArgumentParser(
        prog="ec262 discovery", description="Copies a whole service, while it runs; and back.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = made.add_subparsers(title="actions", metavar="ACTION", required=True)
    backup = actions.add_parser("backup", help="copy state, ledger and keys of a service", description=_ABOUT_BACKUP)
    backup.add_argument("target", metavar="BACKUP", type=Path, help="the directory to make; there must be none yet")
    backup.add_argument("--archive", metavar="DIR", type=Path, help="the segments' directory (default: as Redis says)")
    backup.set_defaults(run=_run_backup)
    restore = actions.add_parser("restore", help="make a service's data of a backup", description=_ABOUT_RESTORE)
    restore.add_argument("source", metavar="BACKUP", type=Path, help="a directory that `backup` made")
    restore.set_defaults(run=_run_restore)
    for action, default in ((backup, os.environ.get("EC262_REDIS") or None), (restore, None)):
        action.add_argument("--redis", metavar="URL", default=default, help="the service's own Redis, where it has one")
        action.add_argument("--data-dir", metavar="DIR", type=Path, required=True, help="the service's data directory")
        action.add_argument(
            "--server", metavar="FILE", type=Path,
            help="the Redis or Valkey server to read the copy with (default: the one that comes with EC262); a service "
            "with a newer Redis of its own needs that one",
        )  # fmt: skip
    return made


def main(arguments: Sequence[str]) -> int:
    """Runs one of the two; returns the exit code."""
    flags = parser().parse_args(arguments)
    try:
        flags.run(flags)
    except (EC262Error, OSError, redis.RedisError) as reason:
        print(f"ec262 discovery: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ec262 discovery: interrupted; nothing is left of it", file=sys.stderr)
        return 130
    return 0


def _run_backup(flags: argparse.Namespace) -> None:
    with store_of(flags.redis, flags.data_dir, flags.archive) as (store, archive):
        audit = backup_to(flags.target, store, flags.data_dir, archive, server=flags.server, say=_say)
    print(f"{flags.target}: {_told(audit)}")


def _run_restore(flags: argparse.Namespace) -> None:
    audit = restore_from(flags.source, flags.data_dir, flags.redis, server=flags.server, say=_say)
    print(f"{flags.data_dir}: {_told(audit)}")


def backup_to(
    target: Path,
    store: Store,
    data_dir: Path,
    archive: Path | None = None,
    *,
    server: Path | None = None,
    say: Say = str,
) -> Audit:
    """Copies a service of one instant, while it runs, and audits the copy.

    Args:
        target: the directory to make. It appears when it is whole.
        archive: where the segments are; None: where Redis says.

    Raises:
        SetupError: there is something already, or the copy's books are not clean. ArchiveFault: the archive is not what
        Redis knows. redis.RedisError, OSError.
    """
    with _appearing(target) as partial:
        say("copying Redis")
        with open(partial / STATE, "xb") as file:
            receive_dump(store.url, file, _progress(say, "copying Redis", "MB", 1e6))
        say("reading the copy")
        with _served(partial / STATE, partial, server) as (copied, _):
            head = copied.books.head()
            if head.archive:
                say("copying the ledger")
                _copy_archive(archive or Path(head.where), partial / LEDGER, head)
            shutil.copyfile(data_dir / KEYRING, partial / KEYRING)
            audit = _audited(copied, partial / LEDGER if head.archive else None, say)
        for path in partial.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "anchor": f"{head.number}:{head.digest.hex()}",
            "movements": audit.movements,
            "minted": audit.minted,
            "files": {str(path.relative_to(partial)): _digest(path) for path in _files(partial)},
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        (partial / MANIFEST).chmod(0o600)
        for path in (*_files(partial), partial):
            sync(path)
    return audit


def restore_from(
    source: Path, data_dir: Path, redis_url: str | None = None, *, server: Path | None = None, say: Say = str
) -> Audit:
    """Makes a data directory of a backup, and fills a Redis where the service has one of its own; audits both.

    Args:
        data_dir: the directory to make; there must be none yet, or an empty one.
        redis_url: an empty Redis; None: the embedded one of `data_dir`.

    Raises:
        SetupError: the backup is damaged, there is something already, or the books are not clean.
    """
    say("checking the backup")
    _check(source)
    with _appearing(data_dir) as partial:
        shutil.copyfile(source / KEYRING, partial / KEYRING)
        (partial / KEYRING).chmod(0o600)
        ledger = partial / LEDGER if (source / LEDGER).is_dir() else None
        if ledger is not None:
            shutil.copytree(source / LEDGER, ledger)
            ledger.chmod(0o700)
        if redis_url is None:
            place_dump(source / STATE, partial)
            with start_server(partial, binary=server) as running:
                return _audit_of(running.url, ledger, say)
        with _served(source / STATE, partial, server) as (_, url):
            _fill(url, redis_url, say)
        return _audit_of(redis_url, ledger, say)


def _fill(source_url: str, target_url: str, say: Say) -> None:
    """Copies a dataset into an empty Redis; leaves it empty where that does not come to its end."""
    with connect_to(source_url) as source, connect_to(target_url) as target:
        if target.dbsize():
            raise SetupError("this Redis is not empty: restore into one that is, or flush it first")
        try:
            copy_dataset(source, target, _progress(say, "filling Redis", "keys", 1))
        except BaseException:
            target.flushdb()
            raise


def _audit_of(url: str, ledger: Path | None, say: Say) -> Audit:
    store = Store(url)
    try:
        return _audited(store, ledger, say)
    finally:
        store.close()


def _audited(store: Store, ledger: Path | None, say: Say) -> Audit:
    """Raises SetupError where the books are not clean."""
    say("auditing")
    found = segments(ledger) if ledger is not None else []
    # Old segments may have been moved away; then what is there is checked.
    audit = verify(store, ledger, quick=bool(found) and first_number(found[0]) > 1)
    if audit.faults:
        raise SetupError("the books are not clean: " + "; ".join(audit.faults[:5]))
    return audit


def _copy_archive(source: Path, target: Path, head: Head) -> None:
    """Copies segments up to the block that `head` names."""
    found = [path for path in segments(source) if first_number(path) <= max(1, head.number)]
    if not found:
        raise ArchiveFault(f"{source} has not the ledger up to block {head.number}; name its directory with --archive")
    walk = Walk(source, found[-1])
    try:
        frame = walk.step()
        while frame is not None and walk.number < head.number:
            frame = walk.step()
        end = walk.position
    finally:
        walk.close()
    if walk.number != head.number or (head.number and walk.digest != head.digest):
        raise ArchiveFault(f"{source} is not the archive of this Redis: block {head.number} is another one, or missing")
    target.mkdir(mode=0o700)
    for path in found:
        shutil.copyfile(path, target / path.name)
    os.truncate(target / found[-1].name, end)


@contextlib.contextmanager
def _served(state: Path, beside: Path, server: Path | None) -> Iterator[tuple[Store, str]]:
    """A server on a copy of a dump, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=beside) as directory:
        place_dump(state, Path(directory))
        with start_server(Path(directory), fsync="no", binary=server) as running:
            store = Store(running.url)
            try:
                yield store, running.url
            finally:
                store.close()


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A directory beside `target` that becomes it when all went well, and is removed when not."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SetupError(f"{target} exists already; name a new directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield partial
        os.replace(partial, target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def connect_to(url: str) -> Iterator[redis.Redis]:
    """A client, closed afterwards."""
    try:
        client = connect(url)
    except ValueError as reason:
        raise SetupError(f"{url}: {reason}; it takes redis://HOST:PORT/DB or unix:///PATH") from None
    try:
        yield client
    finally:
        client.close()


def _check(source: Path) -> None:
    """Raises SetupError where a backup is not as it was made."""
    try:
        manifest: dict[str, Any] = json.loads((source / MANIFEST).read_text())
        files = dict(manifest["files"])
        known = manifest["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        raise SetupError(f"{source} is no backup, or its {MANIFEST} is damaged") from None
    if not known:
        raise SetupError(f"{source} was made by EC262 {manifest.get('version')}; restore it with that version")
    there = {str(path.relative_to(source)) for path in _files(source)} - {MANIFEST}
    if there != set(files):
        raise SetupError(f"{source}: missing or added: {', '.join(sorted(there ^ set(files))[:5])}")
    for name, digest in files.items():
        if _digest(source / name) != digest:
            raise SetupError(f"{source}: {name} is not what was copied")


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _told(audit: Audit) -> str:
    return f"{audit.movements} movements, {audit.minted} credits minted; the books are clean"


def _say(text: str) -> None:
    end = "\n" if not sys.stderr.isatty() else ""
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{start}{text} …", end=end, file=sys.stderr, flush=True)


def _progress(say: Say, what: str, unit: str, scale: float) -> Callable[[int], None]:
    """Says now and then how far it is."""
    said = time.monotonic()

    def tell(done: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _PROGRESS_S:
            said = time.monotonic()
            say(f"{what}: {done / scale:.0f} {unit}")

    return tell
