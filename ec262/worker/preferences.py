"""Preferences: what a volunteer wrote into ``worker.toml``, beside the credentials.

=====================  ==================================================================  ==========================
key                    value                                                               setting
=====================  ==================================================================  ==========================
``discovery``          URL of the service                                                  (where no flag names one)
``port``, ``slots``    numbers                                                             the same
``host``, ``sandbox``  texts                                                               the same
``relay``              ``"auto"``, ``"always"`` or ``"never"``                             the same
``ca_bundle``          a file                                                              the same
``min_price``          number                                                              the same
``niceness``           0 to 19                                                             the same
``memory``             bytes, or a text such as ``"6G"``                                   ``memory_bytes``
``only_idle``          true or false                                                       the same
``idle_load``          0 to 1                                                              the same
``idle_after``         seconds, or a text such as ``"5m"``                                 ``idle_after_s``
``only_on_mains``      true or false                                                       the same
``hours``              list such as ``["22:00-07:00", "sat-sun@00:00-24:00"]``             the same
``max_task_cpu``       seconds, or ``"10m"``                                               ``max_task_cpu_s``
``max_task_input``     bytes, or ``"64M"``                                                 ``max_task_input_bytes``
``allow_accounts``     list of ids; also ``deny_accounts``, ``allow_jobs``, ``deny_jobs``  the same
``max_living``         seconds, or ``"12h"``                                               ``max_living_s``
``drain``              seconds, or ``"5m"``                                                ``drain_s``
``metrics_port``       number; also ``metrics_host``                                       the same
``allow_modules``      list of names                                                       the same
``data_dirs``          table: name = directory or URL                                      the same
=====================  ==================================================================  ==========================
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ec262.config import WorkerSettings
from ec262.errors import SetupError

FILE = "worker.toml"
LIVE = (
    *("only_idle", "idle_load", "idle_after_s", "only_on_mains", "hours", "max_task_cpu_s", "max_task_input_bytes"),
    *("allow_accounts", "deny_accounts", "allow_jobs", "deny_jobs", "max_living_s", "drain_s"),
)
"""Settings that count as soon as the file has changed; the others from the next start on."""
_MOST_BYTES = 1024 * 1024
_TIMES_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class Preferences:
    """What the file says.

    Attributes:
        settings: by the names of `WorkerSettings`.
        discovery: empty: it names none.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    discovery: str = ""


