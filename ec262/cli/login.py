"""``ec262 login``: from now on, commands, jobs and workers of this user use a service, with your account there."""

from __future__ import annotations

import argparse
import getpass
import re
import sys
from typing import Any

from ec262.config import EMBEDDED, configure_discovery, normalise_url
from ec262.credentials import Account, CredentialStore
from ec262.errors import SetupError

EXAMPLES = """\
examples:
  ec262 login https://discovery.example            asks for your account's key, or makes an account
  ec262 account show --key | ssh there ec262 login https://discovery.example
  EC262_DISCOVERY=embedded python my_job.py        a network of this machine, all the same

A key is what `ec262 account show --key` prints where you have the account. It is read from the terminal without being
shown, or from standard input; there is no flag for it, because other users of a machine can read command lines.

exit codes: 0 done; 1 not done: the key is no account's there, or the service does not answer; 2 wrong flags
"""
_KEY = re.compile(r"([0-9a-f]{16,64}):([A-Za-z0-9_-]{20,200})")
_MOST_INPUT = 1000


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser(
        "login", help="use a service from now on", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("url", metavar="URL", help="the discovery service")
    parser.add_argument("--invitation", metavar="CODE", help="for a new account, where the service wants one")
    parser.set_defaults(run=run)


def run(flags: argparse.Namespace) -> int:
    """Finds, takes or makes the account, tries it, and makes the service the default; returns 0."""
    from ec262.discovery_client import DiscoveryClient, create_account_at  # noqa: PLC0415 - --help does without

    url = normalise_url(flags.url)
    store = CredentialStore()
    known = store.account(url)
    with DiscoveryClient(url, retry_for_s=2.0) as client:
        client.describe()  # says what is wrong with the service before anybody is asked for a key
        given = None if known is not None and sys.stdin.isatty() else read_key()
        account = given or known
        if account is not None:
            client.use_account(account.account_id, account.secret)
            state = client.account()
            if given is not None and given != known:
                store.save_account(url, given)
        else:
            account = store.ensure_account(url, lambda: create_account_at(client, invitation=flags.invitation))
            client.use_account(account.account_id, account.secret)
            state = client.account()
    configure_discovery(url)
    print(f"account  {state.account_id}  at {url}, {state.balance} credits")
    print(f"commands, jobs and workers use it from now on; EC262_DISCOVERY={EMBEDDED} goes before", file=sys.stderr)
    return 0


def read_key() -> Account | None:
    """An account's key from the terminal, or from standard input; None: nothing was given.

    Raises:
        SetupError: what was given is no key.
    """
    if sys.stdin.isatty():
        text = getpass.getpass("account key (empty: make an account): ")
    else:
        text = sys.stdin.readline(_MOST_INPUT)
    if not text.strip():
        return None
    found = _KEY.fullmatch(text.strip())
    if found is None:
        raise SetupError("that is no account's key: it has an id, a colon and a secret (`ec262 account show --key`)")
    return Account(found[1], found[2])
