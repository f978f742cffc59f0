"""Settings: frozen, with units in their names, and what the environment overrides.

=======================  =======================================================================================
variable                 overrides
=======================  =======================================================================================
``EC262_DISCOVERY``      the discovery service to use, such as ``https://discovery.example:26262``
``EC262_HOME``           where credentials are kept
``EC262_WORKER_<NAME>``  the field ``name`` of `WorkerSettings`, such as ``EC262_WORKER_SLOTS=2``
``EC262_INVITATION``     an invitation, for accounts that workers and jobs make by themselves
``EC262_PLAIN_HTTP``     ``1``: secrets may travel without TLS beyond this machine (a network you trust)
``EC262_CA_BUNDLE``      a PEM file: the authorities that discovery's certificate is believed from, instead of the usual
``EC262_PRIVATE_PEERS``  ``1``: jobs connect to workers on this machine and in private networks also where a discovery
                         elsewhere names them (a network you trust)
=======================  =======================================================================================

``EC262_ACCOUNT`` and ``EC262_SECRET`` are read by `ec262.credentials`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ec262.errors import SetupError

DISCOVERY_PORT = 26262
WORKER_PORT = 11235
DEFAULT_DISCOVERY_URL = f"http://127.0.0.1:{DISCOVERY_PORT}"

_SCHEME_PORTS = {"http": 80, "https": 443}
_MEBIBYTE = 1024 * 1024
_STORAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,57}")
MOST_ASKED = 100
"""As in `ec262.protocol.messages`."""
_ID = re.compile(r"[0-9a-f]{16,32}")
MOST_NAMED = 16
"""As `ec262.protocol.messages.MAX_NAMED`."""
MOST_DATA_DIRS = 15
"""A worker registers 16 capabilities at most, one of them its executor."""


def core_count() -> int:
    """Cores this process may use, at least one."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a volunteer may choose, and constants of the worker that tests shorten. Sizes in bytes, times in seconds.

    Attributes:
        port: TCP port; 0 for any that is free (then the worker has a new identity each time).
        host: address to listen on; empty: this machine alone where discovery is on it, else every address.
        slots: tasks computed at the same time.
        sandbox: ``native``, or ``none``: run strangers' code unconfined.
        min_price: least that a replica is computed for, as a multiple of the usual price.
        relay: serve through discovery's relay: ``auto``: where nobody can connect to this worker; ``always``: do not
            listen at all; ``never``.
        ca_bundle: PEM file of the authorities that discovery's certificate is believed from; empty: as the environment
            says (``EC262_CA_BUNDLE``), else the usual ones.
        relayed_bytes: memory for parts of relayed requests and answers.
        allow_modules: modules that jobs may import beside the sandbox's own list.
        data_dirs: shared storages that tasks may read, as (name, directory or URL); in the environment
            ``EC262_WORKER_DATA_DIRS="books=/data/books; logs=s3://bucket/logs"``.
        read_bytes: most bytes of a shared storage that one task may read.
        read_s: longest that reading them may take.
        poll_wait_s: longest a poll for results waits.
        linger_s: how long the first result waits for others to travel with, while the worker has enough to do.
        answer_results: most results in one answer to a poll.
        answer_bytes: after so many bytes of results an answer is full.
        held_bytes: memory for inputs and results that wait; beyond it nothing is taken.
        program_bytes: memory for the programs of jobs.
        job_idle_s: how long the program of a job is kept that has nothing to do here.
        unit_s: how long one job keeps a slot while others wait for it.
        unit_idle_s: how long it keeps a slot that nobody waits for while it has no task there.
        show_receipts_after_s: a lease finished so long ago and still open at discovery has its receipt shown there.
        retry_s: first pause before discovery is asked again when it does not answer; doubles up to `retry_max_s`.
        drain_s: how long a worker that leaves waits until its results are fetched.
        niceness: of the worker's processes, 0 to 19; the command sets it, `run_worker` leaves the program's alone.
        memory_bytes: most memory for tasks and what waits: fewer slots where it does not suffice for all. 0: no limit.
        only_idle: work only while nobody else uses the machine: others need less than the share `idle_load` of its
            processors, and no terminal has been typed at, for `idle_after_s`.
        only_on_mains: not on battery.
        hours: when to work, such as ``22:00-07:00`` or ``sat-sun@00:00-24:00``, local time; none: always.
        max_task_cpu_s: the longest task that is taken, by its CPU limit. 0: any.
        max_task_input_bytes: the largest that is taken, by its sealed input. 0: any.
        allow_accounts, allow_jobs: ids of whom alone to serve; none: everybody.
        deny_accounts, deny_jobs: ids of whom not to serve.
        max_living_s: end after so long without a word from discovery, the time the machine was suspended aside. 0:
            never.
        metrics_port: where Prometheus can ask for metrics; 0: any port that is free; None: nowhere.
        metrics_host: the address of that port.
        look_every_s: how often sensors, preferences and the clock are looked at.
        sensors: a file of JSON to read instead of this machine's sensors (see `ec262.worker.sensors`); for tests.
    """

    port: int = WORKER_PORT
    host: str = ""
    slots: int = field(default_factory=core_count)
    sandbox: str = "native"
    min_price: int = 1
    relay: str = "auto"
    ca_bundle: str = ""
    relayed_bytes: int = 256 * _MEBIBYTE
    allow_modules: tuple[str, ...] = ()
    data_dirs: tuple[tuple[str, str], ...] = ()
    read_bytes: int = 256 * _MEBIBYTE
    read_s: float = 120.0
    poll_wait_s: float = 30.0
    linger_s: float = 0.030
    answer_results: int = 512
    answer_bytes: int = 16 * _MEBIBYTE
    held_bytes: int = 1024 * _MEBIBYTE
    program_bytes: int = 256 * _MEBIBYTE
    job_idle_s: float = 600.0
    unit_s: float = 1.0
    unit_idle_s: float = 0.1
    show_receipts_after_s: float = 30.0
    retry_s: float = 0.5
    retry_max_s: float = 15.0
    drain_s: float = 30.0
    niceness: int = 0
    memory_bytes: int = 0
    only_idle: bool = False
    idle_load: float = 0.25
    idle_after_s: float = 120.0
    only_on_mains: bool = False
    hours: tuple[str, ...] = ()
    max_task_cpu_s: float = 0.0
    max_task_input_bytes: int = 0
    allow_accounts: tuple[str, ...] = ()
    deny_accounts: tuple[str, ...] = ()
    allow_jobs: tuple[str, ...] = ()
    deny_jobs: tuple[str, ...] = ()
    max_living_s: float = 0.0
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    look_every_s: float = 2.0
    sensors: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise SetupError(f"port {self.port} is not between 0 and 65535")
        if not 1 <= self.slots <= 1024:
            raise SetupError(f"{self.slots} slots: a worker has 1 to 1024")
        if not 1 <= self.min_price <= MOST_ASKED:
            raise SetupError(f"a price of {self.min_price}: a worker may ask for 1 to {MOST_ASKED}")
        if self.sandbox not in ("native", "none"):
            raise SetupError(f"there is no sandbox {self.sandbox!r}: choose native or none")
        if self.relay not in ("auto", "always", "never"):
            raise SetupError(f"there is no relay {self.relay!r}: choose auto, always or never")
        if len({name for name, _ in self.data_dirs}) < len(self.data_dirs) or len(self.data_dirs) > MOST_DATA_DIRS:
            raise SetupError(f"data directories have different names, and there are at most {MOST_DATA_DIRS}")
        for name, root in self.data_dirs:
            if not _STORAGE.fullmatch(name) or not root:
                raise SetupError(f"{name}={root}: a data directory is NAME=DIRECTORY or NAME=URL, NAME of a-z0-9._-")
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float | int) and not value >= 0:  # NaN, too
                raise SetupError(f"{each.name} has to be a number, zero or more")
        if self.niceness > 19:
            raise SetupError(f"a niceness of {self.niceness}: it is 0 to 19")
        if self.metrics_port is not None and self.metrics_port > 65_535:
            raise SetupError(f"port {self.metrics_port} is not between 0 and 65535")
        for name in ("allow_accounts", "deny_accounts", "allow_jobs", "deny_jobs"):
            ids = getattr(self, name)
            if len(ids) > MOST_NAMED or not all(_ID.fullmatch(each) for each in ids):
                raise SetupError(f"{name}: at most {MOST_NAMED} ids, each of 16 to 32 hexadecimal digits")

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, preferences: Mapping[str, Any] | None = None, **chosen: Any
    ) -> WorkerSettings:
        """Settings as chosen (None: not chosen), then as the environment says, then as preferred, then the defaults.

        Raises:
            SetupError: a variable that is not what its field takes.
        """
        environ = os.environ if environ is None else environ
        values = {name: value for name, value in chosen.items() if value is not None}
        for each in fields(cls):
            variable = f"EC262_WORKER_{each.name.upper()}"
            text = environ.get(variable)
            if text is None or each.name in values:
                continue
            try:
                values[each.name] = _READERS[str(each.type)](text)
            except ValueError:
                raise SetupError(f"{variable}={text!r} is not a value for {each.name}") from None
        return cls(**{**(preferences or {}), **values})


def _read_switch(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.strip().lower() not in known:
        raise ValueError(text)
    return known[text.strip().lower()]


def _read_words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.replace(",", " ").split() if word)


def read_data_dir(text: str) -> tuple[str, str]:
    """A shared storage from ``NAME=DIRECTORY`` or ``NAME=URL``.

    Raises:
        ValueError: it is not.
    """
    name, equals, root = text.strip().partition("=")
    if not equals or not root or not _STORAGE.fullmatch(name):
        raise ValueError(text)
    return name, root


def _read_data_dirs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(read_data_dir(item) for item in text.split(";") if item.strip())


_READERS: dict[str, Any] = {
    "bool": _read_switch,
    "int": int,
    "int | None": int,
    "float": float,
    "str": str,
    "tuple[str, ...]": _read_words,
    "tuple[tuple[str, str], ...]": _read_data_dirs,
}


EMBEDDED = "embedded"
"""Instead of the URL of a discovery service: a network of this machine, whatever else is configured."""
_DEFAULT_FILE = "discovery"


def configured_discovery(environ: Mapping[str, str] | None = None) -> str | None:
    """The discovery service that the environment names, else that of ``ec262 login``; None: none, or the embedded one.

    Raises:
        SetupError: what is configured is not the URL of a service, or cannot be read.
    """
    environ = os.environ if environ is None else environ
    url = environ.get("EC262_DISCOVERY", "").strip()
    if url == EMBEDDED:
        return None
    if not url:
        path = home_directory(environ) / _DEFAULT_FILE
        try:
            url = path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as reason:
            raise SetupError(f"{path} cannot be read: {reason}") from None
    return normalise_url(url) if url else None


def configure_discovery(url: str) -> Path:
    """Makes a service the one to use where neither a flag nor the environment names one; returns the file that says so.

    Raises:
        SetupError: not the URL of a service, or the file cannot be written.
    """
    path = home_directory() / _DEFAULT_FILE
    fresh = path.with_name(f"{_DEFAULT_FILE}.{os.getpid()}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.write_text(normalise_url(url) + "\n", encoding="utf-8")
        os.replace(fresh, path)
    except OSError as reason:
        raise SetupError(f"{path} cannot be written: {reason.strerror}") from None
    return path


def configured_invitation(environ: Mapping[str, str] | None = None) -> str:
    """The invitation that the environment has for new accounts; empty: none."""
    return (os.environ if environ is None else environ).get("EC262_INVITATION", "").strip()


def configured_ca_bundle(environ: Mapping[str, str] | None = None) -> str:
    """The file with the authorities that the environment wants believed; empty: the usual ones."""
    return (os.environ if environ is None else environ).get("EC262_CA_BUNDLE", "").strip()


def private_peers_allowed(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the environment lets jobs connect to any loopback or private address that discovery names."""
    return (os.environ if environ is None else environ).get("EC262_PRIVATE_PEERS", "").strip() == "1"