def read_preferences(home: Path) -> Preferences:
    """The preferences in a directory; nothing where there is no file.

    Raises:
        SetupError: it cannot be read, is no TOML, has an unknown key, or a value that its key does not take.
    """
    path = home / FILE
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8")
        content = tomllib.loads(text)
    except FileNotFoundError:
        return Preferences()
    except OSError as reason:
        raise SetupError(f"{path} cannot be read: {reason.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as reason:
        raise SetupError(f"{path} is no TOML: {reason}") from None
    settings: dict[str, Any] = {}
    discovery = ""
    for key, value in content.items():
        if key not in _KEYS:
            raise SetupError(f"{path}: there is no preference {key!r}; there are {', '.join(sorted(_KEYS))}")
        name, reader = _KEYS[key]
        try:
            made = reader(value)
        except (TypeError, ValueError) as reason:
            raise SetupError(f"{path}: {key} = {value!r}: {reason}") from None
        if key == "discovery":
            discovery = made
        else:
            settings[name] = made
    return Preferences(settings, discovery)


class Watched:
    """The file, looked at again and again.

    Args:
        home: the directory that it is in.
        make: settings from what the file says, flags and environment included.
    """

    def __init__(self, home: Path, make: Callable[[Preferences], WorkerSettings]) -> None:
        self._home = home
        self._make = make
        self._mark = self._look()

    def changed(self, before: WorkerSettings) -> WorkerSettings | None:
        """`before` with what the file says now, as far as that counts at once; None: it did not change.

        Raises:
            SetupError: as `read_preferences`; the file is not read again until it changes again.
        """
        mark = self._look()
        if mark == self._mark:
            return None
        self._mark = mark
        fresh = self._make(read_preferences(self._home))
        return replace(before, **{name: getattr(fresh, name) for name in LIVE})

    def _look(self) -> tuple[int, int, int]:
        try:
            about = (self._home / FILE).stat()
        except OSError:
            return (0, 0, 0)
        return about.st_mtime_ns, about.st_size, about.st_ino


def choose(home: Path, **chosen: Any) -> tuple[WorkerSettings, str, Watched]:
    """Settings as chosen (None: not chosen), then as the environment says, then as the file in `home` does.

    Returns:
        The settings; the discovery service that the file names, or nothing; and the file, to be looked at again.

    Raises:
        SetupError: as `read_preferences`, and as `WorkerSettings.from_environment`.
    """

    def make(preferences: Preferences) -> WorkerSettings:
        return WorkerSettings.from_environment(preferences=preferences.settings, **chosen)

    watched = Watched(home, make)
    preferences = read_preferences(home)
    return make(preferences), preferences.discovery, watched


def read_seconds(value: object) -> float:
    """Seconds from a number, or from a text such as ``90``, ``10m``, ``12h``.

    Raises:
        ValueError: it is none.
    """
    return float(_with_unit(value, _TIMES_S, str.lower, "a number of seconds, or a text such as '10m' or '12h'"))


def read_size(value: object) -> int:
    """Bytes from a number, or from a text such as ``512M`` or ``6G``.

    Raises:
        ValueError: it is none.
    """
    return int(_with_unit(value, _SIZES, str.upper, "a number of bytes, or a text such as '512M' or '6G'"))


def _with_unit(value: object, units: Mapping[str, int], case: Callable[[str], str], form: str) -> float:
    text = str(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]?)\s*", text)
    unit = None if found is None else units.get(case(found[2]))
    if found is None or unit is None:
        raise ValueError(f"has to be {form}")
    return float(found[1]) * unit


def _read_switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("has to be true or false")
    return value


def _read_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("has to be a whole number")
    return value


def _read_share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("has to be a number from 0 to 1")
    return float(value)


def _read_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("has to be a text")
    return value


def _read_texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("has to be a list of texts")
    return tuple(value)


def _read_places(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError("has to be a table: name = directory or URL")
    return tuple(value.items())


_KEYS: dict[str, tuple[str, Callable[[object], Any]]] = {
    "discovery": ("", _read_text),
    "port": ("port", _read_count),
    "host": ("host", _read_text),
    "slots": ("slots", _read_count),
    "sandbox": ("sandbox", _read_text),
    "relay": ("relay", _read_text),
    "ca_bundle": ("ca_bundle", _read_text),
    "min_price": ("min_price", _read_count),
    "niceness": ("niceness", _read_count),
    "memory": ("memory_bytes", read_size),
    "only_idle": ("only_idle", _read_switch),
    "idle_load": ("idle_load", _read_share),
    "idle_after": ("idle_after_s", read_seconds),
    "only_on_mains": ("only_on_mains", _read_switch),
    "hours": ("hours", _read_texts),
    "max_task_cpu": ("max_task_cpu_s", read_seconds),
    "max_task_input": ("max_task_input_bytes", read_size),
    "allow_accounts": ("allow_accounts", _read_texts),
    "deny_accounts": ("deny_accounts", _read_texts),
    "allow_jobs": ("allow_jobs", _read_texts),
    "deny_jobs": ("deny_jobs", _read_texts),
    "max_living": ("max_living_s", read_seconds),
    "drain": ("drain_s", read_seconds),
    "metrics_port": ("metrics_port", _read_count),
    "metrics_host": ("metrics_host", _read_text),
    "allow_modules": ("allow_modules", _read_texts),
    "data_dirs": ("data_dirs", _read_places),
}
