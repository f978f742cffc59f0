"""``ec262 collect``: puts the files that a job wrote together in one, sorted by key."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

EXAMPLES = """\
examples:
  ec262 collect out/count counts.txt            out/count_00, out/count_01, ... become counts.txt
  ec262 collect out/count - | head              to standard output
  ec262 collect hdfs://host:9000/out/count counts.txt --overwrite

PREFIX is what the job was told to write to. Files of a job with a range partitioner are copied one after the other;
others are merged by key, which takes output format text or json. Needs little memory, however large the files are.

exit code: 0 done; 1 not done, and the target is as it was; 2 wrong flags
"""
_SIGPIPE = 141
"""What a shell says of a process that nobody listens to any more."""


def add_parser(subparsers: Any) -> None:
    """Makes this a command of ``ec262``."""
    parser = subparsers.add_parser(
        "collect", help="put a job's output files together in one", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("prefix", metavar="PREFIX", help="path or URL that the output files' names begin with")
    parser.add_argument("target", metavar="TARGET", help="path or URL of the file to write; - is standard output")
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET if it is there")
    parser.set_defaults(run=run)


def run(flags: argparse.Namespace) -> int:
    """Collects; returns 0."""
    from ec262.storage.collect import collect  # noqa: PLC0415 - only this command needs it

    try:
        written = collect(flags.prefix, flags.target, overwrite=flags.overwrite)
    except BrokenPipeError:
        # Whoever reads has enough. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGPIPE
    if flags.target != "-":
        print(f"{written:,} bytes in {flags.target}", file=sys.stderr)
    return 0
