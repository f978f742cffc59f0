"""Lease: a worker's presence in discovery's pool: register, heartbeats, leave; and what discovery's clock says."""

from __future__ import annotations

import logging
import platform
import re
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import gevent
import msgspec
from gevent.event import Event

from ec262.config import WorkerSettings
from ec262.credentials import Account, CredentialStore, new_worker_id
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.errors import EC262Error, NetworkError, ProblemError, Unauthorized
from ec262.protocol import messages as m
from ec262.protocol.receipts import ReceiptBundle, seal_receipts
from ec262.protocol.terms import ANYBODY
from ec262.worker.events import EVENT, shown
from ec262.worker.sensors import suspended_s
from ec262.worker.unsettled import UnsettledReceipts

log = logging.getLogger("ec262.worker")

EARLY_HEARTBEAT_RECEIPTS = 10_000
"""So many receipts kept since the last heartbeat make the next one come early: its answer says which to forget."""
_EARLIEST_S = 2.0


_SAME_PLATFORM = {"amd64": "x86_64", "arm64": "aarch64"}


def platform_family(machine: str) -> str:
    """The family of a processor by the name that the system has for it; empty where it has none.

    Within one, IEEE 754 arithmetic gives the same bits; between them fused multiplications and libraries differ.
    """
    name = re.sub(r"[^a-z0-9_]", "_", machine.lower())[:16]
    return _SAME_PLATFORM.get(name, name)


class DiscoveryClock:
    """Discovery's clock as seen from here: the monotonic clock and an offset, learnt from answers."""

    def __init__(self, suspended_s: Callable[[], float] = suspended_s) -> None:
        # The monotonic clock stands still while the machine is suspended; discovery's does not.
        self._suspended_s = suspended_s
        self._offset_s = time.time() - time.monotonic() - suspended_s()

    def now_s(self) -> float:
        """Seconds since the epoch at discovery."""
        return time.monotonic() + self._suspended_s() + self._offset_s

    def learn(self, server_time_s: float, asked_s: float, answered_s: float) -> None:
        """Discovery said its time between two moments of ``time.monotonic``; the middle is the best guess."""
        self._offset_s = server_time_s - (asked_s + answered_s) / 2 - self._suspended_s()


@dataclass(frozen=True, slots=True)
class Standing:
    """What registration gave this worker. `relay`: foremen come through the relay alone."""

    worker_id: str
    worker_key: bytes
    epoch: int
    capacity: int
    heartbeat_s: float
    relay: bool = False

    def __repr__(self) -> str:
        return f"<Standing {self.worker_id} epoch={self.epoch}>"


@dataclass(slots=True)
class Offer:
    """What the worker tells discovery about itself; the port is known once the server listens."""

    lane: Literal["native", "none"]
    layers: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    port: int = 0