def discovery_url(chosen: str | None = None, preferred: str = "") -> str:
    """The discovery service to use: as chosen, else as the environment says, else as preferred, else on this machine.

    Raises:
        SetupError: not the URL of a service.
    """
    if chosen:
        return normalise_url(chosen)
    return configured_discovery() or normalise_url(preferred or DEFAULT_DISCOVERY_URL)


def normalise_url(url: str) -> str:
    """One spelling for each service: lower case, no default port, no slash at the end; a bare ``host:port`` is http.

    Raises:
        SetupError: not the URL of a service.
    """
    text = url.strip()
    if "://" not in text:
        text = f"http://{text}"
    try:
        split = urlsplit(text)
        port = split.port
    except ValueError:
        raise SetupError(f"{url!r} is not the URL of a discovery service") from None
    scheme, host = split.scheme.lower(), (split.hostname or "").lower()
    odd = split.query or split.fragment or not text.isprintable() or " " in text
    if scheme not in _SCHEME_PORTS or not host or odd:
        raise SetupError(f"{url!r} is not the URL of a discovery service; it looks like {DEFAULT_DISCOVERY_URL}")
    if split.username is not None:
        raise SetupError("a discovery URL holds no account: set EC262_ACCOUNT and EC262_SECRET instead")
    shown = f"[{host}]" if ":" in host else host
    tail = "" if port is None or port == _SCHEME_PORTS[scheme] else f":{port}"
    return f"{scheme}://{shown}{tail}{split.path.rstrip('/')}"


def is_loopback(url: str) -> bool:
    """Whether the service at `url` is on this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_private_channel(url: str) -> None:
    """Refuses to send secrets where others can read them.

    Raises:
        SetupError: plain HTTP to another machine, and the environment does not allow it.
    """
    if url.startswith("https:") or is_loopback(url) or os.environ.get("EC262_PLAIN_HTTP") == "1":
        return
    raise SetupError(
        f"{url} is another machine and not https: account secrets and worker keys would travel readable for everybody "
        "on the way. Use https, or set EC262_PLAIN_HTTP=1 on a network that you trust"
    )


def home_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where EC262 keeps its files: ``EC262_HOME``, else ``ec262`` in the XDG configuration directory."""
    environ = os.environ if environ is None else environ
    if chosen := environ.get("EC262_HOME"):
        return Path(chosen).expanduser()
    base = environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path("~/.config").expanduser()) / "ec262"
