"""Registry: who is who. Accounts and their secrets, workers and their presence in the pool."""

from __future__ import annotations

import functools
import hashlib
import hmac
import secrets
import uuid
from collections.abc import Sequence

import msgspec

from discovery.addresses import origins
from discovery.admission import IDS_A_WORKER, NOT_ADMITTED, Origin, invitation_id, limits_of, shown_name
from discovery.keyring import Keyring
from discovery.passes import sender_of, valid_until_ms
from discovery.reach import Reach
from discovery.records import Reached, class_of
from discovery.settings import Settings
from discovery.store.accounts import Accounts
from discovery.store.answers import Beat, NotAdmitted, Registered
from discovery.store.store import Most, Store
from ec262.errors import Malformed, ProblemError
from ec262.protocol import keys
from ec262.protocol import messages as m
from ec262.protocol.terms import ANYBODY

KEY_VERSION = 1
"""Version of worker keys; a future rotation counts it up."""

# Each bundle of tickets or receipts wants its worker's; whoever reads them here could read what they follow from.
_worker_key = functools.lru_cache(maxsize=1 << 13)(keys.worker_key)


class Registry:
    """Makes and checks accounts, lets workers in and out."""

    def __init__(self, store: Store, keyring: Keyring, settings: Settings, reach: Reach) -> None:
        self._store = store
        self._reach = reach
        self._keyring = keyring
        self._settings = settings

    def create_account(self, address: str, wanted: m.CreateAccount) -> m.AccountCreated:
        """A new account for whoever asks from an address, if it may have one; usually with starting credits.

        Raises:
            ProblemError: ``registration-closed``, ``invitation-refused``, ``too-many``.
            Malformed: a name that is not printable.
        """
        if not wanted.name.isprintable():
            raise Malformed("name: has to be printable, without control characters")
        mode = self._settings.registration
        if mode == "closed":
            raise ProblemError(403, "registration-closed", "ask whoever runs this service for an account")
        if mode == "invite" and not wanted.invitation:
            raise ProblemError(
                403, "invitation-refused", "accounts of this service are by invitation: ask whoever runs it for one"
            )
        limits = limits_of(address, self._settings)
        outcome, made = self._new_account(address, wanted.name, wanted.invitation, [] if wanted.invitation else limits)
        if outcome == "invitation" and mode == "open":  # here it only lifts limits, and may be another service's
            outcome, made = self._new_account(address, wanted.name, "", limits)
        if outcome == "invitation":
            raise ProblemError(403, "invitation-refused", "this invitation is used up, over, revoked, or was none")
        if made is None:
            raise ProblemError(
                *(429, "too-many"),
                "too many accounts were made from this address or its neighbourhood today: use the account that you "
                "have, ask whoever runs this service for an invitation, or try again tomorrow (UTC)",
            )
        return made

    def _new_account(
        self, address: str, name: str, invitation: str, limits: Sequence[Origin]
    ) -> tuple[str, m.AccountCreated | None]:
        return new_account(
            *(self._store.accounts, name, self._settings.starting_credits),
            network=origins(address)[1],
            bound=self._settings.gifts_bound and not invitation,  # for whom the operator vouches
            invitation=invitation,
            limits=limits,
        )

    def authentic(self, account_id: str, secret: str) -> tuple[bool, str]:
        """Whether the secret is the account's; and why the account is banned, empty: it is not."""
        stored, banned = self._store.accounts.secret(account_id)
        made = hash_of(account_id, secret)
        return hmac.compare_digest(stored if stored is not None else bytes(32), made) and stored is not None, banned

    def account_state(self, account_id: str) -> m.AccountState:
        """What an account has."""
        record = self._store.accounts.record(account_id)
        return m.AccountState(
            account_id=account_id,
            name=record.name,
            balance=record.balance,
            escrow=record.escrow,
            earned=record.earned,
            spent=record.spent,
            workers=record.workers,
            banned=record.banned,
            auditor=record.auditor,
            shown=record.shown,
        )

    def rename_account(self, account_id: str, wanted: m.RenameAccount) -> m.AccountState:
        """Gives the account another name.

        Raises:
            Malformed: a name that is not printable.
        """
        if not wanted.name.isprintable():
            raise Malformed("name: has to be printable, without control characters")
        self._store.accounts.rename(account_id, wanted.name)
        return self.account_state(account_id)

    def rotate_key(self, account_id: str, secret: str, wanted: m.RotateKey) -> m.KeyRotated:
        """Replaces the account's secret, if `secret` still is it.

        Raises:
            ProblemError: ``conflict``, it was replaced by another at the same time.
        """
        if not self._store.accounts.replace_secret(
            account_id, hash_of(account_id, secret), hash_of(account_id, wanted.secret)
        ):
            raise ProblemError(409, "conflict", "another call replaced this account's secret at the same time")
        return m.KeyRotated(account_id=account_id)

    def show_account(self, account_id: str, wanted: m.ShowAccount) -> m.AccountState:
        """Puts the account on the leaderboard under a name, or takes it off.

        Raises:
            Malformed: a name that cannot be shown.
        """
        self._store.accounts.show(account_id, shown_name(wanted.name))
        return self.account_state(account_id)

    def try_worker(self, address: str, wanted: m.RegisterWorker, *, unnamed: bool) -> Reached:
        """Whether the worker serves through the relay; tries to connect to it, where it leaves that open.

        Args:
            unnamed: as `Reach.of`.

        Raises:
            Malformed: it listens nowhere and does not want the relay.
            ProblemError: ``unreachable``: it wants no relay, and nobody could connect to it.
        """
        if not wanted.port and wanted.relay != "always":
            raise Malformed("port: 0 is for workers that serve through the relay alone")
        if wanted.relay == "always":
            return "must"
        if not wanted.relay:
            return "never"
        if self._reach.of(address, wanted.port, wanted.boot_id, unnamed=unnamed):
            return "may" if wanted.relay == "auto" else "never"
        if wanted.relay == "auto":
            return "must"
        raise ProblemError(
            *(403, "unreachable"),
            f"nobody can connect to this worker at {address}, port {wanted.port}: open the port in its firewall and "
            "forward it in its router, or let it serve through the relay (--relay auto)",
        )

    def register(self, account_id: str, address: str, wanted: m.RegisterWorker, relay: Reached = "never") -> Registered:
        """Puts a worker in the pool at the address it came from.

        Raises:
            ProblemError: ``forbidden`` (the id is another account's), ``too-many``, ``banned``.
        """
        most = self._settings.account_workers
        try:
            return self._store.register(
                worker_id=wanted.worker_id,
                account_id=account_id,
                address=address,
                port=wanted.port,
                slots=wanted.slots,
                capacity=wanted.slots * self._settings.prefetch,
                boot_id=wanted.boot_id,
                worker_class=class_of(wanted.lane, wanted.python, wanted.capabilities),
                capabilities=wanted.capabilities,
                ttl_ms=int(self._settings.ttl_s * 1000),
                layers=wanted.layers,
                ask=wanted.ask,
                platform=wanted.platform,
                terms="" if wanted.terms == ANYBODY else msgspec.json.encode(wanted.terms).decode(),
                willing=wanted.willing,
                near=origins(address)[1],
                most=Most(most, most * IDS_A_WORKER, self._settings.neighbourhood_workers),
                relay=relay,
            )
        except NotAdmitted as reason:
            raise ProblemError(*NOT_ADMITTED[reason.what]) from None

    def registered(self, wanted: m.RegisterWorker, done: Registered, relay: Reached = "never") -> m.WorkerRegistered:
        """The answer to a registration."""
        return m.WorkerRegistered(
            worker_id=wanted.worker_id,
            worker_key=self.worker_key(wanted.worker_id),
            epoch=done.epoch,
            heartbeat_s=self._settings.heartbeat_s,
            ttl_s=self._settings.ttl_s,
            capacity=wanted.slots * self._settings.prefetch,
            server_time_s=done.now_ms / 1000,
            relay=relay == "must",
        )

    def heartbeat(self, account_id: str, address: str, worker_id: str, wanted: m.Heartbeat) -> Beat | None:
        """Prolongs a registration; None: register again, for there is none, or it is at another address now."""
        ttl_ms, near = int(self._settings.ttl_s * 1000), origins(address)[1]
        return self._store.heartbeat(
            worker_id, account_id, wanted.boot_id, ttl_ms, willing=wanted.willing, address=address, near=near
        )

    def leave(self, account_id: str, worker_id: str) -> bool:
        """Takes a worker out of the pool; False: not registered."""
        return self._store.leave(worker_id, account_id)

    def caller_of(self, account_id: str, worker_id: str, relay_pass: bytes) -> tuple[int, str]:
        """Until when (ms) a pass lets an account call a worker through the relay, and whom the worker knows it as.

        Raises:
            ProblemError: ``relay-refused``.
        """
        key = keys.relay_pass_key(self._keyring.master)
        until_ms = valid_until_ms(key, account_id, worker_id, relay_pass)
        if until_ms is None:
            raise ProblemError(403, "relay-refused", "this pass is not of this account for this worker")
        return until_ms, sender_of(key, account_id, worker_id)

    def worker_key(self, worker_id: str) -> bytes:
        """The key shared with a worker."""
        return _worker_key(self._keyring.master, worker_id, KEY_VERSION)


def new_account(
    accounts: Accounts,
    name: str,
    credits: int,
    *,
    network: str = "",
    bound: bool = False,
    invitation: str = "",
    limits: Sequence[Origin] = (),
) -> tuple[str, m.AccountCreated | None]:
    """Makes an account; returns the outcome as `Accounts.create` does, and the account where that is ``ok``."""
    secret = secrets.token_urlsafe(32)
    outcome = "taken"
    while outcome == "taken":
        account_id = uuid.uuid4().hex
        outcome, got = accounts.create(
            *(account_id, hash_of(account_id, secret), name, credits),
            network=network,
            bound=bound,
            invitation_id=invitation_id(invitation) if invitation else "",
            origins=limits,
        )
    if outcome != "ok":
        return outcome, None
    return outcome, m.AccountCreated(account_id=account_id, secret=secret, balance=got)


def hash_of(account_id: str, secret: str) -> bytes:
    """What is stored of an account's secret."""
    # Secrets are 256 random bits made here: one SHA-256 is enough, a slow hash would only slow every request down.
    return hashlib.sha256(f"ec262/v1/secret\0{account_id}\0{secret}".encode("utf-8", "surrogatepass")).digest()
