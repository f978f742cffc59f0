"""What an embedded server is told: where it listens, that it is durable, and where others read that back."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import tempfile
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ec262.errors import SetupError

Fsync = Literal["always", "everysec", "no"]
Transport = Literal["auto", "unix", "tcp"]

FILE = "redis.conf"
_SUN_PATH_MAX = 103  # bytes of a unix socket's path: 107 on Linux, 103 on macOS
_SETTING = re.compile(r'^(\w+) "(.*)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens.

    Attributes:
        url: what `redis.Redis.from_url` takes, ``unix://…`` or, with a password, ``redis://…``.
        socket_path: the unix socket, in a directory of its own; None on TCP.
        settings: what the server is told of it.
    """

    url: str
    socket_path: Path | None
    settings: dict[str, str]


def choose_place(data_dir: Path, transport: Transport) -> Place:
    """A unix socket where one can be, else loopback TCP with a password.

    A socket has no port that another program may take, and no other user of the machine can connect to it.

    Raises:
        SetupError: it has to be a socket, and none is possible.
    """
    path = None if transport == "tcp" else _choose_socket(data_dir)
    if path is not None:
        settings = {"port": "0", "unixsocket": str(path), "unixsocketperm": "700"}
        return Place("unix://" + urllib.parse.quote(str(path)), path, settings)
    if transport == "unix":
        raise SetupError(f"No unix socket can be made for {data_dir}; choose a directory with a shorter path.")
    port, password = _free_port(), secrets.token_urlsafe(32)
    settings = {"bind": "127.0.0.1", "port": str(port), "requirepass": password}
    return Place(f"redis://:{password}@127.0.0.1:{port}/0", None, settings)


def write_config(data_dir: Path, log_path: Path, fsync: Fsync, place: Place) -> Path:
    """Writes the server's whole configuration: a file, since everybody can read a command line.

    Returns:
        The path of the file (mode 0600: it may hold the password).
    Raises:
        SetupError: it cannot be written.
    """
    settings = {
        **place.settings,
        "protected-mode": "yes",
        "dir": str(data_dir),
        "logfile": str(log_path),
        "loglevel": "notice",
        "daemonize": "no",
        "supervised": "no",
        # One way to durability, the append-only file; a snapshot besides would only cost.
        "save": "",
        "appendonly": "yes",
        "appendfsync": fsync,
        "no-appendfsync-on-rewrite": "no",
        "auto-aof-rewrite-percentage": "100",
        # Reading so much again takes a second or two; to rewrite less is to rewrite often.
        "auto-aof-rewrite-min-size": "128mb",
        # Records are digests and ids: that takes time, and makes them no smaller.
        "rdbcompression": "no",
        # The torn last record of a power cut was never acknowledged.
        "aof-load-truncated": "yes",
        # The ledger must refuse rather than forget.
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
        "timeout": "0",
        # Whoever takes a backup is the only one who copies; there are no others to wait for.
        "repl-diskless-sync-delay": "0",
    }
    path = data_dir / FILE
    text = "# Written at every start; changes here are lost.\n"
    text += "".join(f"{name} {_quote(value)}\n" for name, value in settings.items())
    try:
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}.") from error
    return path


def told_url(data_dir: Path) -> str:
    """Where the server of a data directory was told to listen, read from its configuration."""
    told = dict(_SETTING.findall((data_dir / FILE).read_text()))
    if "unixsocket" in told:
        path = re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), told["unixsocket"])
        return "unix://" + urllib.parse.quote(path.encode("latin-1"))
    return f"redis://:{told['requirepass']}@127.0.0.1:{told['port']}/0"


def _quote(value: str) -> str:
    """Quotes a value for the configuration file (`sdssplitargs` of Redis: double quotes, \\xHH)."""
    return (
        '"'
        + "".join(
            chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}" for byte in os.fsencode(value)
        )
        + '"'
    )


def _choose_socket(data_dir: Path) -> Path | None:
    """Finds a private directory in which a unix socket can be made.

    Returns:
        The socket's path, in a directory of mode 0700 of its own; None where none is possible (paths too
        long, a file system without sockets).
    """
    candidates = [data_dir / "run"]
    # The limit is on the path as given, so a short link would do as well; a temporary directory is simpler.
    candidates += [Path(base) for base in dict.fromkeys((tempfile.gettempdir(), "/tmp"))]
    for candidate in candidates:
        directory: Path | None = None
        try:
            if candidate.name == "run":
                if len(os.fsencode(candidate / "redis.sock")) > _SUN_PATH_MAX:
                    continue
                shutil.rmtree(candidate, ignore_errors=True)  # of a server that was killed; the lock is ours
                candidate.mkdir(mode=0o700)
                directory = candidate
            else:
                directory = Path(tempfile.mkdtemp(prefix="ec262-", dir=candidate))
            path = directory / "redis.sock"
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(str(path))
            path.unlink()
            return path
        except OSError:
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
