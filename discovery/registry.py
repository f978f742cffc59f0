"""Registry: who is who. Accounts and their secrets, workers and their presence in the pool."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid

from discovery.keyring import Keyring
from discovery.records import class_of, set_of
from discovery.settings import Settings
from discovery.store.store import Beat, Registered, Store
from ec262.protocol import keys
from ec262.protocol import messages as m

KEY_VERSION = 1
"""Version of worker keys; a future rotation counts it up."""


class Registry:
    """Makes and checks accounts, lets workers in and out."""

    def __init__(self, store: Store, keyring: Keyring, settings: Settings) -> None:
        self._store = store
        self._keyring = keyring
        self._settings = settings

    def create_account(self, name: str) -> m.AccountCreated:
        """A new account with starting credits."""
        secret = secrets.token_urlsafe(32)
        credits = self._settings.starting_credits
        account_id = uuid.uuid4().hex
        while not self._store.create_account(account_id, _hash(account_id, secret), name, credits):
            account_id = uuid.uuid4().hex
        return m.AccountCreated(account_id=account_id, secret=secret, balance=credits)

    def authentic(self, account_id: str, secret: str) -> bool:
        """Whether the secret is the account's."""
        stored = self._store.secret_hash(account_id)
        made = _hash(account_id, secret)
        return hmac.compare_digest(stored if stored is not None else bytes(32), made) and stored is not None

    def account_state(self, account_id: str) -> m.AccountState:
        """What an account has."""
        record = self._store.account(account_id)
        return m.AccountState(
            account_id=account_id,
            name=record.name,
            balance=record.balance,
            escrow=record.escrow,
            earned=record.earned,
            spent=record.spent,
            workers=record.workers,
        )

    def register(self, account_id: str, address: str, wanted: m.RegisterWorker) -> Registered | None:
        """Puts a worker in the pool at the address it came from; None: the id is another account's."""
        return self._store.register(
            worker_id=wanted.worker_id,
            account_id=account_id,
            address=address,
            port=wanted.port,
            slots=wanted.slots,
            capacity=wanted.slots * self._settings.prefetch,
            boot_id=wanted.boot_id,
            worker_class=class_of(wanted.lane, wanted.python, wanted.capabilities),
            capabilities=set_of(wanted.capabilities),
            ttl_ms=int(self._settings.ttl_s * 1000),
            layers=wanted.layers,
        )

    def registered(self, wanted: m.RegisterWorker, done: Registered) -> m.WorkerRegistered:
        """The answer to a registration."""
        return m.WorkerRegistered(
            worker_id=wanted.worker_id,
            worker_key=self.worker_key(wanted.worker_id),
            epoch=done.epoch,
            heartbeat_s=self._settings.heartbeat_s,
            ttl_s=self._settings.ttl_s,
            capacity=wanted.slots * self._settings.prefetch,
            server_time_s=done.now_ms / 1000,
        )

    def heartbeat(self, account_id: str, worker_id: str, boot_id: str) -> Beat | None:
        """Prolongs a registration; None: register again."""
        return self._store.heartbeat(worker_id, account_id, boot_id, int(self._settings.ttl_s * 1000))

    def leave(self, account_id: str, worker_id: str) -> bool:
        """Takes a worker out of the pool; False: not registered."""
        return self._store.leave(worker_id, account_id)

    def worker_key(self, worker_id: str) -> bytes:
        """The key shared with a worker."""
        return keys.worker_key(self._keyring.master, worker_id, KEY_VERSION)


def _hash(account_id: str, secret: str) -> bytes:
    # Secrets are 256 random bits made here: one SHA-256 is enough, a slow hash would only slow every request down.
    return hashlib.sha256(f"ec262/v1/secret\0{account_id}\0{secret}".encode("utf-8", "surrogatepass")).digest()
