"""``ec262 ledger``: what your account received and paid; for a service's operator, audits and exports of its books."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ec262.config import DEFAULT_DISCOVERY_URL, discovery_url
from ec262.credentials import CredentialStore
from ec262.errors import SetupError

if TYPE_CHECKING:
    from ec262.protocol import messages as m

EXAMPLES = """\
examples:
  ec262 ledger                                                   your account's last movements, by job and day
  ec262 ledger --limit 200 --json
  ec262 ledger verify --redis redis://localhost:6379/0           (operator) add up every movement there ever was
  ec262 ledger verify --data-dir ~/.local/share/ec262/discovery  also while discovery runs
  ec262 ledger export --data-dir DIR --since 2030-01-31          every movement as a line of JSON

exit codes: 0 shown, or the books are clean; 1 they are not, or out of reach; 2 wrong flags
"""
_PAGE = 100
_PROGRESS_S = 0.5
_SIGPIPE = 141
"""What a shell says of a process that nobody listens to any more."""


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser(
        "ledger", help="what your account received and paid", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--discovery",
        metavar="URL",
        help=f"the discovery service (default: $EC262_DISCOVERY, that of `ec262 login`, or {DEFAULT_DISCOVERY_URL})",
    )
    parser.add_argument("--limit", type=_count, default=20, metavar="N", help="most rows (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run_statement)
    actions = parser.add_subparsers(title="actions of an operator", metavar="ACTION")
    verify = actions.add_parser("verify", help="add up all movements and compare with the balances")
    verify.add_argument("--quick", action="store_true", help="believe the last checkpoint, add up what came after it")
    verify.add_argument(
        "--anchor", type=_anchor, metavar="N:SHA256", help="a block as an earlier audit told it: it must be the same"
    )
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(run=run_verify)
    export = actions.add_parser("export", help="print every movement as a line of JSON, the oldest first")
    export.add_argument("--account", metavar="ID", help="only what touches this account")
    export.add_argument("--since", type=_moment, default=0, metavar="TIME", help="not before (ISO 8601, UTC)")
    export.add_argument("--until", type=_moment, default=2**63, metavar="TIME", help="before (ISO 8601, UTC)")
    export.set_defaults(run=run_export)
    for action in (verify, export):
        where = action.add_mutually_exclusive_group(required=True)
        where.add_argument("--redis", metavar="URL", help="the service's Redis")
        where.add_argument("--data-dir", "--data", metavar="DIR", type=Path, help="the service's data directory")
        action.add_argument(
            "--archive", metavar="DIR", type=Path, help="the segments' directory (default: as the store says)"
        )


# --- an account's own -----------------------------------------------------------------------------


def run_statement(flags: argparse.Namespace) -> int:
    """Prints the account's statement; returns 0, or 1 where there is no account."""
    from ec262.discovery_client import DiscoveryClient  # noqa: PLC0415 - --help does without

    url = discovery_url(flags.discovery)
    account = CredentialStore().account(url)
    if account is None:
        print(f"no account at {url} yet: the first job or worker makes one", file=sys.stderr)
        return 1
    rows: list[m.StatementRow] = []
    with DiscoveryClient(url, account.account_id, account.secret, retry_for_s=2.0) as client:
        statement = client.statement(limit=min(_PAGE, flags.limit))
        rows += statement.rows
        following = statement.before
        while following and len(rows) < flags.limit:
            page = client.statement(before=following, limit=min(_PAGE, flags.limit - len(rows)))
            rows += page.rows
            following = page.before if page.rows else None
    if flags.json:
        import msgspec  # noqa: PLC0415 - --help does without

        told = msgspec.structs.asdict(statement) | {"rows": [msgspec.structs.asdict(row) for row in rows]}
        del told["before"]
        print(json.dumps(told, indent=2))
        return 0
    _print(table(rows))
    print(f"balance {statement.balance}, of which {statement.transferable} can be sent; in escrow {statement.escrow}")
    print(f"complete until {_time(statement.complete_until_s)}" + ("; there is more: --limit" if following else ""))
    return 0


