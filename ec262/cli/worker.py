"""``ec262 worker``: lends this machine to foremen that pay for it in credits."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ec262.cli import worker_control, worker_install, worker_terms
from ec262.config import (
    DEFAULT_DISCOVERY_URL,
    MOST_ASKED,
    WORKER_PORT,
    WorkerSettings,
    discovery_url,
    home_directory,
    read_data_dir,
)
from ec262.errors import EC262Error, ProblemError, SandboxUnavailable, SetupError, WorkerLost

if TYPE_CHECKING:
    from ec262.worker.executor import JobExecutor
    from ec262.worker.service import Worker

EXAMPLES = """\
examples:
  python worker.py                                     for a discovery service on this machine
  python worker.py -v -P 11236                         a second worker, telling what it does
  python worker.py --discovery https://discovery.example
  python worker.py --relay always                      listen nowhere: discovery brings the work
  python worker.py --data-dir books=/data/books        tasks may read files in there
  python worker.py --check                             what this machine can confine strangers' code with
  python worker.py --only-idle --only-on-mains --hours 22:00-07:00 --niceness 10
  ec262 worker status                                  what the workers here do, earn, and why they are idle
  ec262 worker pause --for 2h                          and `ec262 worker resume`
  ec262 worker install-service --discovery https://discovery.example     start at boot (systemd)

What is not said here is read from worker.toml beside the credentials (~/.config/ec262): see docs/volunteering.md.
Ctrl-C lets the worker finish what it holds; a second Ctrl-C ends it at once.

