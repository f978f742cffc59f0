"""The ``ec262`` command: one module a subcommand."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ec262 import __version__
from ec262.cli import (
    account,
    balance,
    collect,
    credits,
    explain,
    jobs,
    leaderboard,
    ledger,
    login,
    operator,
    run,
    simulate,
    worker,
)
from ec262.errors import EC262Error

EXAMPLES = """\
examples:
  ec262 discovery --network private       run a discovery service
  ec262 worker -v                         lend this machine
  ec262 run wordcount book.txt            count words on it
  ec262 balance                           what your account has
  ec262 jobs                              how your jobs stand

A job is a Python program: see `example.py`, or `python -c "import ec262; help(ec262)"`.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns its exit code (2: wrong flags)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["discovery"]:
        # Discovery is a process of its own kind: gevent patches it, and must do so before anything else is imported.
        os.execv(sys.executable, [sys.executable, "-m", "discovery", *given[1:]])
    parser = argparse.ArgumentParser(
        prog="ec262",
        description="A credit-based volunteer compute network.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ec262 {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")
    commands.add_parser("discovery", help="run a discovery service", add_help=False)
    run.add_parser(commands)
    collect.add_parser(commands)
    worker.add_parser(commands)
    balance.add_parser(commands)
    jobs.add_parser(commands)
    explain.add_parser(commands)
    credits.add_parser(commands)
    ledger.add_parser(commands)
    login.add_parser(commands)
    account.add_parser(commands)
    leaderboard.add_parser(commands)
    operator.add_parser(commands)
    simulate.add_parser(commands)
    flags, rest = parser.parse_known_args(given)
    if rest and (not hasattr(flags, "words") or any(each.startswith("-") and each != "-" for each in rest)):
        commands.choices[flags.command].error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        flags.words += rest  # argparse takes words before the first flag alone
    try:
        return int(flags.run(flags))
    except EC262Error as reason:
        print(f"ec262: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
