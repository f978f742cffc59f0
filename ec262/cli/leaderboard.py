"""``ec262 leaderboard``: who earned most, of the accounts that want to be seen."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ec262.cli.printing import plain, say
from ec262.config import DEFAULT_DISCOVERY_URL, discovery_url
from ec262.credentials import CredentialStore

if TYPE_CHECKING:
    from ec262.protocol import messages as m

EXAMPLES = """\
examples:
  ec262 leaderboard
  ec262 leaderboard --show-as "Ada"      be on it from now on
  ec262 leaderboard --withdraw           not any more

exit codes: 0 done; 1 there is no account, or the service does not answer; 2 wrong flags
"""


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser(
        "leaderboard", help="who earned most", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--discovery",
        metavar="URL",
        help=f"the discovery service (default: $EC262_DISCOVERY, that of `ec262 login`, or {DEFAULT_DISCOVERY_URL})",
    )
    own = parser.add_mutually_exclusive_group()
    own.add_argument("--show-as", metavar="NAME", help="show your account under this name, to everybody")
    own.add_argument("--withdraw", action="store_true", help="show your account no more")
    own.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(flags: argparse.Namespace) -> int:
    """Prints the leaderboard, or changes what it shows of this account; returns 0, or 1 where there is no account."""
    import msgspec  # noqa: PLC0415 - --help does without

    from ec262.discovery_client import DiscoveryClient  # noqa: PLC0415
    from ec262.protocol import messages as m  # noqa: PLC0415

    url = discovery_url(flags.discovery)
    if flags.show_as is None and not flags.withdraw:
        with DiscoveryClient(url, retry_for_s=2.0) as client:
            board = client.leaderboard()
        say(json.dumps(msgspec.to_builtins(board), indent=2) if flags.json else table(board.leaders))
        return 0
    account = CredentialStore().account(url)
    if account is None:
        print(f"no account at {url} yet: the first job or worker makes one", file=sys.stderr)
        return 1
    with DiscoveryClient(url, account.account_id, account.secret, retry_for_s=2.0) as client:
        state = client.show_account(m.ShowAccount(name=flags.show_as or ""))
    if state.shown:
        say(f"account {state.account_id} is shown as {plain(state.shown)}, within a minute")
    else:
        say(f"account {state.account_id} is not shown any more, within a minute")
    return 0


def table(leaders: Sequence[m.Leader]) -> str:
    """The leaders, a line each, under a line of headings."""
    rows = [("RANK", "EARNED", "WORKERS", "TAG", "NAME")]
    rows += [
        (str(each.rank), str(each.earned), str(each.workers), plain(each.tag), plain(each.name)) for each in leaders
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column < 3 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