def table(rows: Sequence[m.StatementRow]) -> str:
    """Rows of a statement, a line each, under a line of headings."""
    cells = [["LAST (UTC)", "RECEIVED", "PAID", "MOVEMENTS", "WHAT", "ABOUT"]]
    for row in rows:
        about = _plain(row.about)
        if row.kind == "transfer":
            way = "to" if row.paid else "from"
            about = f"{way} {_plain(row.other)}" + (f": {about}" if about else "")
        cells.append(
            [_time(row.last_s), str(row.received), str(row.paid), str(row.movements), _plain(row.kind), about or "-"]
        )
    widths = [max(len(line[column]) for line in cells) for column in range(6)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 1 <= column <= 3 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


# --- an operator's --------------------------------------------------------------------------------


def run_verify(flags: argparse.Namespace) -> int:
    """Prints totals and every fault; returns 0 when the books are clean, 1 when not or out of reach."""
    import redis  # noqa: PLC0415 - an operator's command: nobody else needs discovery's side installed or loaded

    from discovery.ledger import verify  # noqa: PLC0415
    from discovery.operator import store_of  # noqa: PLC0415

    try:
        with store_of(flags.redis, flags.data_dir, flags.archive) as (store, archive):
            audit = verify(store, archive, quick=flags.quick, anchor=flags.anchor, progress=_progress())
    except redis.RedisError as reason:
        raise SetupError(f"the store does not answer: {reason}") from None
    if flags.json:
        told = {name: getattr(audit, name) for name in audit.__slots__}
        print(json.dumps({"clean": not audit.faults, **told}, indent=2))
        return 1 if audit.faults else 0
    read = " could be read" if audit.faults else ""
    print(f"{audit.movements} movements{read}; minted {audit.minted}, burnt {audit.burnt}")
    print(f"on accounts {audit.accounts}, in escrow {audit.escrow}")
    if audit.blocks:
        print(f"{audit.blocks} blocks on disk; to compare later: --anchor {audit.blocks}:{audit.digest}")
    for note in audit.notes:
        print(f"note   {_plain(note)}", file=sys.stderr)
    for fault in audit.faults:
        print(f"FAULT  {_plain(fault)}", file=sys.stderr)
    print("the books are clean" if not audit.faults else f"{len(audit.faults)} faults")
    return 1 if audit.faults else 0


def run_export(flags: argparse.Namespace) -> int:
    """Prints movements; returns 0, or 1 where the archive is not what Redis knows."""
    import redis  # noqa: PLC0415 - an operator's command: nobody else needs discovery's side installed or loaded

    from discovery.ledger import export  # noqa: PLC0415
    from discovery.operator import store_of  # noqa: PLC0415

    try:
        with store_of(flags.redis, flags.data_dir, flags.archive) as (store, archive):
            for each in export(store, archive, account_id=flags.account, since_ms=flags.since, until_ms=flags.until):
                line = {
                    "block": each.block,
                    "entry": f"{each.entry_id[0]}-{each.entry_id[1]}",
                    "time_ms": each.entry_id[0],
                    "from": each.source,
                    "to": each.target,
                    "amount": each.amount,
                    "for": each.what,
                }
                sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has enough. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGPIPE
    except redis.RedisError as reason:
        raise SetupError(f"the store does not answer: {reason}") from None
    return 0


def _progress() -> Callable[[int, int], None] | None:
    """Says now and then how far it is, where somebody is looking."""
    if not sys.stderr.isatty():
        return None
    said = time.monotonic()

    def tell(done: int, there: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _PROGRESS_S:
            said = time.monotonic()
            end = "\n" if done >= there else ""
            print(f"\r{100 * done // max(1, there)} % of {there // 1_000_000} MB", end=end, file=sys.stderr, flush=True)

    return tell


def _anchor(text: str) -> tuple[int, str]:
    number, _, digest = text.partition(":")
    if not number.isdigit() or len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: has to be a block's number, a colon and its SHA-256")
    return int(number), digest


def _moment(text: str) -> int:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no time such as 2030-01-31 or 2030-01-31T12:00") from None
    return int(moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp() * 1000)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: has to be a whole number from 1 to 1000000")
    return int(text)


def _time(seconds: float) -> str:
    if not 0 < seconds < 32_503_680_000:  # the year 3000
        return "-"
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _plain(text: str) -> str:
    """Text from outside on one line; what is not printable becomes a question mark."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _print(text: str) -> None:
    """Prints also where the terminal does not know every character of a note."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))
