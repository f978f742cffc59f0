"""``ec262 balance``: what this machine's account has."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import requests

from ec262.config import DEFAULT_DISCOVERY_URL, discovery_url
from ec262.credentials import CredentialStore
from ec262.errors import DiscoveryUnreachable, Malformed, NetworkError
from ec262.protocol import messages as m

TIMEOUT_S = 10


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser("balance", help="what your account has", description=__doc__)
    parser.add_argument(
        "--discovery",
        metavar="URL",
        help=f"the discovery service (default: $EC262_DISCOVERY or {DEFAULT_DISCOVERY_URL})",
    )
    parser.set_defaults(run=run)


def run(flags: argparse.Namespace) -> int:
    """Prints the balance; returns 0, or 1 where there is no account."""
    url = discovery_url(flags.discovery)
    account = CredentialStore().account(url)
    if account is None:
        print(f"no account at {url} yet: the first job or worker makes one", file=sys.stderr)
        return 1
    try:
        answer = requests.get(f"{url}/v1/account", auth=(account.account_id, account.secret), timeout=TIMEOUT_S)
    except requests.RequestException as reason:
        raise DiscoveryUnreachable(f"{url} does not answer: {type(reason).__name__}") from None
    try:
        if answer.status_code != 200:
            raise NetworkError(f"{url}: {m.decode(m.Problem, answer.content).detail}")
        state = m.decode(m.AccountState, answer.content)
    except Malformed:
        raise NetworkError(f"{url} does not answer like a discovery service") from None
    print(f"account  {state.account_id}  at {url}")
    print(f"balance  {state.balance} credits, {state.escrow} more in escrow")
    print(f"earned   {state.earned}, spent {state.spent}, workers {state.workers}")
    return 0
