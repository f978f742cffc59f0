"""``ec262 simulate``: what a policy lets through, and what it costs, in a made-up network with saboteurs.

Real code decides and matches; workers, network and time are made up. A run of 20,000 tasks takes a few seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ec262.errors import SetupError

if TYPE_CHECKING:
    from discovery.simulation.network import Setup

EXAMPLES = """\
policies: N/M: N copies of which M have to agree; boinc: BOINC's adaptive replication; a confidence such as 0.99, or
0.99:0.2 with another share of tasks to check than the usual 0.1

examples:
  ec262 simulate --collude                                  a fifth of 200 workers lies, always and alike
  ec262 simulate --collude --lie 0.1 --seeds 5              they lie on one task of ten
  ec262 simulate --collude --sleep 50 --policy 0.99         they are honest for 50 results first
  ec262 simulate --collude --only-shared                    they lie only when an accomplice has the task too
  ec262 simulate --collude --return                         once convicted they come back under a new name
  ec262 simulate --saboteurs 0.4 --collude --auditors 10    ten workers are the operator's
  ec262 simulate --saboteurs 0 --errors 0.001 --flaky 0.01  nobody lies, but machines err and programs differ
  ec262 simulate --collude --lie 0.1 --plot frontier.png    a picture (pip install 'ec262[plot]')

columns: WRONG %: results that were still wrong when their job was closed, mean of all seeds; WORST %: in the worst one;
AT FIRST %: accepted wrong at first; REPLICAS: a task, checks and recomputation included; UNDECIDED: tasks without a
result; CONVICTED, WRONGLY: saboteurs and others banned at the end; LIFTED: bans that ended; HONEST EARN, LIARS EARN:
credits a worker; NAMES: under which saboteurs took part

exit codes: 0 shown; 1 the picture cannot be made; 2 wrong flags
"""


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser(
        "simulate", help="try policies against saboteurs", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--policy", action="append", type=_policy, metavar="POLICY", help="to be repeated (default: four of them)")
    add("--workers", type=_whole(2, 100_000), default=200, metavar="N", help="default: %(default)s")
    add("--tasks", type=_whole(1, 10_000_000), default=20_000, metavar="N", help="default: %(default)s")
    add("--saboteurs", type=_share, default=0.2, metavar="F", help="share of workers that lie (default: %(default)s)")
    add("--collude", action="store_true", help="all saboteurs give the same wrong answer, and know each other")
    add("--lie", type=_share, default=1.0, metavar="S", help="share of results they falsify (default: all)")
    add("--apart", action="store_true", help="each draws by itself when to lie, not all on the same tasks")
    add("--sleep", type=_whole(0, None), default=0, metavar="N", help="they are honest for N results first")
    add("--only-shared", action="store_true", help="they lie only when an accomplice has the task as well")
    add("--crash", type=_share, default=0.0, metavar="P", help="share of leases at which they crash")
    add("--silent", type=_share, default=0.0, metavar="P", help="share of leases that they never answer")
    add("--return", action="store_true", dest="returns", help="convicted ones come back under a new name")
    add("--auditors", type=_whole(0, None), default=0, metavar="N", help="honest workers that the operator marked")
    add("--foremen", type=_whole(1, 1000), default=4, metavar="N", help="unrelated foremen (default: %(default)s)")
    add("--jobs", type=_whole(1, 1000), default=1, metavar="N", help="of each foreman, one after the other")
    add("--errors", type=_share, default=0.0, metavar="P", help="share of results in which honest workers err")
    add(
        "--flaky",
        type=_share,
        default=0.0,
        metavar="P",
        help="share of tasks whose right answer is not always the same",
    )
    add("--flaky-foremen", type=_whole(0, None), default=0, metavar="N", help="foremen of whose tasks all are so")
    add("--seeds", type=_whole(1, 1000), default=1, metavar="N", help="runs of each policy (default: %(default)s)")
    add("--seed", type=_whole(0, None), default=1, metavar="N", help="of the first run (default: %(default)s)")
    add("--plot", type=Path, metavar="FILE", help="a picture, .png or .svg; needs matplotlib")
    add("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(flags: argparse.Namespace) -> int:
    """Runs the simulations and prints their table; returns 0.

    Raises:
        SetupError: the picture cannot be made.
    """
    from dataclasses import asdict  # noqa: PLC0415 - --help does without

    from discovery.simulation.report import POLICIES, summary, table  # noqa: PLC0415 - --help does without

    if flags.plot is not None:
        _require_writable(flags.plot)
        _require_matplotlib()
    setup = setup_of(flags)
    seeds = range(flags.seed, flags.seed + flags.seeds)
    shown = [summary(policy, setup, seeds) for policy in flags.policy or POLICIES]
    if flags.json:
        print(json.dumps([asdict(each) for each in shown], indent=2))
    else:
        print(table(shown))
    if flags.plot is not None:
        _plot(shown, flags.plot, f"{flags.workers} workers, {flags.tasks} tasks, {flags.saboteurs:.0%} saboteurs")
    return 0


def setup_of(flags: argparse.Namespace) -> Setup:
    """The network that the flags describe.

    Raises:
        SetupError: auditors and saboteurs are more than all workers.
    """
    from discovery.simulation.behaviours import Tactic  # noqa: PLC0415 - --help does without
    from discovery.simulation.network import Setup  # noqa: PLC0415 - --help does without

    if flags.auditors + round(flags.workers * flags.saboteurs) > flags.workers:
        raise SetupError("auditors and saboteurs are more than all workers: fewer of either")
    tactic = Tactic(
        lie=flags.lie,
        together=not flags.apart,
        after=flags.sleep,
        shared=flags.only_shared,
        collude=flags.collude,
        crash=flags.crash,
        silent=flags.silent,
        returns=flags.returns,
    )
    return Setup(
        workers=flags.workers,
        tasks=flags.tasks,
        saboteurs=flags.saboteurs,
        tactic=tactic,
        auditors=flags.auditors,
        foremen=flags.foremen,
        jobs=flags.jobs,
        flaky=flags.flaky,
        flaky_foremen=flags.flaky_foremen,
        errors=flags.errors,
    )


def _require_matplotlib() -> None:
    from importlib.util import find_spec  # noqa: PLC0415 - --help does without

    if find_spec("matplotlib") is None:
        raise SetupError("--plot needs matplotlib: pip install 'ec262[plot]' (or pip install matplotlib)")


def _plot(shown: list[Any], path: Path, title: str) -> None:
    from discovery.simulation.plot import plot  # noqa: PLC0415 - --help does without

    try:
        plot(shown, path, title)
    except (OSError, ValueError) as reason:
        raise SetupError(f"--plot {path}: {reason}") from None
    print(f"written: {path}", file=sys.stderr)


def _require_writable(path: Path) -> None:
    """Says what is wrong with the picture's place before minutes are spent on what it shows.

    Raises:
        SetupError: nothing can be written there.
    """
    if path.suffix not in (".png", ".svg"):
        raise SetupError(f"--plot {path}: pictures are .png or .svg")
    if path.is_dir():
        raise SetupError(f"--plot {path}: this is a directory")
    if not path.parent.is_dir():
        raise SetupError(f"--plot {path}: there is no such directory")


def _policy(text: str) -> str:
    from discovery.simulation.report import rule_of  # noqa: PLC0415 - --help does without

    try:
        rule_of(text)
    except ValueError as reason:
        raise argparse.ArgumentTypeError(str(reason)) from None
    return text


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def _whole(least: int, most: int | None) -> Any:
    def whole(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            reach = f"{least} or more" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text}: has to be {reach}")
        return value

    return whole
