"""``ec262 jobs``: how the jobs of this machine's account stand, wherever they run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ec262.config import DEFAULT_DISCOVERY_URL, discovery_url
from ec262.credentials import CredentialStore

if TYPE_CHECKING:
    from ec262.protocol import messages as m

EXAMPLES = """\
examples:
  ec262 jobs                                           those that run
  ec262 jobs --all                                     also those that ended in the last hour
  ec262 jobs --all --json                              everything that is known, for a program to read
  ec262 jobs --discovery https://discovery.example

A job is shown once it has reported to discovery, and no longer when nothing was heard of it for five minutes.

exit codes: 0 shown, also where there is no job; 1 no account, or discovery does not answer; 2 wrong flags
"""

NAME_WIDTH = 24
_COLUMNS = (
    *("JOB", "NAME", "STATE", "PHASE", "TASKS", "FAILED", "RETRIED", "WORKERS", "CREDITS", "IN", "OUT", "LEFT"),
    *("TOOK", "HEARD"),
)
_TO_THE_RIGHT = frozenset({"TASKS", "FAILED", "RETRIED", "WORKERS", "CREDITS", "IN", "OUT", "LEFT", "TOOK"})


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser(
        "jobs", help="how your jobs stand", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--discovery",
        metavar="URL",
        help=f"the discovery service (default: $EC262_DISCOVERY, that of `ec262 login`, or {DEFAULT_DISCOVERY_URL})",
    )
    parser.add_argument("--all", action="store_true", help="also jobs that ended in the last hour")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(flags: argparse.Namespace) -> int:
    """Prints the jobs; returns 0, or 1 where there is no account."""
    from ec262.discovery_client import DiscoveryClient  # noqa: PLC0415 - --help does without

    url = discovery_url(flags.discovery)
    account = CredentialStore().account(url)
    if account is None:
        print(f"no account at {url} yet: the first job or worker makes one", file=sys.stderr)
        return 1
    with DiscoveryClient(url, account.account_id, account.secret, retry_for_s=2.0) as client:
        answer = client.jobs()
    shown = [job for job in answer.jobs if flags.all or job.state == "running"]
    if flags.json:
        print(as_json(answer.server_time_s, shown))
    elif shown:
        _print(table(shown))
    else:
        ended = len(answer.jobs) - len(shown)
        print(f"no job of yours runs at {url}" + (f"; {ended} ended, --all shows them" if ended else ""))
    return 0


def as_json(server_time_s: float, jobs: Sequence[m.JobState]) -> str:
    """The jobs as a JSON document in ASCII: what a terminal would act on is escaped."""
    import msgspec  # noqa: PLC0415 - --help does without

    return json.dumps({"server_time_s": server_time_s, "jobs": [msgspec.structs.asdict(job) for job in jobs]}, indent=2)


def table(jobs: Sequence[m.JobState]) -> str:
    """The jobs, a line each, under a line of headings."""
    rows = [list(_COLUMNS), *(_row(job) for job in jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if name in _TO_THE_RIGHT else cell.ljust(width)
            for name, cell, width in zip(_COLUMNS, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _row(job: m.JobState) -> list[str]:
    tasks = f"{job.tasks_done}/{'?' if job.tasks_total is None else job.tasks_total}"
    if job.tasks_total:
        tasks += f" {100 * job.tasks_done // job.tasks_total}%"
    running = job.state == "running"
    return [
        *(job.job_id[:8], _plain(job.name) or "-", job.state, _plain(job.phase) or "-", tasks),
        *(str(job.failed), str(job.retried), str(job.workers), str(job.credits_spent)),
        *(_size(job.bytes_in), _size(job.bytes_out)),
        _span(job.seconds_left) if running and job.seconds_left is not None else "-",
        _span(job.age_s if running else job.updated_s - job.started_s),
        f"{_span(job.silent_s)} ago",
    ]


def _plain(text: str) -> str:
    """A name from outside on one line of bearable length; what is not printable becomes a question mark."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= NAME_WIDTH else shown[: NAME_WIDTH - 3] + "..."


def _size(count: int) -> str:
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = min(max(0, count.bit_length() - 1) // 10, len(units) - 1)
    return f"{count / 1024**power:.1f} {units[power]}" if power else f"{count} B"


def _span(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"


def _print(text: str) -> None:
    """Prints also where the terminal does not know every character of a name."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))
