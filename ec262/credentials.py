"""Credentials: accounts and worker identities of this user, on disk.

One JSON file, 0600 in a 0700 directory, for all discovery services side by side. It is replaced whole (written beside,
synced, renamed), under a lock, because several workers of one machine start at once and must not make several accounts.
Secrets are never in a ``repr`` nor in a log.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ec262.config import home_directory, normalise_url
from ec262.errors import SetupError

log = logging.getLogger("ec262.credentials")

_FILE = "credentials.json"
_LOCK = "credentials.lock"
_VERSION = 1
_LOCK_TIMEOUT_S = 60.0
_MAX_FILE_BYTES = 4 * 1024 * 1024
_MOST_FORMER = 20


@dataclass(frozen=True, slots=True)
class Account:
    """An account's id, and the secret that proves it."""

    account_id: str
    secret: str = field(repr=False)


class CredentialStore:
    """The credentials file of one directory.

    Args:
        home: the directory; None: the user's (`config.home_directory`).
        environ: where ``EC262_ACCOUNT`` and ``EC262_SECRET`` are looked up; None: the process's.
        pause: waits so many seconds for a lock others hold. Under gevent give `gevent.sleep`: the holder may be another
            greenlet of the same thread.
    """

    def __init__(
        self,
        home: Path | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self.home = home_directory(self._environ) if home is None else home
        self.path = self.home / _FILE
        self._pause = pause

    def account(self, url: str) -> Account | None:
        """The account at the discovery service `url`: the environment's, else the stored one, else None.

        Raises:
            SetupError: the file cannot be used, or the environment names an account without its secret.
        """
        account_id, secret = self._environ.get("EC262_ACCOUNT", ""), self._environ.get("EC262_SECRET", "")
        if account_id and secret:
            return Account(account_id, secret)
        if account_id or secret:
            raise SetupError("EC262_ACCOUNT and EC262_SECRET belong together: set both or neither")
        return _account_in(self._read(), normalise_url(url))

    def ensure_account(self, url: str, create: Callable[[], Account]) -> Account:
        """The account at `url`; where there is none, the one that `create` makes, stored.

        Of several processes that ask at once, one creates and the others get the same.

        Raises:
            SetupError: the file cannot be used or written.
        """
        known = self.account(url)
        if known is not None:
            return known
        url = normalise_url(url)
        with self._locked():
            content = self._read()
            known = _account_in(content, url)
            if known is None:
                known = create()
                _put_account(content, url, known)
                self._write(content)
        return known

    def save_account(self, url: str, account: Account) -> None:
        """Stores an account made elsewhere, in place of the one there was."""
        with self._locked():
            content = self._read()
            _put_account(content, normalise_url(url), account)
            self._write(content)

    def accounts(self) -> dict[str, Account]:
        """All stored accounts, by the URL of their service."""
        content = self._read()
        found = {url: _account_in(content, url) for url in sorted(content["discoveries"])}
        return {url: account for url, account in found.items() if account is not None}

    def next_secret(self, url: str) -> str:
        """The secret that the account at `url` is to have next: stored before it is asked for, so that it is not lost.

        Asked again before `rotated` it is the same.

        Raises:
            SetupError: there is no stored account, or the file cannot be used.
        """
        url = normalise_url(url)
        with self._locked():
            content = self._read()
            if _account_in(content, url) is None:
                raise SetupError(f"there is no account at {url} in {self.path}")
            record = content["discoveries"][url]
            if not isinstance(record.get("next_secret"), str):
                record["next_secret"] = secrets.token_urlsafe(32)
                self._write(content)
            return str(record["next_secret"])

    def rotated(self, url: str) -> Account:
        """The account at `url` has its next secret from now on."""
        url = normalise_url(url)
        with self._locked():
            content = self._read()
            record = content["discoveries"][url]
            if "next_secret" in record:  # else `retire_account` of a worker that met the new key first has done this
                record["secret"] = record.pop("next_secret")
                self._write(content)
            return Account(record["account_id"], record["secret"])

    def retire_account(self, url: str, account: Account) -> bool:
        """Sets `account` aside, under ``former``, if it is the stored one: the service does not know it any more.

        Where a new key was asked for (`next_secret`), it is that the account has it already: then it is kept with that.

        Returns:
            False: it is the environment's, which nobody but the user can change.
        """
        if self._environ.get("EC262_ACCOUNT"):
            return False
        url = normalise_url(url)
        with self._locked():
            content = self._read()
            record = content["discoveries"].get(url, {})
            if _account_in(content, url) == account and "next_secret" in record:
                record["secret"] = record.pop("next_secret")
                self._write(content)
            elif _account_in(content, url) == account:
                former = {"account_id": record.pop("account_id"), "secret": record.pop("secret")}
                record["former"] = [*record.get("former", []), former][-_MOST_FORMER:]
                self._write(content)
        return True

    def worker_id(self, url: str, account_id: str, port: int) -> str:
        """The identity of the worker of that account on that port; made when first asked for."""
        url, name = normalise_url(url), f"{account_id}:{port}"
        with self._locked():
            content = self._read()
            workers = content["discoveries"].setdefault(url, {}).setdefault("workers", {})
            if not isinstance(workers.get(name), str):
                workers[name] = new_worker_id()
                self._write(content)
            return str(workers[name])

    def renew_worker_id(self, url: str, account_id: str, port: int) -> str:
        """A new identity for that worker: the service says that the old one is another account's."""
        url = normalise_url(url)
        with self._locked():
            content = self._read()
            made = new_worker_id()
            content["discoveries"].setdefault(url, {}).setdefault("workers", {})[f"{account_id}:{port}"] = made
            self._write(content)
        return made

    # --- the file ---

    def _read(self) -> dict[str, Any]:
        try:
            with open(self.path, "rb") as file:
                self._guard(file.fileno())
                text = file.read(_MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return {"version": _VERSION, "discoveries": {}}
        except OSError as reason:
            raise SetupError(f"{self.path} cannot be read: {reason.strerror}") from None
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        discoveries = content.get("discoveries") if isinstance(content, dict) else None
        if not isinstance(content, dict) or not isinstance(discoveries, dict) or content.get("version") != _VERSION:
            raise SetupError(
                f"{self.path} is damaged, or from another version of EC262; repair it, or move it away (its accounts "
                "and their credits are lost then)"
            )
        for url, record in discoveries.items():
            if not isinstance(record, dict) or not isinstance(record.setdefault("workers", {}), dict):
                raise SetupError(f"{self.path} is damaged at {url!r}; repair it, or move it away")
        return content

    def _guard(self, descriptor: int) -> None:
        """Others must not read secrets: closes our own file to them, and refuses a foreign one."""
        status = os.fstat(descriptor)
        if not stat.S_IMODE(status.st_mode) & 0o077:
            return
        if status.st_uid != os.geteuid():
            raise SetupError(f"{self.path} belongs to another user and others can read it; move it away")
        os.fchmod(descriptor, 0o600)
        log.warning("%s could be read by other users of this machine; closed it to them", self.path)

    def _write(self, content: dict[str, Any]) -> None:
        temporary = ""
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=".credentials-", dir=self.home)  # made 0600
            with open(descriptor, "w", encoding="ascii") as file:
                json.dump(content, file, indent=1, sort_keys=True)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            directory = os.open(self.home, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as reason:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise SetupError(f"{self.path} cannot be written: {reason.strerror}") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.home / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as reason:
            raise SetupError(
                f"{self.home} cannot be used for credentials: {reason.strerror}; set EC262_HOME to a directory of yours"
            ) from None
        try:
            status = os.stat(self.home)
            if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & 0o077:
                os.chmod(self.home, 0o700)
            give_up = time.monotonic() + _LOCK_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up:
                        raise SetupError(f"another process has held {self.home / _LOCK} for a minute") from None
                    self._pause(0.01 + secrets.randbelow(20) / 1000)
            yield
        finally:
            os.close(descriptor)  # and the lock with it


def new_worker_id() -> str:
    """A random worker id."""
    return uuid.uuid4().hex


def _account_in(content: dict[str, Any], url: str) -> Account | None:
    record = content["discoveries"].get(url, {})
    account_id, secret = record.get("account_id"), record.get("secret")
    return Account(account_id, secret) if isinstance(account_id, str) and isinstance(secret, str) else None


def _put_account(content: dict[str, Any], url: str, account: Account) -> None:
    record = content["discoveries"].setdefault(url, {"workers": {}})
    record.update(account_id=account.account_id, secret=account.secret)