class Registration:
    """Keeps the worker in the pool until it leaves.

    Args:
        was_pushed: whether a foreman has pushed a lease here. Discovery is told of open leases that none has, so that a
            foreman cannot keep a worker from others for nothing.
        on_relay: called when discovery says how foremen come: through the relay alone (True), or that somebody waits
            there (False).

    Attributes:
        boot_id: drawn anew at each start.
        standing: None until discovery has answered once; then the last it gave, which holds also while the worker
            registers again.
        earned: credits of this worker in all, as discovery last said.
        earned_at_start: the same when it first said so; negative before.
        is_registered: False: it registers (again) with the next call.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        client: DiscoveryClient,
        credentials: CredentialStore,
        unsettled: UnsettledReceipts,
        clock: DiscoveryClock,
        offer: Offer,
        on_new_epoch: Callable[[], None],
        was_pushed: Callable[[str], bool],
        on_relay: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._client = client
        self._credentials = credentials
        self._unsettled = unsettled
        self._clock = clock
        self._offer = offer
        self._on_new_epoch = on_new_epoch
        self._was_pushed = was_pushed
        self._on_relay = on_relay
        self._open: list[str] = []
        self.boot_id = uuid.uuid4().hex
        self._worker_id = ""
        self._account: Account | None = None
        self._wake = Event()
        self._keeper: gevent.Greenlet | None = None
        self._down_since_s = 0.0
        self._asked_s = float("-inf")
        self._answered_s = time.monotonic()
        self._willing = True
        self._terms = ANYBODY
        self.is_registered = False
        self.standing: Standing | None = None
        self.earned = 0
        self.earned_at_start = -1

    def start(self) -> None:
        """Begins to keep the worker in the pool, in a greenlet; `standing` is set when discovery has answered."""
        self._keeper = gevent.spawn(self._keep)

    def enter(self) -> None:
        """Registers, for as many tries as it takes.

        Raises:
            SetupError: credentials that cannot be used.
            ProblemError: discovery does not want this worker, and would not next time.
        """
        pause_s = self._settings.retry_s
        while True:
            try:
                self._register()
                self._recovered()
                return
            except NetworkError as reason:
                if isinstance(reason, ProblemError) and reason.status < 500 and reason.code != "rate-limited":
                    raise
                self._unreachable(reason)
            gevent.sleep(pause_s)
            pause_s = min(pause_s * 2, self._settings.retry_max_s)

    def leave(self) -> None:
        """Takes the worker out of the pool: no new leases. Discovery that does not answer finds out by itself."""
        self.stop()
        if self.standing is None:
            return
        try:
            self._beat(self.standing)
            self._client.leave(self.standing.worker_id)
        except NetworkError as reason:
            log.log(EVENT, "could not say goodbye to discovery: %s", shown(reason))

    def stop(self) -> None:
        """Sends no more heartbeats."""
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper = None

    @property
    def is_down(self) -> bool:
        """Whether discovery did not answer when it was last asked."""
        return bool(self._down_since_s)

    @property
    def silent_s(self) -> float:
        """Since discovery last answered, or since the start; the time the machine was suspended does not count."""
        return time.monotonic() - self._answered_s

    def set_willing(self, willing: bool) -> None:
        """Whether this worker wants leases; discovery is told of a change at once."""
        if willing != self._willing:
            self._willing = willing
            self.hurry()

    def set_terms(self, terms: m.WorkerTerms) -> None:
        """Whom this worker serves; where it is registered already, it registers again."""
        self._terms = terms
        self.is_registered = False
        self.hurry()

    def hurry(self) -> None:
        """The next heartbeat is due now."""
        self._wake.set()

    def account_state(self) -> m.AccountState | None:
        """What the worker's account has; None: discovery does not answer."""
        try:
            return self._client.account()
        except NetworkError:
            return None

    def nudge(self) -> None:
        """To be called as receipts are kept: there may be reason not to wait for the next heartbeat."""
        if len(self._unsettled) >= EARLY_HEARTBEAT_RECEIPTS and time.monotonic() - self._asked_s > _EARLIEST_S:
            self._wake.set()

    def beat_now(self) -> None:
        """There is reason to doubt that discovery still knows this worker."""
        if time.monotonic() - self._asked_s > _EARLIEST_S:
            self._wake.set()

    # --- in a greenlet ---

    def _keep(self) -> None:
        pause_s = self._settings.retry_s
        while True:
            standing = self.standing if self.is_registered else None
            if standing is not None and self.earned_at_start >= 0:
                self._wake.wait(standing.heartbeat_s if not self._down_since_s else pause_s)
                self._wake.clear()
            try:
                if standing is None:
                    self.enter()
                else:
                    self._beat(standing)
                    self._recovered()
                pause_s = self._settings.retry_s
                continue
            except Unauthorized as reason:
                self._unreachable(reason)
                self._renounce_account()
                self.is_registered = False
            except ProblemError as reason:
                if reason.code == "unknown-worker":
                    log.log(EVENT, "discovery has forgotten this worker: registering again")
                    self.is_registered = False
                    continue
                self._unreachable(reason)
            except EC262Error as reason:
                self._unreachable(reason)
            except Exception:
                log.exception("a fault of the worker in a heartbeat")
                self._unreachable(EC262Error("a fault"))
            if not self.is_registered:
                gevent.sleep(pause_s)
            pause_s = min(pause_s * 2, self._settings.retry_max_s)

    def _beat(self, standing: Standing) -> None:
        asked_s = self._asked_s = time.monotonic()
        bundles = self._unsettled.due(asked_s)
        tokens = [
            seal_receipts(standing.worker_key, ReceiptBundle(standing.worker_id, standing.epoch, bundle))
            for bundle in bundles
        ]
        unseen = [lease_id for lease_id in self._open if not self._was_pushed(lease_id)][: m.MAX_TASKS_A_REQUEST]
        heartbeat = m.Heartbeat(boot_id=self.boot_id, willing=self._willing, receipts=tokens, unseen=unseen)
        answer = self._client.heartbeat(standing.worker_id, heartbeat)
        answered_s = self._answered_s = time.monotonic()
        if not bundles:  # recording receipts takes discovery a while, and then its time is not the middle's
            self._clock.learn(answer.server_time_s, asked_s, answered_s)
        else:
            log.log(EVENT, "showed discovery %d receipts that nobody settled", sum(map(len, bundles)))
            self._unsettled.mark_shown(bundles, answered_s)
        self._unsettled.settle(answer.open_leases, asked_s)
        self._open = answer.open_leases
        if answer.relay:
            self._on_relay(False)
        self._note_earned(answer.earned)

    def _note_earned(self, earned: int) -> None:
        if self.earned_at_start < 0:
            self.earned_at_start = earned
        elif earned > self.earned:
            more, in_all = earned - self.earned, earned - self.earned_at_start
            log.log(EVENT, "earned %d credits (%d since the start)", more, in_all)
        self.earned = earned

    def _register(self) -> None:
        account = self._ensure_account()
        url, port = self._client.url, self._settings.port
        if not self._worker_id:
            self._worker_id = self._credentials.worker_id(url, account.account_id, port) if port else new_worker_id()
        body = m.RegisterWorker(
            worker_id=self._worker_id,
            boot_id=self.boot_id,
            port=self._offer.port,
            slots=self._settings.slots,
            python=f"{sys.version_info[0]}.{sys.version_info[1]}",
            lane=self._offer.lane,
            layers=list(self._offer.layers),
            capabilities=list(self._offer.capabilities),
            ask=self._settings.min_price,
            platform=platform_family(platform.machine()),
            terms=self._terms,
            willing=self._willing,
            relay=self._relay_wanted,
        )
        asked_s = time.monotonic()
        try:
            answer = self._client.register_worker(body)
        except Unauthorized:
            if self._renounce_account():
                return self._register()
            raise
        except ProblemError as reason:
            if reason.code != "forbidden":
                raise
            renew = self._credentials.renew_worker_id
            self._worker_id = renew(url, account.account_id, port) if port else new_worker_id()
            answer = self._client.register_worker(msgspec.structs.replace(body, worker_id=self._worker_id))
        self._answered_s = time.monotonic()
        self._clock.learn(answer.server_time_s, asked_s, self._answered_s)
        before = self.standing
        self.standing = Standing(
            worker_id=answer.worker_id,
            worker_key=answer.worker_key,
            epoch=answer.epoch,
            capacity=answer.capacity,
            heartbeat_s=answer.heartbeat_s,
            relay=answer.relay,
        )
        self.is_registered = body.terms == self._terms  # which may have changed meanwhile
        if answer.relay:
            if before is None or not before.relay:
                log.info("nobody can connect to this worker: it serves through the relay of %s", url)
            self._on_relay(True)
        if before is not None and (before.worker_key, before.epoch) != (answer.worker_key, answer.epoch):
            self._unsettled.clear()
            self._open = []
            self._on_new_epoch()

    @property
    def _relay_wanted(self) -> Literal["auto", "always", "never"]:
        wanted: Literal["auto", "always", "never"] = self._settings.relay  # type: ignore[assignment]  # checked there
        return wanted

    def _ensure_account(self) -> Account:
        if self._account is None:
            self._account = self._credentials.ensure_account(self._client.url, self._new_account)
            self._client.use_account(self._account.account_id, self._account.secret)
        return self._account

    def _new_account(self) -> Account:
        made = create_account_at(self._client)
        log.info("made account %s at %s, kept in %s", made.account_id, self._client.url, self._credentials.path)
        return made

    def _renounce_account(self) -> bool:
        """Discovery does not know the account; True: it was the stored one, and the next will be another."""
        account, self._account = self._account, None
        self._worker_id = ""
        if account is None or not self._credentials.retire_account(self._client.url, account):
            return False
        stored = self._credentials.account(self._client.url)
        if stored is not None and stored.account_id == account.account_id:
            log.info("account %s has a new key: going on with it", account.account_id)
            return True
        log.warning(
            "discovery at %s does not know account %s (was it started anew?); the account is set aside in %s",
            self._client.url, account.account_id, self._credentials.path,
        )  # fmt: skip
        return True

    def _unreachable(self, reason: EC262Error) -> None:
        if not self._down_since_s:
            self._down_since_s = time.monotonic()
            log.warning("%s (the worker goes on and keeps trying)", shown(reason))
        else:
            log.debug("still: %s", shown(reason))

    def _recovered(self) -> None:
        if self._down_since_s:
            log.info("discovery answers again, after %.0f s", time.monotonic() - self._down_since_s)
            self._down_since_s = 0.0
