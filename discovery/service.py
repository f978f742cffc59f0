"""The service as a program: flags, the store, the server, signals, the end."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path

import gevent
import redis
from gevent import ssl
from gevent.event import AsyncResult, Event
from gevent.os import make_nonblocking, nb_read

from discovery.addresses import Believed, plain
from discovery.app import create_discovery
from discovery.logs import say, start_logging
from discovery.processes import (
    DRAIN_S,
    LISTENER_VARIABLE,
    MOST_PROCESSES,
    REDIS_VARIABLE,
    inherited_listener,
    lift_descriptor_limit,
    supervise,
)
from discovery.settings import MOST_STARTING_CREDITS, PRIVATE_CREDITS, PUBLIC_CREDITS, PUBLIC_LIMITS, settings_for
from discovery.store.keeper import Keeper
from discovery.store.server import start_server
from discovery.store.store import Store
from discovery.upkeep import Upkeep, report_last
from ec262.errors import EC262Error, SetupError
from ec262.protocol.routes import routes_of
from ec262.serving import Limits, Server, server_context

log = logging.getLogger("ec262.discovery")

EXAMPLES = """\
examples:
  ec262 discovery --network private                    for this machine, with a store of its own
  ec262 discovery --network private --host 0.0.0.0     for a lab or a class
  ec262 discovery --network public --host 0.0.0.0 --redis redis://localhost:6379/0 --data-dir /var/lib/ec262
  ec262 discovery --network public --processes 4 --log-format json --metrics 127.0.0.1     for production
  ec262 discovery backup --data-dir DIR BACKUP         a copy of it all, while it runs
  ec262 discovery restore BACKUP --data-dir NEW-DIR    and back
  ec262 discovery --host 0.0.0.0 --port 443 --tls-cert fullchain.pem --tls-key privkey.pem
  ec262 discovery --trusted-proxy 127.0.0.1            behind a reverse proxy that speaks TLS

then, on any machine:
  python worker.py -v --discovery http://THIS-HOST:26262
  curl http://THIS-HOST:26262/v1/credits
