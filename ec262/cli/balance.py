"""``ec262 balance``: what this machine's account has."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from ec262.config import DEFAULT_DISCOVERY_URL, discovery_url
from ec262.credentials import CredentialStore
from ec262.errors import ProblemError


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser("balance", help="what your account has", description=__doc__)
    parser.add_argument(
        "--discovery",
        metavar="URL",
        help=f"the discovery service (default: $EC262_DISCOVERY, that of `ec262 login`, or {DEFAULT_DISCOVERY_URL})",
    )
    parser.set_defaults(run=run)


def run(flags: argparse.Namespace) -> int:
    """Prints the balance; returns 0, or 1 where there is no account."""
    from ec262.discovery_client import DiscoveryClient  # noqa: PLC0415 - --help does without

    url = discovery_url(flags.discovery)
    account = CredentialStore().account(url)
    if account is None:
        print(f"no account at {url} yet: the first job or worker makes one", file=sys.stderr)
        return 1
    with DiscoveryClient(url, account.account_id, account.secret, retry_for_s=2.0) as client:
        state = client.account()
        print(f"account  {state.account_id}  at {url}")
        print(f"balance  {state.balance} credits, {state.escrow} more in escrow")
        with contextlib.suppress(ProblemError):  # a service that is older has no statements
            statement = client.statement(limit=0)
            print(f"to send  {statement.transferable}  (given {statement.gift}, not vested yet {statement.unvested})")
        print(f"earned   {state.earned}, spent {state.spent}, workers {state.workers}")
    return 0
