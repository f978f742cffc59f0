"""``ec262 account``: makes, shows, renames your account at a service, and replaces its key."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ec262.cli.printing import plain, say
from ec262.config import DEFAULT_DISCOVERY_URL, configured_discovery, discovery_url
from ec262.credentials import Account, CredentialStore
from ec262.errors import SetupError, Unauthorized

EXAMPLES = """\
examples:
  ec262 account create --invitation CODE --discovery https://discovery.example
  ec262 account show                     what your account is and has
  ec262 account show --all               your accounts at all services
  ec262 account show --key               its key, for signing in to the service's pages
  ec262 account rename "lab 3"
  ec262 account rotate-key               a new key; the old one is worth nothing from then on

Where accounts are open to anybody you need not make one: the first job or worker does. Accounts are kept in the
credentials of this user, one for each service side by side, and all jobs and workers use them.

exit codes: 0 done; 1 not done: there is no account (or one already), or the service refuses; 2 wrong flags
"""


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser(
        "account", help="your account at a service: make, show, rename it, replace its key", description=__doc__,
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = _command(commands, "create", _create, "make your account, with an invitation where the service wants one")
    create.add_argument("--invitation", metavar="CODE", help="from whoever runs it (default: $EC262_INVITATION)")
    create.add_argument("--name", default="", help="a name for the account, for you and whoever runs the service")
    show = _command(commands, "show", _show, "what your account is and has")
    how = show.add_mutually_exclusive_group()
    how.add_argument("--key", action="store_true", help="print the account's key alone; it is worth your credits")
    how.add_argument("--all", action="store_true", help="list your accounts at all services, without asking these")
    how.add_argument("--json", action="store_true", help="print JSON")
    rename = _command(commands, "rename", _rename, "give your account another name")
    rename.add_argument("name", metavar="NAME", help="at most 64 characters; not the one on the leaderboard")
    _command(commands, "rotate-key", _rotate, "replace your account's key, say because others may have seen it")


def _command(commands: Any, name: str, run: Any, what: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    made.add_argument(
        "--discovery",
        metavar="URL",
        help=f"the discovery service (default: $EC262_DISCOVERY, that of `ec262 login`, or {DEFAULT_DISCOVERY_URL})",
    )
    made.set_defaults(run=run)
    return made


def key_of(account: Account) -> str:
    """An account's key: what a person shows to be who they are."""
    return f"{account.account_id}:{account.secret}"


def _create(flags: argparse.Namespace) -> int:
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


def _show(flags: argparse.Namespace) -> int:
    from ec262.discovery_client import DiscoveryClient  # noqa: PLC0415

    store = CredentialStore()
    if flags.all:
        chosen = configured_discovery()
        for url, each in store.accounts().items():
            say(f"{'*' if url == chosen else ' '} {url}  {each.account_id}")
        return 0
    url = discovery_url(flags.discovery)
    account = store.account(url)
    if account is None:
        return _no_account(url)
    if flags.key:
        print(key_of(account))
        return 0
    with DiscoveryClient(url, account.account_id, account.secret, retry_for_s=2.0) as client:
        state = client.account()
    if flags.json:
        import msgspec  # noqa: PLC0415

        say(json.dumps(msgspec.to_builtins(state), indent=2))
        return 0
    say(f"account  {state.account_id}  at {url}")
    say(f"name     {plain(state.name, 64) or '(none)'}{f', shown as {plain(state.shown)}' if state.shown else ''}")
    say(f"balance  {state.balance} credits, {state.escrow} more in escrow")
    say(f"earned   {state.earned}, spent {state.spent}, workers {state.workers}")
    if state.banned:
        say(f"BANNED   {plain(state.banned, 200)}")
    return 0


def _rename(flags: argparse.Namespace) -> int:
    from ec262.discovery_client import DiscoveryClient  # noqa: PLC0415
    from ec262.protocol import messages as m  # noqa: PLC0415

    url = discovery_url(flags.discovery)
    account = CredentialStore().account(url)
    if account is None:
        return _no_account(url)
    with DiscoveryClient(url, account.account_id, account.secret, retry_for_s=2.0) as client:
        state = client.rename_account(m.RenameAccount(name=flags.name))
    say(f"account {state.account_id} is named {plain(state.name, 64) or '(nothing)'}")
    return 0


def _rotate(flags: argparse.Namespace) -> int:
    from ec262.discovery_client import DiscoveryClient  # noqa: PLC0415
    from ec262.protocol import messages as m  # noqa: PLC0415

    url = discovery_url(flags.discovery)
    store = CredentialStore()
    account = store.account(url)
    if account is None:
        return _no_account(url)
    if store.accounts().get(url) != account:
        raise SetupError("this account is the environment's (EC262_ACCOUNT, EC262_SECRET): its key is kept elsewhere")
    fresh = store.next_secret(url)
    with DiscoveryClient(url, account.account_id, account.secret, retry_for_s=5.0) as client:
        try:
            client.rotate_key(m.RotateKey(secret=fresh))
        except Unauthorized:
            # An earlier try may have been answered to nobody: then the next secret is the account's already.
            client.use_account(account.account_id, fresh)
            client.account()
    store.rotated(url)
    print(f"account {account.account_id} at {url} has a new key, kept in {store.path}")
    print("workers and jobs of this user take it by themselves; the service's pages ask for it", file=sys.stderr)
    return 0


def _no_account(url: str) -> int:
    print(f"no account at {url} yet: the first job or worker makes one, or `ec262 account create`", file=sys.stderr)
    return 1
