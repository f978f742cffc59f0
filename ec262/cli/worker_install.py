"""``ec262 worker install-service`` and ``uninstall-service``: a worker that starts at boot, as a unit of systemd."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ec262.config import WORKER_PORT, home_directory
from ec262.errors import SetupError

NICENESS = 10
"""Of an installed worker, where neither its flags nor its file say: it runs beside whatever its owner does."""
_PASSED_ON = (
    *("EC262_DISCOVERY", "EC262_HOME", "EC262_PLAIN_HTTP", "EC262_CA_BUNDLE", "EC262_INVITATION", "XDG_CONFIG_HOME"),
)
_EXAMPLES = """\
examples:
  ec262 worker install-service --discovery https://discovery.example --only-idle --only-on-mains
  ec262 worker install-service --dry-run               show the unit and the commands, do nothing
  ec262 worker uninstall-service
  systemctl --user status ec262-worker                 and: journalctl --user -u ec262-worker

All flags of `ec262 worker` are taken and written into the unit; worker.toml counts for what they do not say.
"""


def add_parsers(subparsers: Any, add_flags: Callable[[argparse.ArgumentParser], None]) -> None:
    """Makes these commands of ``ec262 worker``; `add_flags` adds the flags of a worker."""
    install = subparsers.add_parser(
        "install-service",
        help="have a worker started at boot (systemd)",
        description="Writes a systemd unit of this user, starts it, and has it started at boot, also while nobody is "
        "logged in. It comes back after failures; it keeps trying while the network or discovery is away.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(install)
    install.set_defaults(run=run_install)
    uninstall = subparsers.add_parser(
        "uninstall-service",
        help="take that back",
        description="Lets the installed worker finish what it holds, and removes its unit.",
    )
    uninstall.add_argument("-P", "--port", type=int, help=f"of the worker (default: {WORKER_PORT})")
    uninstall.set_defaults(run=run_uninstall)
    for parser in (install, uninstall):
        parser.add_argument("--dry-run", action="store_true", help="only show what would be done")


def unit_name(port: int | None) -> str:
    """The unit of the worker on a port (None: the usual one)."""
    return f"ec262-worker{'' if port in (None, WORKER_PORT) else f'-{port}'}.service"


def unit_path(name: str, environ: Mapping[str, str]) -> Path:
    """Where a user's unit of that name is kept."""
    base = environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.config").expanduser()) / "systemd" / "user" / name


def unit_text(words: Sequence[str], environ: Mapping[str, str]) -> str:
    """The unit: `words` is the worker's command; what of `environ` concerns EC262 is passed on."""
    lines = [
        f"ExecStart={' '.join(_quoted(word).replace('$', '$$') for word in words)}",
        # A data directory or an executor may be named from here.
        f"WorkingDirectory=-{_printable(os.getcwd()).replace('%', '%%')}",
        *(f"Environment={_quoted(f'{name}={environ[name]}')}" for name in _PASSED_ON if environ.get(name)),
    ]
    return f"""\
# Written by `ec262 worker install-service`; `ec262 worker uninstall-service` removes it.
[Unit]
Description=EC262 worker: lends this machine
# It is started again however often it ends; it waits between tries.
StartLimitIntervalSec=0

[Service]
{chr(10).join(lines)}
Restart=on-failure
RestartSec=15
# Wrong flags, no sandbox, lost for as long as its owner lets it live: trying again would not help.
RestartPreventExitStatus=2 3 4
# The worker alone is told to leave; it ends its sandbox when what it holds is finished.
KillMode=mixed
TimeoutStopSec=10min
NoNewPrivileges=yes
LimitCORE=0

[Install]
WantedBy=default.target
"""


def run_install(args: argparse.Namespace) -> int:
    """Installs and starts; returns the exit code."""
    from ec262.worker.preferences import read_preferences  # noqa: PLC0415 - other commands do without

    preferences = read_preferences(home_directory())
    words = [sys.executable, "-m", "ec262.worker", *_flags_given()]
    if args.verbosity == 0:
        words.append("-v")
    if args.niceness is None and "niceness" not in preferences.settings:
        words += ["--niceness", str(NICENESS)]
    port = args.port if args.port is not None else preferences.settings.get("port")
    name = unit_name(port)
    path, text = unit_path(name, os.environ), unit_text(words, os.environ)
    commands = [
        ["systemctl", "--user", "daemon-reload"],
        ["systemctl", "--user", "enable", name],
        ["systemctl", "--user", "restart", name],  # also where it was installed before, otherwise
        ["loginctl", "enable-linger"],  # or it would end with the last login, and wait for the next
    ]
    if os.environ.get("EC262_ACCOUNT"):
        print(
            "worker: EC262_ACCOUNT and EC262_SECRET are not written into the unit: the service uses the account stored "
            f"in {home_directory()}, or makes one",
            file=sys.stderr,
        )
    if args.dry_run:
        print(f"# {path}\n{text}\n# then")
        print("\n".join(" ".join(each) for each in commands))
        return 0
    _require_systemd()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)  # an invitation may be in it
    path.write_text(text)
    for each in commands:
        _do(each)
    print(f"installed {path}; it is running: systemctl --user status {name}")
    return 0


def run_uninstall(args: argparse.Namespace) -> int:
    """Stops and removes; returns the exit code: 1 if there is none."""
    name = unit_name(args.port)
    path = unit_path(name, os.environ)
    commands = [["systemctl", "--user", "disable", "--now", name], ["systemctl", "--user", "daemon-reload"]]
    if args.dry_run:
        print(f"{' '.join(commands[0])}\nrm {path}\n{' '.join(commands[1])}")
        return 0
    if not path.exists():
        print(f"worker: there is no {path}", file=sys.stderr)
        return 1
    _require_systemd()
    _do(commands[0])
    path.unlink()
    _do(commands[1])
    print(f"removed {path}")
    return 0


def _flags_given() -> list[str]:
    """The worker's flags as they were typed after ``install-service``.

    Raises:
        SetupError: some were typed before it, where they would be lost.
    """
    at = sys.argv.index("install-service")
    if sys.argv[1:at] not in ([], ["worker"]):
        raise SetupError("write the worker's flags after install-service")
    return [word for word in sys.argv[at + 1 :] if word != "--dry-run"]


def _quoted(word: str) -> str:
    """A word as systemd reads it back (systemd.syntax(7), "Quoting"; "%" stands for something there)."""
    text = _printable(word).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    plain = text == word and word and not set(word) & set(" ';$")
    return word if plain else f'"{text}"'


def _printable(word: str) -> str:
    """The word itself.

    Raises:
        SetupError: a line break or the like, which a unit cannot hold.
    """
    if not word.isprintable():
        raise SetupError(f"{word!r} cannot be written into a unit")
    return word


def _require_systemd() -> None:
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        raise SetupError(
            "systemd does not run this machine: have your system start `ec262 worker` at boot in its own way (cron's "
            "@reboot line, an init script, or the Dockerfile that comes along); --dry-run shows what systemd would do"
        )


def _do(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True, timeout=900)
    except (OSError, subprocess.SubprocessError) as reason:
        raise SetupError(f"{' '.join(command)}: {reason}") from None
