"""``ec262 worker status``, ``pause`` and ``resume``: talk to the workers of this home, over their local sockets."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ec262.cli.printing import plain, say
from ec262.config import home_directory
from ec262.errors import SetupError

EXIT_NONE = 1


def add_parsers(subparsers: Any) -> None:
    """Makes these commands of ``ec262 worker``."""
    status = subparsers.add_parser(
        "status", help="what the workers here do and earn, and why they are idle", description=_STATUS
    )
    status.add_argument("--json", action="store_true", help="as a line of JSON for each worker")
    pause = subparsers.add_parser("pause", help="take no further tasks; what runs is finished", description=_PAUSE)
    pause.add_argument(
        "--for", dest="for_s", type=_seconds, metavar="TIME", help="such as 30m or 2h (default: until it is resumed)"
    )
    resume = subparsers.add_parser("resume", help="take tasks again", description="Ends a pause.")
    for parser, command in ((status, run_status), (pause, run_pause), (resume, run_resume)):
        parser.add_argument(
            "-P", "--port", type=int, default=argparse.SUPPRESS,  # what stands before the command counts as well
            help="of one worker alone (default: all workers of this home)",
        )  # fmt: skip
        parser.set_defaults(run=command)
        parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter


_EXAMPLES = """examples:
  ec262 worker status                    what runs for whom, what was earned, why it is idle
  ec262 worker pause --for 2h            all workers of this home, for two hours
  ec262 worker pause -P 11236            one of them, until it is resumed
  ec262 worker resume
"""
_STATUS = "Shows the workers of this home. Exit code 1: none runs."
_PAUSE = """Takes this machine's workers out of the pool until `ec262 worker resume`, also when they are started again.
What they compute is finished, and what waits is given back; it costs no reputation. Exit code 1: none runs."""


def run_status(args: argparse.Namespace) -> int:
    """Prints what the workers here are doing; returns the exit code."""
    answers = _ask(args.port, {"do": "status"})
    for number, each in enumerate(answers):
        if args.json:
            print(json.dumps(each))
        else:
            _show(each, apart=number > 0)
    return 0 if answers else EXIT_NONE


def run_pause(args: argparse.Namespace) -> int:
    """Pauses; returns the exit code."""
    return _told(_ask(args.port, {"do": "pause", "for_s": args.for_s}))


def run_resume(args: argparse.Namespace) -> int:
    """Ends a pause; returns the exit code."""
    return _told(_ask(args.port, {"do": "resume"}))


def _ask(port: int | None, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers of the workers here, those that live."""
    from ec262.worker.control import ask, workers_here  # noqa: PLC0415 - --help does without

    home = home_directory()
    ports = workers_here(home) if port is None else [port]
    answers = [said for each in ports if (said := ask(home, each, request)) is not None]
    if not answers:
        which = "no worker" if port is None else f"no worker on port {port}"
        print(f"worker: {which} of {home} runs; `ec262 worker` starts one", file=sys.stderr)
    return answers


def _told(answers: list[dict[str, Any]]) -> int:
    for each in answers:
        say(f"worker on port {each['port']}: {_mood(each)}")
    return 0 if answers else EXIT_NONE


def _mood(status: dict[str, Any]) -> str:
    if status["reasons"]:
        return f"not working: {plain('; '.join(status['reasons']), 300)}"
    if not status["connected"]:
        return "willing, and discovery does not answer"
    if any(job["running"] or job["queued"] for job in status["jobs"]):
        return "working"
    return "willing, and nobody has work for it"


def _show(status: dict[str, Any], *, apart: bool) -> None:
    if apart:
        print()
    try:
        jobs, limits = list(status["jobs"]), dict(status["limits"])
        seen = "never" if status["silent_s"] < 0 else f"{status['silent_s']:.0f} s ago"
        finished = ", ".join(f"{count} {kind}" for kind, count in sorted(status["finished"].items())) or "none"
        say(f"worker   {plain(status['url'], 100)}, process {status['pid']}, up {_span(status['uptime_s'])}")
        say(f"state    {_mood(status)}")
        way = ", through its relay" if status["relay"] else ""
        say(f"pool     {plain(status['discovery'], 200)} as {status['worker_id'] or '?'}{way}, last heard {seen}")
        for job in jobs:
            whose = f" of account {job['account_id']}" if job["account_id"] else ""
            say(
                f"job      {job['job_id']}{whose}: {job['running']} running, {job['queued']} waiting, "
                f"{job['unfetched']} to be fetched"
            )
        say(f"tasks    {status['taken']} taken; finished: {finished}; {status['cpu_s']:.1f} s of CPU")
        say(
            f"earned   {status['earned_today']} credits today, {status['earned_since_start']} since the start, "
            f"{status['earned']} in all"
        )
        slots = f"{status['slots']} slot{'s' if status['slots'] != 1 else ''}"
        say(f"limits   {slots}" + "".join(f"; {name} {plain(limits[name], 200)}" for name in limits))
    except (KeyError, TypeError, ValueError) as reason:
        raise SetupError(f"a worker of another version of EC262 answers: {reason!r}") from None


def _span(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes else f"{seconds:.0f} s"


def _seconds(text: str) -> float:
    from ec262.worker.preferences import read_seconds  # noqa: PLC0415 - only where it is used

    try:
        return read_seconds(text)
    except ValueError as reason:
        raise argparse.ArgumentTypeError(str(reason)) from None
