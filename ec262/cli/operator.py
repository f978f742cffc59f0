"""``ec262 operator``: accounts, invitations, bans and auditors of a service, for whoever runs it."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ec262.cli.printing import plain
from ec262.errors import SetupError

if TYPE_CHECKING:
    from discovery.store.accounts import Accounts

EXAMPLES = """\
examples:
  ec262 operator invite --uses 30 --hours 48 --note "course of May" --data-dir /var/lib/ec262
  ec262 operator invitations --redis redis://localhost:6379/0
  ec262 operator revoke 3f6c0a91d2b4 --data-dir DIR         the invitation whose id begins so
  ec262 operator ban 0123456789abcdef0123456789abcdef --reason "sells junk" --data-dir DIR
  ec262 operator auditor 0123456789abcdef0123456789abcdef --data-dir DIR
  ec262 operator account --name lab --credits 1000 --data-dir DIR

These work on the service's store, while it runs or not; there is no operator's key and no operator's route. What a
running service does for them it does within a second.

exit codes: 0 done; 1 not done, and nothing was changed; 2 wrong flags
"""
_SHOWN_ID = 16
_MOST_USES = 1_000_000
_MOST_HOURS = 24 * 366


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser(
        "operator", help="accounts, invitations and bans of the service that you run", description=__doc__,
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(name: str, what: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(name, help=what, description=what)
        where = made.add_mutually_exclusive_group(required=True)
        where.add_argument("--redis", metavar="URL", help="the service's Redis")
        where.add_argument("--data-dir", metavar="DIR", type=Path, help="the service's data directory")
        made.set_defaults(run=run)
        return made

    invite = action("invite", "make an invitation and print its code, this once", run_invite)
    invite.add_argument("--uses", type=_number(_MOST_USES), default=1, metavar="N", help="accounts (default: 1)")
    invite.add_argument(
        "--hours", type=_number(_MOST_HOURS), default=7 * 24, metavar="H", help="how long it is valid (default: 168)"
    )
    invite.add_argument("--note", default="", type=_line, help="what for; only you can read it")
    action("invitations", "the invitations that can still be used", run_invitations)
    revoke = action("revoke", "make an invitation worth nothing", run_revoke)
    revoke.add_argument("invitation", metavar="ID", help="the beginning of its id")
    ban = action("ban", "ban an account: it can read its books and nothing else", run_ban)
    ban.add_argument("--reason", required=True, type=_line, help="why; the account can read it")
    unban = action("unban", "end an account's ban", run_unban)
    auditor = action("auditor", "mark an account as one whose workers are believed", run_auditor)
    auditor.add_argument("--off", action="store_true", help="take the mark off it")
    show = action("show", "what the service knows of an account", run_show)
    for each in (ban, unban, auditor, show):
        each.add_argument("account", metavar="ACCOUNT", help="an account's id")
    account = action(
        "account", "make an account, whatever --registration says, and print its secret, this once", run_account
    )
    account.add_argument("--name", default="", type=_line, help="a name for it")
    account.add_argument(
        "--credits", type=_number(10**9, least=0), default=0, metavar="N", help="its starting credits (default: 0)"
    )
    marked = action("list", "the accounts that are banned, or auditors", run_list)
    marked.add_argument("which", choices=["banned", "auditors"])


def run_invite(flags: argparse.Namespace) -> int:
    """Prints the code of a new invitation on standard output, what it is on standard error; returns 0."""
    from discovery.admission import invitation_id, new_invitation  # noqa: PLC0415 - an operator's command: see below

    code = new_invitation()
    with _accounts(flags) as accounts:
        expires_ms = accounts.invite(invitation_id(code), flags.uses, flags.hours * 3600.0, flags.note)
    print(code)
    print(
        f"invitation {invitation_id(code)[:_SHOWN_ID]}, good for {flags.uses} account{'s' * (flags.uses != 1)} until "
        f"{_time(expires_ms)} UTC: ec262 account create --invitation {code}",
        file=sys.stderr,
    )
    return 0


def run_invitations(flags: argparse.Namespace) -> int:
    """Prints the invitations that are left, a line each; returns 0."""
    with _accounts(flags) as accounts:
        for each in accounts.invitations():
            shown = each.invitation_id[:_SHOWN_ID]
            print(f"{shown}  {each.left:>6} left  until {_time(each.expires_ms)} UTC  {plain(each.note, 200)}".rstrip())
    return 0


def run_revoke(flags: argparse.Namespace) -> int:
    """Revokes the one invitation whose id begins as said; returns 0, or 1 where there is none, or several."""
    with _accounts(flags) as accounts:
        fit = [each.invitation_id for each in accounts.invitations() if each.invitation_id.startswith(flags.invitation)]
        done = len(fit) == 1 and accounts.revoke(fit[0])
    return _said(done, f"revoked {fit[0][:_SHOWN_ID]}" if fit else "", f"{len(fit)} invitations have ids that begin so")


def run_ban(flags: argparse.Namespace) -> int:
    """Bans; returns 0, or 1 where there is no such account or it is banned so already."""
    with _accounts(flags) as accounts:
        done = accounts.ban(flags.account, "operator", flags.reason)
    return _said(done, f"banned {flags.account}", "there is no such account, or it is banned with this reason already")


def run_unban(flags: argparse.Namespace) -> int:
    """Ends a ban, whoever it came from; returns 0, or 1 where there is none."""
    with _accounts(flags) as accounts:
        done = accounts.unban(flags.account, "operator")
    return _said(done, f"{flags.account} is banned no more", "there is no such account, or it is not banned")


def run_auditor(flags: argparse.Namespace) -> int:
    """Marks an auditor, or takes the mark off; returns 0, or 1 where there was nothing to change."""
    with _accounts(flags) as accounts:
        done = accounts.mark_auditor(flags.account, not flags.off)
    what = "no auditor any more" if flags.off else "an auditor now"
    return _said(done, f"{flags.account} is {what}", "there is no such account, or it was so already")


def run_show(flags: argparse.Namespace) -> int:
    """Prints an account as JSON; returns 0, or 1 where there is none."""
    import dataclasses  # noqa: PLC0415 - only here

    with _accounts(flags) as accounts:
        stored, _ = accounts.secret(flags.account)
        record = accounts.record(flags.account)
    if stored is None:
        return _said(False, "", "there is no such account")
    print(json.dumps(dataclasses.asdict(record), indent=2))
    return 0


def run_account(flags: argparse.Namespace) -> int:
    """Makes an account; prints its id and secret as the two variables that commands take them from; returns 0."""
    from discovery.registry import new_account  # noqa: PLC0415 - an operator's command: see below

    with _accounts(flags) as accounts:
        _, made = new_account(accounts, flags.name, flags.credits)
    assert made is not None
    print(f"EC262_ACCOUNT={made.account_id}\nEC262_SECRET={made.secret}")
    print(f"made account {made.account_id} with {made.balance} credits", file=sys.stderr)
    return 0


def run_list(flags: argparse.Namespace) -> int:
    """Prints the ids of marked accounts, with why they are banned; returns 0."""
    with _accounts(flags) as accounts:
        for account_id in accounts.marked(flags.which):
            record = accounts.record(account_id)
            print(f"{account_id}  {plain(record.banned, 300)}".rstrip())
    return 0


@contextmanager
def _accounts(flags: argparse.Namespace) -> Iterator[Accounts]:
    # An operator's command: nobody else needs discovery's side installed or loaded.
    import redis  # noqa: PLC0415

    from discovery.operator import store_of  # noqa: PLC0415

    try:
        with store_of(flags.redis, flags.data_dir) as (store, _):
            yield store.accounts
    except redis.RedisError as reason:
        raise SetupError(f"the store does not answer: {reason}") from None


def _said(done: bool, good: str, bad: str) -> int:
    if done:
        print(good)
        return 0
    print(f"ec262 operator: nothing was changed: {bad}", file=sys.stderr)
    return 1


def _time(ms: int) -> str:
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M")


def _number(most: int, least: int = 1) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not least <= int(text[:20]) <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r}: has to be a whole number from {least} to {most}")
        return int(text)

    return read


def _line(text: str) -> str:
    if len(text) > 200 or not text.isprintable():
        raise argparse.ArgumentTypeError("has to be one line of at most 200 characters")
    return text