exit codes: 0 left in good order, 1 could not start or had to give up, 2 wrong flags, 3 no sandbox to be had
(--check: 0 safe, 3 not), 4 no word from discovery for --max-living, 5 nobody can connect to this machine
(--relay never)
"""

EXIT_OK, EXIT_FAILED, EXIT_NO_SANDBOX, EXIT_LOST, EXIT_UNREACHABLE = 0, 1, 3, 4, 5


def configure(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the worker's flags."""
    add_flags(parser)
    parser.description = "Lends this machine: computes strangers' tasks in a sandbox, and earns credits."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--check",
        action="store_true",
        help="show the sandbox's layers here, attack it, and end: exit code 0 if it holds, 3 if not",
    )
    parser.add_argument("--report-ready", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--parent-pipe", action="store_true", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(title="commands for workers that run", metavar="COMMAND")
    worker_control.add_parsers(commands)
    worker_install.add_parsers(commands, add_flags)
    return parser


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how to work."""
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument("-v", "--verbose", action="store_const", const=1, dest="verbosity", help="a line for each event")
    loud.add_argument("-V", "--very-verbose", action="store_const", const=2, dest="verbosity", help="everything")
    parser.add_argument(
        "-P", "--port", type=_port, help=f"port to listen on, 0 for any that is free (default: {WORKER_PORT})"
    )
    parser.add_argument(
        "--host", help="address to listen on (default: 127.0.0.1 if discovery is on this machine, else every address)"
    )
    parser.add_argument(
        "--discovery", metavar="URL",
        help=f"the discovery service (default: $EC262_DISCOVERY, that of `ec262 login`, or {DEFAULT_DISCOVERY_URL})",
    )  # fmt: skip
    parser.add_argument("--slots", type=_count, metavar="N", help="tasks computed at a time (default: one a core)")
    parser.add_argument(
        "--min-price", type=_price, metavar="N",
        help="compute only for foremen that pay so many times the usual price (default: 1); cheaper workers come first",
    )  # fmt: skip
    parser.add_argument(
        "--relay", choices=["auto", "always", "never"],
        help="serve through discovery's relay: auto: where nobody can connect to this machine (default); always: "
        "listen nowhere, and keep the address to yourself; never: then do not start",
    )  # fmt: skip
    parser.add_argument(
        "--ca-bundle", metavar="FILE",
        help="authorities (PEM) that discovery's certificate is believed from (default: $EC262_CA_BUNDLE, or the "
        "system's)",
    )  # fmt: skip
    parser.add_argument(
        "--sandbox", choices=["native", "none"],
        help="native: strangers' code is confined, or the worker does not start (default); none: it runs all the same, "
        "and can do whatever you can",
    )  # fmt: skip
    parser.add_argument(
        "--allow-module", action="append", metavar="NAME", default=None,
        help="a module that jobs may import beside the sandbox's own, such as numpy; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--data-dir", action="append", type=_data_dir, metavar="NAME=DIR", default=None,
        help="a directory or URL that all machines of a cluster share: tasks that name it read their input there, and "
        "every job may read all of it; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--executor", metavar="MODULE:CLASS",
        help="a JobExecutor: tasks of programs for it are computed by what is installed here (see docs/cluster.md)",
    )  # fmt: skip
    worker_terms.add_flags(parser)
    parser.set_defaults(verbosity=0)


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    configure(subparsers.add_parser("worker", help="lend this machine")).set_defaults(run=run)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command as a program of its own; returns the exit code."""
    prog = "worker.py" if os.path.basename(sys.argv[0]) == "worker.py" else "ec262 worker"
    args = configure(argparse.ArgumentParser(prog=prog)).parse_args(arguments)
    try:
        return int(getattr(args, "run", run)(args))
    except EC262Error as reason:
        print(f"worker: {reason}", file=sys.stderr)
        return EXIT_FAILED


def run(args: argparse.Namespace) -> int:
    """Runs a worker until it is told to leave; returns the exit code."""
    from ec262.worker.preferences import choose  # noqa: PLC0415 - other commands and --help do without the servers
    from ec262.worker.service import run_worker  # noqa: PLC0415 - as above

    try:
        settings, preferred, watched = choose(
            home_directory(),
            port=args.port,
            host=args.host,
            slots=args.slots,
            sandbox=args.sandbox,
            min_price=args.min_price,
            relay=args.relay,
            ca_bundle=args.ca_bundle,
            allow_modules=tuple(args.allow_module) if args.allow_module else None,
            data_dirs=tuple(args.data_dir) if args.data_dir else None,
            **worker_terms.chosen(args),
        )
        if args.check:
            return check(settings)
        _be_nice(settings.niceness)
        run_worker(
            settings=settings,
            watched=watched,
            discovery=discovery_url(args.discovery, preferred),
            executor=_executor(args.executor) if args.executor else None,
            verbosity=args.verbosity,
            on_ready=_report if args.report_ready else None,
            parent_pipe=args.parent_pipe,
        )
    except SandboxUnavailable as reason:
        print(f"worker: {reason}", file=sys.stderr)
        return EXIT_NO_SANDBOX
    except WorkerLost as reason:
        print(f"worker: {reason}", file=sys.stderr)
        return EXIT_LOST
    except EC262Error as reason:
        print(f"worker: {reason}", file=sys.stderr)
        unreachable = isinstance(reason, ProblemError) and reason.code == "unreachable"
        return EXIT_UNREACHABLE if unreachable else EXIT_FAILED
    return EXIT_OK


def _be_nice(niceness: int) -> None:
    """Lets others go first; all processes of the worker are started after this and inherit it."""
    if niceness <= os.getpriority(os.PRIO_PROCESS, 0):
        return  # only root may take that back
    os.setpriority(os.PRIO_PROCESS, 0, niceness)


def check(settings: WorkerSettings) -> int:
    """Prints the sandbox's layers on this machine and how attacks on it ended; returns the exit code."""
    from ec262.sandbox import selftest  # noqa: PLC0415 - as above
    from ec262.worker.service import policy_of  # noqa: PLC0415

    report = selftest.check(policy_of(settings))
    print(f"layers of the sandbox on this machine (lane {report.lane}):")
    for layer in report.layers:
        print(f"  {'yes' if layer.granted else 'NO ':3}  {layer.name:18} {layer.meaning}")
    print("\nattacks tried, with the language layer off:")
    for trial in report.trials:
        print(f"  {'stopped' if trial.held else 'ESCAPED':7}  {trial.name:21} {trial.ending}")
    if not report.trials:
        print("  none: without seccomp they would hit this machine")
    if report.safe:
        print("\nsafe: this machine can confine strangers' code")
        return EXIT_OK
    print("\nNOT SAFE: this machine cannot confine strangers' code; a worker starts only with --sandbox none")
    return EXIT_NO_SANDBOX


def _report(worker: Worker) -> None:
    """One line for the program that started this one."""
    standing = worker.registration.standing
    ready = {
        "port": worker.server.port,
        "url": worker.server.url,
        "worker_id": standing.worker_id if standing else "",
        "pid": os.getpid(),
    }
    print(json.dumps(ready), flush=True)


def _executor(name: str) -> JobExecutor:
    """An executor by module and class; the directory the command was started in is looked in, too."""
    from ec262.worker.executor import JobExecutor  # noqa: PLC0415 - as above

    module, _, inner = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        kind = getattr(importlib.import_module(module), inner)
        made = kind()
    except (ImportError, AttributeError, TypeError, ValueError) as reason:
        raise SetupError(f"--executor {name}: {reason}") from None
    if not isinstance(made, JobExecutor):
        raise SetupError(f"--executor {name}: not a subclass of ec262.JobExecutor")
    return made


def _data_dir(text: str) -> tuple[str, str]:
    try:
        return read_data_dir(text)
    except ValueError:
        raise argparse.ArgumentTypeError("has to be NAME=DIRECTORY or NAME=URL, the name of a-z0-9._-") from None


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


def _price(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MOST_ASKED:
        raise argparse.ArgumentTypeError(f"has to be a number from 1 to {MOST_ASKED}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError("has to be a number from 1 to 1024")
    return int(text)
