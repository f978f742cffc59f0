"""The worker, every part built and wired on one screen; how it starts, drains and leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import gevent
from gevent.event import Event
from gevent.os import make_nonblocking, nb_read
from gevent.select import poll as gevent_poll

from ec262.config import WorkerSettings, discovery_url, home_directory, is_loopback
from ec262.credentials import CredentialStore
from ec262.discovery_client import DiscoveryClient
from ec262.errors import WorkerLost
from ec262.protocol.routes import routes_of
from ec262.sandbox.launcher import Grants, Sandbox
from ec262.sandbox.layers import layers_of
from ec262.sandbox.policy import DEFAULT, Policy
from ec262.sandbox.policy import Limits as UnitLimits
from ec262.serving import Limits, Server
from ec262.worker.attendance import Attendance
from ec262.worker.control import Control, control_directory, own_pids
from ec262.worker.events import printed
from ec262.worker.executor import JobExecutor
from ec262.worker.executor_process import ExecutorProcesses
from ec262.worker.holdings import Holdings
from ec262.worker.lease import DiscoveryClock, Offer, Registration
from ec262.worker.metrics import metrics_app
from ec262.worker.preferences import Watched, choose
from ec262.worker.relay import Nowhere, RelayPolls
from ec262.worker.remembered import Remembered
from ec262.worker.runner import Runner
from ec262.worker.sensors import sensors_of
from ec262.worker.server import Api
from ec262.worker.status import Status
from ec262.worker.stored import StoredInputs
from ec262.worker.terms import fit_memory
from ec262.worker.unsettled import UnsettledReceipts

log = logging.getLogger("ec262.worker")

SWEEP_EVERY_S = 5.0
UNIT_MEMORY_BYTES = UnitLimits().memory_bytes
"""What a slot may use."""
_GOODBYE_S = 3.0
_HASTY_GOODBYE_S = 1.0
_LAST_ANSWER_S = 1.0


class Worker:
    """A worker for one discovery service; a context manager. It belongs to the thread that made it.

    Args:
        settings: how to work.
        url: the discovery service.
        home: where credentials are; None: the user's place.
        executor: what computes map tasks of programs for it.
        watched: the file of its owner's preferences, looked at again while it works.

    Attributes:
        server: where foremen push to; its `port` is the real one where 0 was asked for.
        registration: the worker's presence at discovery.
        holdings: what it has taken.
        attendance: when it works.
        lost: it leaves because discovery was silent for too long.

    Raises:
        SandboxUnavailable: this machine cannot confine strangers' code and nobody said that it need not.
        SetupError: the port is taken, the discovery URL is none, a data directory is not there, the executor does not
            start.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        url: str,
        *,
        home: Path | None = None,
        executor: JobExecutor | None = None,
        watched: Watched | None = None,
    ) -> None:
        self.settings = settings = fit_memory(settings, UNIT_MEMORY_BYTES)
        self.lost = False
        self._home = home or home_directory()
        self._control: Control | None = None
        self.url = url
        self._over = Event()  # leave
        self._hurry = Event()  # ... without finishing
        self._sweeper: gevent.Greenlet | None = None
        self._clock = DiscoveryClock()
        self._stored = StoredInputs(settings, home)
        self._executor = ExecutorProcesses(executor, poll=gevent_poll) if executor is not None else None
        if self._executor is not None:
            self._executor.check()
        self._unsettled = UnsettledReceipts(settings.show_receipts_after_s)
        self._client = DiscoveryClient(url, retry_for_s=0.0, ca_bundle=settings.ca_bundle or None)
        self._sandbox = open_sandbox(settings)
        try:
            self.grants = self._sandbox.start()
            self.holdings = Holdings(settings)
            offer = Offer(
                lane=lane_of(settings),
                layers=tuple(layers_in_force(self.grants)),
                capabilities=tuple(self.capabilities),
            )
            self.registration = Registration(
                settings,
                self._client,
                CredentialStore(home, pause=gevent.sleep),
                self._unsettled,
                self._clock,
                offer,
                self._start_anew,
                self.holdings.was_pushed,
                lambda alone: self._relay.wanted() if alone else self._relay.called(),
            )
            self._runner = Runner(
                *(settings, self._sandbox, self.holdings, self._unsettled),
                *(self._clock.now_s, self.registration.nudge),
                stored=self._stored,
                executors={self._executor.name: self._executor} if self._executor is not None else {},
            )
            kept = control_directory(self._home) / f"{settings.port}.json" if settings.port else None
            self._remembered = Remembered(kept)
            self.attendance = Attendance(
                *(settings, sensors_of(settings, lambda: own_pids(self._home)), self._remembered, self.registration),
                *(self.holdings, self._unsettled),
                on_lost=self._end_lost,
                on_given_back=self._runner.wake,
                watched=watched,
            )
            self._api = Api(
                *(settings, self.holdings, self._unsettled, self.registration, self._runner, self._clock.now_s),
                self.attendance.give_back_unwanted,
            )
            self._metrics = (
                Server(metrics_app(self.status), settings.metrics_host, settings.metrics_port)
                if settings.metrics_port is not None
                else None
            )
            application = self._api.app()
            self._relay = RelayPolls(settings, self._client, self.registration, application)
            self._api.on_call = self._relay.called
            self.server: Server | Nowhere = (
                Nowhere(settings.port)
                if settings.relay == "always"
                else Server(
                    application,
                    settings.host or ("127.0.0.1" if is_loopback(url) else "0.0.0.0"),
                    settings.port,
                    limits=Limits(max_body_bytes=max(route.max_body_bytes for route in routes_of("worker"))),
                )
            )
            offer.port = 0 if settings.relay == "always" else self.server.port
        except BaseException:
            self._sandbox.close()
            self._client.close()
            raise

    def status(self) -> Status:
        """This worker now, for its owner."""
        return self.attendance.status(port=self.server.port, url=self.server.url, discovery=self.url)

    @property
    def capabilities(self) -> list[str]:
        """What this worker has beside Python."""
        return [*self._stored.capabilities, *([self._executor.capability] if self._executor is not None else [])]

    def __enter__(self) -> Self:
        self.server.start()
        self._runner.start()
        self._relay.start()
        self._sweeper = gevent.spawn(self._sweep)
        try:
            self._control = Control(self._home, self.server.port, self._answer_owner)
        except OSError as reason:
            log.warning("ec262 worker status, pause and resume will not reach this worker: %s", reason)
        if self._metrics is not None:
            self._metrics.start()
            log.info("metrics at %s/metrics", self._metrics.url)
        self.attendance.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def enter(self) -> bool:
        """Registers at discovery, and from then on keeps the worker there; waits as long as it takes.

        Returns:
            False: asked to leave before discovery answered.

        Raises:
            SetupError, ProblemError: as `Registration.enter`.
        """
        failed: list[Exception] = []

        def register() -> None:
            try:
                self.registration.enter()
            except Exception as reason:
                failed.append(reason)

        entering = gevent.spawn(register)
        gevent.wait([entering, self._over], count=1)
        if not entering.dead:
            entering.kill()
            return False
        if failed:
            raise failed[0]
        self.registration.start()
        return True

    def serve_until_asked(self) -> None:
        """Works until `ask_to_leave`; then leaves the pool, finishes what is held and waits until it is fetched."""
        self._over.wait()
        self.attendance.leave()
        with gevent.Timeout(_HASTY_GOODBYE_S if self._hurry.is_set() else _GOODBYE_S, False):
            self.registration.leave()
        self._drain()

    def ask_to_leave(self) -> None:
        """Leave in good order; asked again, at once."""
        if self._over.is_set():
            self._hurry.set()
        self._over.set()

    def hurry(self) -> None:
        """Leave at once."""
        self._hurry.set()
        self._over.set()

    def close(self) -> None:
        """Stops everything; nothing is left running. May be called twice."""
        self._over.set()
        gevent.killall([item for item in (self._sweeper,) if item is not None])
        self.attendance.stop()
        if self._control is not None:
            self._control.close()
        if self._metrics is not None:
            self._metrics.stop(timeout_s=0.2)
        self.registration.stop()
        self._api.let_go()
        patience_s = 0.2 if self._hurry.is_set() else 2.0
        self._relay.stop(patience_s)
        self.server.stop(timeout_s=patience_s)
        self._runner.stop()
        if self._executor is not None:
            self._executor.close()
        self._stored.close()
        self._sandbox.close()
        self._client.close()

    def _drain(self) -> None:
        holdings = self.holdings
        if holdings.unfinished or holdings.undelivered:
            log.info(
                "finishing: %d tasks to compute, %d results to be fetched (at most %.0f s; once more to leave at once)",
                holdings.unfinished, holdings.undelivered, self.attendance.drain_s,
            )  # fmt: skip
        until_s = time.monotonic() + self.attendance.drain_s
        while (holdings.unfinished or holdings.undelivered) and time.monotonic() < until_s:
            if self._hurry.wait(0.05):
                return
        # The last answers may still be on their way; a foreman that got them says so, if it polls once more.
        until_s = min(until_s, time.monotonic() + _LAST_ANSWER_S)
        while holdings.unacknowledged and time.monotonic() < until_s and not self._hurry.wait(0.05):
            pass

    def _sweep(self) -> None:
        while True:
            gevent.sleep(SWEEP_EVERY_S)
            dropped = self.holdings.sweep(self._clock.now_s())
            if dropped:
                log.warning("dropped %d results that nobody fetched before their deadline", dropped)
                self._runner.wake()

    def _answer_owner(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.attendance.answer(request, self.status)

    def _end_lost(self) -> None:
        self.lost = True
        self.ask_to_leave()

    def _start_anew(self) -> None:
        lost = self.holdings.unfinished + self.holdings.unacknowledged
        self.holdings.clear()
        log.warning("discovery was started anew: what was taken before (%d tasks) is void", lost)


def run_worker(
    port: int | None = None,
    *,
    discovery: str | None = None,
    host: str | None = None,
    slots: int | None = None,
    sandbox: Literal["native", "none"] | None = None,
    min_price: int | None = None,
    relay: Literal["auto", "always", "never"] | None = None,
    allow_modules: tuple[str, ...] = (),
    data_dirs: Mapping[str, str] | None = None,
    executor: JobExecutor | None = None,
    verbosity: int = 0,
    settings: WorkerSettings | None = None,
    watched: Watched | None = None,
    on_ready: Callable[[Worker], None] | None = None,
    parent_pipe: bool = False,
) -> None:
    """Lends this machine until it is interrupted: computes strangers' tasks, confined, for credits.

    In a program's main thread, the first SIGINT or SIGTERM lets it finish what it holds, the second ends it at once;
    the program's own handlers are restored before this returns. In other threads it runs until the process ends.

    Args:
        port: TCP port; 0 for any that is free. Default 11235.
        discovery: URL of the service; default ``EC262_DISCOVERY``, or the one on this machine.
        host: address to listen on; default: this machine alone where discovery is on it, else every address.
        slots: tasks at a time; default one a core.
        sandbox: ``native``, or ``none`` to run strangers' code unconfined.
        min_price: compute only for foremen that pay so many times the usual price; default 1.
        relay: serve through discovery's relay: ``auto`` (default): where nobody can connect to this machine;
            ``always``: listen nowhere; ``never``.
        allow_modules: modules that jobs may import beside the sandbox's own.
        data_dirs: shared storages that tasks may read here: name to directory or URL.
        executor: computes map tasks of programs that name it, with what is installed here.
        verbosity: 0: start, warnings, end; 1: a line an event; 2: everything. For a program without logging of its own.
        settings: all at once, instead of the above. Without it ``worker.toml`` counts for what is not given here (see
            `ec262.worker.preferences`).
        watched: that file, where `settings` has been made of it.
        on_ready: called when discovery has let the worker in.
        parent_pipe: leave at once when standard input ends: whoever started this process is gone.

    Raises:
        SandboxUnavailable: this machine cannot confine strangers' code.
        SetupError: the port is taken, credentials cannot be used, a setting is wrong.
        ProblemError: discovery refuses this worker.
        WorkerLost: discovery was silent for as long as `WorkerSettings.max_living_s`.
    """
    preferred = ""
    if settings is None:
        settings, preferred, watched = choose(
            home_directory(),
            port=port,
            host=host,
            slots=slots,
            sandbox=sandbox,
            min_price=min_price,
            relay=relay,
            allow_modules=allow_modules or None,
            data_dirs=tuple(data_dirs.items()) if data_dirs else None,
        )
    url = discovery_url(discovery, preferred)
    with printed(verbosity), Worker(settings, url, executor=executor, watched=watched) as worker:
        watcher = gevent.spawn(_wait_for_parent, worker) if parent_pipe else None
        with _signals_ask(worker):
            try:
                slots = worker.settings.slots
                log.info(
                    "worker on %s, %d slot%s, %s%s",
                    *(worker.server.url, slots, "s" * (slots > 1), _confined_by(worker)),
                    "".join(f", {each}" for each in worker.capabilities),
                )
                if not worker.enter():
                    _raise_if_lost(worker)
                    return
                standing = worker.registration.standing
                log.info("in the pool of %s as %s", worker.url, standing.worker_id if standing else "?")
                if on_ready is not None:
                    on_ready(worker)
                worker.serve_until_asked()
                _say_goodbye(worker)
                _raise_if_lost(worker)
            finally:
                if watcher is not None:
                    watcher.kill()


def open_sandbox(settings: WorkerSettings) -> Sandbox:
    """The sandbox these settings ask for, not started; it waits through gevent."""
    return Sandbox(
        policy=policy_of(settings), slots=settings.slots, poll=gevent_poll, unconfined=settings.sandbox == "none"
    )


def policy_of(settings: WorkerSettings) -> Policy:
    """What jobs may do here: the sandbox's own policy, and the modules the volunteer allows."""
    return dataclasses.replace(DEFAULT, extra_modules=DEFAULT.extra_modules | frozenset(settings.allow_modules))


def lane_of(settings: WorkerSettings) -> Literal["native", "none"]:
    """The class of results that foremen compare this worker's with."""
    return "none" if settings.sandbox == "none" else "native"


def layers_in_force(grants: Grants) -> list[str]:
    """Names of the sandbox's layers that this machine grants, strongest first; registered as a capability."""
    return [layer.name for layer in layers_of(grants) if layer.granted]


def _confined_by(worker: Worker) -> str:
    if worker.grants.seccomp:
        return f"sandbox of {len(layers_in_force(worker.grants))} layers"
    return "UNCONFINED: jobs can do whatever this user can"


def _say_goodbye(worker: Worker) -> None:
    registration = worker.registration
    state = None
    with gevent.Timeout(_HASTY_GOODBYE_S, False):
        state = registration.account_state()
    has = f"; account {state.account_id} has earned {state.earned} and has {state.balance}" if state else ""
    status = worker.status()
    log.info(
        "left the pool after %d tasks; earned %d credits, %d today, %d in all%s",
        *(worker.holdings.taken, status.earned_since_start, status.earned_today, status.earned, has),
    )


def _raise_if_lost(worker: Worker) -> None:
    if worker.lost:
        raise WorkerLost(f"{worker.url} did not answer for {worker.registration.silent_s:.0f} s (max_living)")


@contextlib.contextmanager
def _signals_ask(worker: Worker) -> Iterator[None]:
    """SIGINT and SIGTERM ask the worker to leave; afterwards the program's own handlers are back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    watchers = [gevent.signal_handler(number, worker.ask_to_leave) for number in before]
    try:
        yield
    finally:
        for watcher in watchers:
            watcher.cancel()
        for number, handler in before.items():
            # libev leaves the default action behind. (None: a handler that Python did not install and cannot restore.)
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _wait_for_parent(worker: Worker) -> None:
    descriptor = sys.stdin.fileno()
    make_nonblocking(descriptor)
    with contextlib.suppress(OSError):
        while nb_read(descriptor, 4096):
            pass
    worker.hurry()