"""

MOST_CONNECTIONS = 8192
"""Open at the same time, to one process."""

LIMITS = {
    "address-accounts": "accounts that may be made from an address in a day",
    "address-grants": "how many of these get starting credits",
    "account-workers": "workers of an account at a time",
    "neighbourhood-workers": "workers of a neighbourhood (/24, or /48 of IPv6) at a time",
    "account-requests": "requests a second of an account, ten times as many at once",
    "address-requests": "requests a second of an address, ten times as many at once",
    "anonymous-requests": "requests a second of an address that no account is behind, ten times as many at once",
    "address-connections": "connections of an address to one process at a time",
}


def parser() -> argparse.ArgumentParser:
    """The flags of ``python -m discovery`` and ``ec262 discovery``."""
    made = argparse.ArgumentParser(
        prog="ec262 discovery",
        description="Runs the discovery service: matches foremen with workers and keeps the credits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    made.add_argument("--port", type=int, default=26262, help="port to listen on, 0 for any (default: %(default)s)")
    made.add_argument(
        "--redis", metavar="URL", default=os.environ.get(REDIS_VARIABLE) or None,
        help=f"your own Redis or Valkey (6.2 or later), not an embedded one (default: ${REDIS_VARIABLE}, which "
        "shows no password in the list of processes)",
    )  # fmt: skip
    made.add_argument(
        "--data-dir", metavar="DIR", type=Path, default=Path("~/.local/share/ec262/discovery").expanduser(),
        help="keys and, without --redis, the store (default: ~/.local/share/ec262/discovery)",
    )  # fmt: skip
    made.add_argument(
        "--network", choices=["private", "public"], default="public",
        help=f"private: new accounts get {PRIVATE_CREDITS} credits and own workers may serve; "
        f"public: {PUBLIC_CREDITS}, and they may not (default: %(default)s)",
    )  # fmt: skip
    made.add_argument(
        "--distinct", choices=["account,address", "account", "none"],
        help="in what the workers of one task have to differ (default: account,address when public, none when private)",
    )  # fmt: skip
    made.add_argument("--starting-credits", type=int, metavar="N", help="credits minted for each new account")
    made.add_argument(
        "--registration", choices=["open", "invite", "closed"],
        help="who makes accounts: anybody (default), who has an invitation (`ec262 operator invite`), or you alone",
    )  # fmt: skip
    for flag, what in LIMITS.items():
        made.add_argument(
            f"--{flag}", type=_limit, metavar="N",
            help=f"{what}, 0 for any number (default: {PUBLIC_LIMITS[flag.replace('-', '_')]} when public, 0 when "
            "private)",
        )  # fmt: skip
    made.add_argument(
        "--trusted-proxy", type=_network, action="append", metavar="CIDR",
        help="a reverse proxy (address or network) whose X-Forwarded-For header is believed; may be repeated. Nobody "
        "else's is",
    )  # fmt: skip
    made.add_argument(
        "--heartbeat", type=_interval, metavar="SECONDS",
        help="how often workers are told to say that they are alive; one that is silent for three times as long leaves "
        "the pool (default: 20)",
    )  # fmt: skip
    made.add_argument(
        "--tls-cert", metavar="FILE", type=Path, help="certificate and its chain (PEM): the service answers https alone"
    )
    made.add_argument(
        "--tls-key", metavar="FILE", type=Path, help="its private key (PEM), if it is not in the same file"
    )
    made.add_argument(
        "--processes", type=_count, metavar="N",
        help="so many processes that answer, and one that watches over them: it replaces dead ones, and at SIGHUP all, "
        "without a failed request (default: one process, which nobody watches over)",
    )  # fmt: skip
    made.add_argument(
        "--metrics", type=_address, action="append", metavar="ADDRESS",
        help="an address that may read /metrics (for Prometheus); may be repeated (default: nobody may)",
    )  # fmt: skip
    made.add_argument(
        "--log-format", choices=["text", "json"], default="text", help="json: an object a line (default: %(default)s)"
    )
    made.add_argument("-v", "--verbose", action="store_true", help="log every request")
    made.add_argument("--ephemeral", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--report-ready", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--parent-pipe", action="store_true", help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until a signal.

    Returns:
        The exit code: 0 after a signal, 1 when it could not start or lost its store, 2 for wrong flags.
    """
    flags = parser().parse_args(arguments)
    if flags.starting_credits is not None and not 0 <= flags.starting_credits <= MOST_STARTING_CREDITS:
        parser().error(f"--starting-credits has to be from 0 to {MOST_STARTING_CREDITS}")
    if flags.tls_key and not flags.tls_cert:
        parser().error("--tls-key wants --tls-cert as well")
    if not 0 <= flags.port <= 65_535:
        parser().error("--port has to be from 0 to 65535")
    start_logging(flags.log_format, verbose=flags.verbose)
    lift_descriptor_limit()
    try:
        tls = server_context(flags.tls_cert, flags.tls_key) if flags.tls_cert else None
        if flags.processes is not None and LISTENER_VARIABLE not in os.environ:
            return supervise(flags, list(sys.argv[1:] if arguments is None else arguments), _wait_for_parent)
        return _serve(flags, tls)
    except (EC262Error, OSError, redis.RedisError) as reason:
        say(flags.log_format, f"ec262 discovery: {reason}", logging.ERROR)
        return 1


