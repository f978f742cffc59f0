"""``ec262 ledger verify``: adds up every movement of credits there ever was, for a service's operator."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ec262.errors import SetupError

EXAMPLES = """\
examples:
  ec262 ledger verify --redis redis://localhost:6379/0
  ec262 ledger verify --data-dir ~/.local/share/ec262/discovery      (the embedded store, while discovery is stopped)
"""


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser("ledger", help="check a discovery service's books", description=__doc__)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    verify = actions.add_parser(
        "verify", help="add up all movements and compare with the balances", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    where = verify.add_mutually_exclusive_group(required=True)
    where.add_argument("--redis", metavar="URL", help="the service's Redis")
    where.add_argument("--data-dir", metavar="DIR", type=Path, help="the service's data directory")
    verify.set_defaults(run=run)


def run(flags: argparse.Namespace) -> int:
    """Prints the totals and every fault; returns 0 when the books are clean, 1 when not or out of reach."""
    import redis  # noqa: PLC0415 - an operator's command: nobody else needs discovery's side installed or loaded

    from discovery.ledger import verify  # noqa: PLC0415
    from discovery.store.server import start_server  # noqa: PLC0415
    from discovery.store.store import Store  # noqa: PLC0415

    if flags.data_dir is not None and not flags.data_dir.is_dir():
        raise SetupError(f"{flags.data_dir} is no directory of a discovery service")
    try:
        server = None if flags.redis else start_server(flags.data_dir)
    except SetupError as reason:
        raise SetupError(f"{reason}\nThe embedded store can be verified while its discovery is stopped.") from None
    try:
        store = Store(server.url if server is not None else flags.redis)
        audit = verify(store)
        store.close()
    except redis.RedisError as reason:
        print(f"ec262 ledger: the store does not answer: {reason}", file=sys.stderr)
        return 1
    finally:
        if server is not None:
            server.close()
    print(f"{audit.movements} movements; minted {audit.minted}, burnt {audit.burnt}")
    print(f"on accounts {audit.accounts}, in escrow {audit.escrow}")
    for fault in audit.faults:
        print(f"FAULT  {fault}", file=sys.stderr)
    print("the books are clean" if not audit.faults else f"{len(audit.faults)} faults")
    return 1 if audit.faults else 0
