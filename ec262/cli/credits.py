"""``ec262 credits``: sends credits to another account; an operator also makes credits and takes them away."""

from __future__ import annotations

import argparse
import re
import secrets
import sys
from pathlib import Path
from typing import Any, Literal

from ec262.config import DEFAULT_DISCOVERY_URL, discovery_url
from ec262.credentials import CredentialStore
from ec262.errors import SetupError

EXAMPLES = """\
examples:
  ec262 credits send 0123456789abcdef0123456789abcdef 25 --note "for the cluster time"
  ec262 credits mint 0123456789abcdef0123456789abcdef 1000 --note "grant 7" --data-dir /var/lib/ec262
  ec262 credits burn 0123456789abcdef0123456789abcdef 50 --note "abuse" --redis redis://localhost:6379/0

What an account was given at its start cannot be sent, and not what it earned a moment ago; `ec262 balance` says how
much can. mint and burn are the operator's: they work on the service's store, while it runs or not. Every note is in
the ledger for good.

exit codes: 0 done; 1 not done, and nothing was moved; 2 wrong flags
"""
MOST = 2**53 - 1


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser(
        "credits", help="send credits to another account", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    send = actions.add_parser("send", help="send credits of yours to another account")
    send.add_argument(
        "--discovery",
        metavar="URL",
        help=f"the discovery service (default: $EC262_DISCOVERY, that of `ec262 login`, or {DEFAULT_DISCOVERY_URL})",
    )
    send.add_argument("--note", default="", type=_note, help="what for; the other account can read it")
    send.set_defaults(run=run_send)
    for kind, what in (("mint", "make credits for an account"), ("burn", "take credits from an account for good")):
        action = actions.add_parser(kind, help=f"{what} (operator)")
        action.add_argument("--note", required=True, type=_note, help="what for")
        where = action.add_mutually_exclusive_group(required=True)
        where.add_argument("--redis", metavar="URL", help="the service's Redis")
        where.add_argument("--data-dir", metavar="DIR", type=Path, help="the service's data directory")
        action.set_defaults(run=run_operator, kind=kind)
    for action in actions.choices.values():
        action.add_argument("account", metavar="ACCOUNT", type=_account, help="an account's id")
        action.add_argument("amount", metavar="AMOUNT", type=_amount, help="credits, 1 or more")


def run_send(flags: argparse.Namespace) -> int:
    """Sends; returns 0, or 1 where there is no account to send from."""
    from ec262.discovery_client import DiscoveryClient  # noqa: PLC0415 - --help does without
    from ec262.protocol import messages as m  # noqa: PLC0415

    url = discovery_url(flags.discovery)
    account = CredentialStore().account(url)
    if account is None:
        print(f"no account at {url} yet: the first job or worker makes one", file=sys.stderr)
        return 1
    with DiscoveryClient(url, account.account_id, account.secret, retry_for_s=5.0) as client:
        sent = client.transfer(
            m.Transfer(to=flags.account, amount=flags.amount, note=flags.note, idempotency_key=secrets.token_hex(16))
        )
    print(f"sent {sent.amount} credits to {sent.to}; {sent.balance} are left, of which {sent.transferable} can be sent")
    return 0


def run_operator(flags: argparse.Namespace) -> int:
    """Mints or burns; returns 0, or 1 where nothing was moved."""
    import redis  # noqa: PLC0415 - an operator's command: nobody else needs discovery's side installed or loaded

    from discovery.operator import store_of  # noqa: PLC0415

    kind: Literal["mint", "burn"] = flags.kind
    try:
        with store_of(flags.redis, flags.data_dir) as (store, _):
            done = store.books.mint(kind, flags.account, flags.amount, flags.note)
    except redis.RedisError as reason:
        raise SetupError(f"the store does not answer: {reason}") from None
    if done.outcome == "ok":
        print(f"{'minted' if kind == 'mint' else 'burnt'} {flags.amount} credits; {flags.account} has {done.balance}")
        return 0
    why = {
        "unknown": f"there is no account {flags.account}",
        "credits": f"of the account's credits {done.balance} can be burnt now",
        "most": f"{done.balance} credits were minted so far, and there may be {MOST} at most",
    }
    print(f"ec262 credits: nothing was moved: {why[done.outcome]}", file=sys.stderr)
    return 1


def _account(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{16,32}", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: is not the id of an account, 32 hexadecimal digits")
    return text


def _amount(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:20]) <= MOST:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r}: has to be a whole number of credits, from 1 to 9007199254740991"
        )
    return int(text)


def _note(text: str) -> str:
    if len(text) > 200 or not text.isprintable():
        raise argparse.ArgumentTypeError("a note is one line of at most 200 characters")
    return text
