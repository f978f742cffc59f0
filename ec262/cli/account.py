"""``ec262 account``: makes your account at a service, with an invitation where that wants one."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ec262.config import DEFAULT_DISCOVERY_URL, discovery_url
from ec262.credentials import CredentialStore

EXAMPLES = """\
examples:
  ec262 account --invitation CODE --discovery https://discovery.example
  ec262 account --name "lab 3"

Where accounts are open to anybody you do not need this: the first job or worker makes one. The account is kept in the
credentials of this user, and all its jobs and workers use it.

exit codes: 0 made; 1 not made: there is one already, or the service makes none; 2 wrong flags
"""


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser(
        "account", help="make your account at a service", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--discovery",
        metavar="URL",
        help=f"the discovery service (default: $EC262_DISCOVERY or {DEFAULT_DISCOVERY_URL})",
    )
    parser.add_argument("--invitation", metavar="CODE", help="from whoever runs it (default: $EC262_INVITATION)")
    parser.add_argument("--name", default="", help="a name for the account, for you and whoever runs the service")
    parser.set_defaults(run=run)


def run(flags: argparse.Namespace) -> int:
    """Makes the account; returns 0, or 1 where there is one."""
    from ec262.discovery_client import DiscoveryClient, create_account_at  # noqa: PLC0415 - --help does without

    url = discovery_url(flags.discovery)
    store = CredentialStore()
    known = store.account(url)
    if known is not None:
        print(f"there is an account at {url} already: {known.account_id}", file=sys.stderr)
        return 1
    with DiscoveryClient(url, retry_for_s=2.0) as client:
        made = store.ensure_account(url, lambda: create_account_at(client, flags.name, flags.invitation))
        state = client.account() if client.account_id else None
    print(f"account  {made.account_id}  at {url}, kept in {store.path}")
    if state is not None:
        print(f"balance  {state.balance} credits")
    return 0
