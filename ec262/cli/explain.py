"""``ec262 explain``: who answered a task of yours, what each weighed, and why it was decided as it was."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from ec262.config import DEFAULT_DISCOVERY_URL, discovery_url
from ec262.credentials import CredentialStore

if TYPE_CHECKING:
    from ec262.protocol import messages as m

EXAMPLES = """\
examples:
  ec262 explain 8f14e45fceea167a5a36dedd               a task by its id
  ec262 explain 8f14e45fceea167a5a36dedd.2             ... or by that of one of its leases
  ec262 explain 8f14e45fceea167a5a36dedd --json        everything, for a program to read
  ec262 run -v wordcount book.txt --output count       tells the ids of tasks that workers disagree on
  python -c "import ec262; help(ec262.Report)"         where a program finds them: failed, believed.disputed

VERIFIED and DOUBTS are what a worker's tally had when the task was decided: results that unrelated workers confirmed,
and evidence against it. WEIGHED is how likely its answers were held to be right then, NOW how likely they are held to
be by what is known now. Equal letters under ANSWER are equal answers. Before a task is decided nothing of its answers
is told, not even whether two agree. Discovery remembers a task for ten minutes after it is decided, and what a job with
a confidence rests on until the job closes.

exit codes: 0 shown; 1 no such task of your account, no account, or discovery does not answer; 2 wrong flags
"""

_HEADINGS = ("WORKER", "LEASE", "STATE", "ANSWER", "VERIFIED", "DOUBTS", "WEIGHED", "NOW", "")
_TO_THE_RIGHT = frozenset({"VERIFIED", "DOUBTS", "WEIGHED", "NOW"})
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser(
        "explain", help="why a task was decided as it was", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("task", metavar="TASK", type=_task_id, help="a task's id, or that of a lease of it")
    parser.add_argument(
        "--discovery",
        metavar="URL",
        help=f"the discovery service (default: $EC262_DISCOVERY, that of `ec262 login`, or {DEFAULT_DISCOVERY_URL})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(flags: argparse.Namespace) -> int:
    """Prints the explanation; returns 0, or 1 where there is no account."""
    from ec262.discovery_client import DiscoveryClient  # noqa: PLC0415 - --help does without

    url = discovery_url(flags.discovery)
    account = CredentialStore().account(url)
    if account is None:
        print(f"no account at {url} yet: the first job or worker makes one", file=sys.stderr)
        return 1
    with DiscoveryClient(url, account.account_id, account.secret, retry_for_s=2.0) as client:
        explanation = client.explain(flags.task)
    print(as_json(explanation) if flags.json else as_text(explanation))
    return 0


def as_json(explanation: m.Explanation) -> str:
    """The explanation as a JSON document in ASCII; commitments in hexadecimal digits."""
    import msgspec  # noqa: PLC0415 - --help does without

    told = msgspec.structs.asdict(explanation)
    told["commitment"] = explanation.commitment.hex()
    told["answers"] = [
        {**msgspec.structs.asdict(answer), "commitment": answer.commitment.hex()} for answer in explanation.answers
    ]
    return json.dumps(told, indent=2)


def as_text(explanation: m.Explanation) -> str:
    """The explanation for a person."""
    reached = "" if explanation.reached is None else f", believed with {explanation.reached:.6f}"
    wanted = f"; {explanation.confidence:g} was asked for" if explanation.confidence else ""
    lines = [f"task {_plain(explanation.task_id)}: {_plain(explanation.state)}{reached}{wanted}"]
    if explanation.checked:
        lines.append("it was a spot check: replicated although it would have been believed without")
    lines += [_plain(text) for text in (explanation.why, explanation.why_now) if text]
    names: dict[tuple[str, bytes], str] = {}
    rows = [list(_HEADINGS), *(_row(answer, names) for answer in explanation.answers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines.append("")
    for row in rows:
        cells = [
            cell.rjust(width) if name in _TO_THE_RIGHT else cell.ljust(width)
            for name, cell, width in zip(_HEADINGS, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    counts = names.get((str(explanation.kind), explanation.commitment))
    if counts is not None and explanation.commitment:
        lines += ["", f"{counts} counts: {_plain(str(explanation.kind))}, {explanation.commitment.hex()[:16]}..."]
    return "\n".join(lines)


def _row(answer: m.ExplainedAnswer, names: dict[tuple[str, bytes], str]) -> list[str]:
    shown = "-"
    if answer.kind is not None and answer.commitment:
        answered = (str(answer.kind), answer.commitment)
        letter = names.setdefault(answered, _LETTERS[len(names) % 26] * (1 + len(names) // 26))
        shown = letter if answer.kind == "ok" else f"{letter} ({_plain(str(answer.kind))})"
    marks = [name for name, has in (("auditor", answer.auditor), ("banned", answer.banned)) if has]
    weighed = shown != "-"
    return [
        *(_plain(answer.worker_id), answer.lease_id.rpartition(".")[2], _plain(answer.state), shown),
        *(f"{answer.verified:.1f}", f"{answer.doubts:.1f}"),
        *((f"{answer.believed:.4f}", f"{answer.believed_now:.4f}") if weighed else ("-", "-")),
        " ".join(marks),
    ]


def _task_id(text: str) -> str:
    name = text.partition(".")[0]
    if not 16 <= len(name) <= 32 or not set(name) <= set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text!r:.60} is no task's id: 16 to 32 hexadecimal digits")
    return name


def _plain(text: str) -> str:
    """Text from outside on one line, of bearable length."""
    return "".join(c if c.isprintable() else "?" for c in text[:400])
