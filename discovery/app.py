"""The discovery service, every part built and wired on one screen."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from flask import Flask

from discovery.api import Api, handle_errors
from discovery.archive.files import LEDGER
from discovery.archive.mover import Mover
from discovery.condition import Condition
from discovery.disputes import Disputes
from discovery.gate import Gate
from discovery.jobs import Jobs
from discovery.keyring import Keyring
from discovery.leaderboard import Leaderboard
from discovery.leasing import Leasing
from discovery.limits import Limiter
from discovery.metrics import Meter
from discovery.reach import Reach
from discovery.registry import Registry
from discovery.relay import Relay
from discovery.settings import Settings
from discovery.settlement import SWEEP_BATCH, Settlement
from discovery.store.store import Store
from discovery.ticketing import Ticketing
from discovery.trust import Trust
from discovery.web.views import Web
from ec262.protocol.routes import ROUTES

log = logging.getLogger("ec262.discovery")


@dataclass(frozen=True, slots=True)
class Discovery:
    """The parts of one service: `app` answers requests, `sweep` does what time does, `mover` archives."""

    app: Flask
    store: Store
    registry: Registry
    leasing: Leasing
    settlement: Settlement
    trust: Trust
    settings: Settings
    mover: Mover
    condition: Condition
    relay: Relay
    api: Api
    gate: Gate
    meter: Meter

    def sweep(self) -> None:
        """Lets workers lapse, tasks fall due and jobs be forgotten until nothing is left to do; looks how it stands.

        To be called every `Settings.sweep_every_s`.
        """
        while self.store.lapse(SWEEP_BATCH) == SWEEP_BATCH:
            pass
        self.trust.sweep()
        self.end_leases()
        while self.settlement.sweep() == SWEEP_BATCH:
            pass
        while self.store.forget_jobs(SWEEP_BATCH) == SWEEP_BATCH:
            pass
        self.store.pulse.keep()
        self.condition.measure()

    def end_leases(self) -> None:
        """Ends what workers of banned accounts hold: the escrow goes back, and others may have the tasks."""
        while leases := self.store.accounts.ending(SWEEP_BATCH):
            self.settlement.expire_leases(leases)
            self.store.accounts.ended(leases)


def create_discovery(settings: Settings, store_url: str, data_dir: Path) -> Discovery:
    """Builds a service over a Redis at `store_url`; `data_dir` holds keyring and ledger.

    Raises:
        SetupError: the keyring cannot be used.
    """
    store = Store(store_url)
    keyring = Keyring(data_dir, settings)
    reach = Reach(store, settings.proxies)
    registry = Registry(store, keyring, settings, reach)
    relay = Relay(store, reach, settings)
    trust = Trust(store, keyring, settings)
    ticketing = Ticketing(keyring, registry, settings)
    leasing = Leasing(store, keyring, ticketing, trust, settings)
    settlement = Settlement(store, registry, trust, leasing, ticketing)
    app = Flask("discovery", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max(route.max_body_bytes for route in ROUTES)
    disputes = Disputes(store, trust, ticketing, settings)
    mover = Mover(store.books, data_dir.absolute() / LEDGER)
    condition = Condition(store.books, mover, settings.most_backlog_bytes)
    meter = Meter(store.rates)
    gate = Gate(Limiter(store.rates, settings), meter, settings.proxies)
    jobs, leaderboard = Jobs(store, settings), Leaderboard(store)
    api = Api(
        *(store, registry, leasing, settlement, trust, disputes, jobs, condition, leaderboard, relay, settings, gate)
    )
    app.register_blueprint(api.blueprint())
    web = Web(store, registry, keyring, jobs, leaderboard, settings, gate)
    app.register_blueprint(web.blueprint())
    web.greet(app)
    handle_errors(app)
    app.wsgi_app = meter.around(app.wsgi_app)  # type: ignore[assignment,method-assign]
    return Discovery(
        *(app, store, registry, leasing, settlement, trust, settings, mover, condition, relay, api, gate, meter)
    )