def _serve(flags: argparse.Namespace, tls: ssl.SSLContext | None) -> int:
    settings = settings_for(
        flags.network,
        flags.distinct,
        flags.starting_credits,
        registration=flags.registration,
        address_accounts=flags.address_accounts,
        address_grants=flags.address_grants,
        account_workers=flags.account_workers,
        neighbourhood_workers=flags.neighbourhood_workers,
        account_requests=flags.account_requests,
        address_requests=flags.address_requests,
        anonymous_requests=flags.anonymous_requests,
        address_connections=flags.address_connections,
        metrics=tuple(flags.metrics) if flags.metrics else None,
        proxies=tuple(flags.trusted_proxy) if flags.trusted_proxy else None,
        heartbeat_s=flags.heartbeat,
        ttl_s=3 * flags.heartbeat if flags.heartbeat else None,
    )
    over: AsyncResult = AsyncResult()
    soon, replaced = Event(), Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, _set, over, soon)
    listener = inherited_listener()
    if listener is not None:
        gevent.signal_handler(signal.SIGHUP, _set, over, replaced)
    with ExitStack() as stack:
        url, keeper = flags.redis, None
        if url is None:
            keeper = Keeper(start_server(flags.data_dir, ephemeral=flags.ephemeral))
            stack.callback(keeper.close)
            url = keeper.server.url
        try:
            discovery = create_discovery(settings, url, flags.data_dir)
            stack.callback(discovery.store.close)
            _reach(discovery.store, over)
        except (redis.RedisError, ValueError) as reason:
            where = f"--redis {flags.redis}" if flags.redis else "the embedded store"
            raise SetupError(
                f"{where}: {reason}; it takes redis://HOST:PORT/DB or unix:///PATH of a Redis that runs"
            ) from None
        server = Server(
            discovery.app,
            flags.host,
            flags.port,
            limits=Limits(
                max_body_bytes=max(route.max_body_bytes for route in routes_of("discovery")),
                max_connections=MOST_CONNECTIONS,
                max_connections_address=settings.address_connections,
                trusted=Believed(settings.proxies),
            ),
            access_log=log if flags.verbose else None,
            listener=listener,
            tls=tls,
        )
        calm_collector()
        # What waits at the relay must leave room for those who want something else.
        discovery.relay.most_waiting = min(settings.relay_waiting, server.max_connections // 2)
        server.start()
        stack.callback(report_last, discovery)
        stack.callback(server.stop)
        stack.callback(_drain, server, replaced, soon)
        stack.callback(discovery.relay.let_go)
        discovery.api.ending = over.ready
        discovery.gate.pause = server.stopping.wait
        discovery.meter.connections = lambda: server.connections
        stack.callback(discovery.relay.let_go)
        stack.callback(Upkeep(discovery, keeper, over).stop)
        if flags.parent_pipe:
            gevent.spawn(_wait_for_parent, over)
        address = server.url
        if flags.report_ready:
            print(json.dumps({"url": address}), flush=True)
        else:
            say(flags.log_format, f"discovery ({settings.network}) at {address}  -  Ctrl-C ends it")
        over.get()
    return 0


def calm_collector() -> None:
    """Has the garbage collector look through memory seldom: for the whole process, so only where that is ours alone.

    The records of a batch have no cycles and go when the batch is answered, but there are so many that the collector
    looks through them again and again meanwhile: by its own thresholds a fifth of discovery's processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


def _reach(store: Store, over: AsyncResult) -> None:
    """Returns when the store answers; a Redis that still loads its data is waited for.

    Raises:
        redis.RedisError: there is none, or none that lets us in.
    """
    loading = False
    while not over.ready():
        try:
            return store.ping()
        except redis.BusyLoadingError:
            if not loading:
                log.warning("Redis loads its data; the service begins when that is done")
            loading = True
            gevent.sleep(0.2)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: has to be a number, 0 or more")
    return int(text)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: has to be a number of seconds from 0.05 to 3600")
    return seconds


def _network(text: str) -> str:
    try:
        network = ip_network(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no IP address, and no network such as 10.0.0.0/8") from None
    if not network.prefixlen:
        raise argparse.ArgumentTypeError(
            f"{text} is everybody: any caller could then say that he is any other; name the proxy's own address"
        )
    return str(network)


def _address(text: str) -> str:
    try:
        return plain(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not an IP address") from None


def _drain(server: Server, replaced: Event, soon: Event) -> None:
    if replaced.is_set():
        server.drain(DRAIN_S, soon)


def _set(*events: Event | AsyncResult) -> None:
    for event in events:
        event.set()


def _count(text: str) -> int:
    number = _limit(text)
    if not 1 <= number <= MOST_PROCESSES:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: has to be from 1 to {MOST_PROCESSES}")
    return number


def _wait_for_parent(over: AsyncResult) -> None:
    """Ends the service when whoever started it is gone: its end of our standard input closes."""
    descriptor = sys.stdin.fileno()
    make_nonblocking(descriptor)
    while nb_read(descriptor, 4096):
        pass
    over.set()
    # Whatever a graceful end waits for, nobody is left to see it.
    gevent.spawn_later(3.0, os._exit, 0)
